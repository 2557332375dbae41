"""Graceful shutdown on SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class StopOnSignal:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop.

    A second signal of the same kind has the effect that it had before. SIGHUP stays ignored where
    it is, as under `nohup`.

    Args:
      on_request: called inside the signal handler.

    Attributes:
      requested: whether a signal came.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None):
        self.requested = False
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def _request(self, signum: int, frame: Any) -> None:
        del frame
        self.requested = True
        self._on_request()
        signal.signal(signum, self._previous[signum])

    def __enter__(self) -> StopOnSignal:
        # Python allows signal handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                    continue
                self._previous[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
