"""Progress messages for long work without a progress bar."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

SECONDS = 4.5  # Between two lines.
_open: list[Callable[[], str]] = []  # Running work; lines name the last.


@contextlib.contextmanager
def waiting(what: str | Callable[[], str]) -> Iterator[None]:
    """Logs every few seconds that `what`, such as `"compiling"`, is still running.

    A thread writes the lines, also while compiled code runs. In nested blocks, the lines name the
    inner one.
    """
    describe = what if callable(what) else lambda: what
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(SECONDS):
            if _open[-1:] == [describe]:
                _log.info("%s (%.0f s)", describe(), time.monotonic() - started)

    thread = threading.Thread(target=tell, name="waiting", daemon=True)
    _open.append(describe)
    thread.start()
    try:
        yield
    finally:
        done.set()
        _open.remove(describe)
        thread.join()
