"""Signs of life from long work that has no progress bar."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

SECONDS = 4.5  # Between two lines.
_open: list[Callable[[], str]] = []  # What goes on; the last one is told.


@contextlib.contextmanager
def waiting(what: str | Callable[[], str]) -> Iterator[None]:
    """Logs every few seconds that `what`, such as `"compiling"`, goes on.

    The lines come from a thread, so that they come while compiled code runs too. Where blocks are
    nested, the inner one is told.
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
