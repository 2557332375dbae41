"""Progress messages for long work without a progress bar."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

SECONDS = 4.5  # Without a line, after which one is written.
_PAUSE = 0.5  # Seconds between two blocks that are one silence.
_KNOWN_SILENCE = 2.0  # Seconds before any other block that are counted, at most.


class _LastLine(logging.Handler):
    """Remembers when the last line was logged, and when the last block ended."""

    time = block = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


_last_line = _LastLine()
_turn = threading.Lock()
_open: list[tuple[Callable[[], str], float]] = []  # Running work, and when it began.


@contextlib.contextmanager
def waiting(what: str | Callable[[], str]) -> Iterator[None]:
    """Logs that `what`, such as `"compiling"`, is still running, if nothing else is logged.

    A thread writes the lines, also while compiled code runs. In nested blocks, the lines name the
    inner one.
    """
    for name in ("infantxray", "data_pipeline"):  # Those that `runs.console` shows.
        logging.getLogger(name).addHandler(_last_line)  # Once, however often it is called.
    describe = what if callable(what) else lambda: what
    work, done = (describe, time.monotonic()), threading.Event()
    if not _open and work[1] - _last_line.block > _PAUSE:
        # What came before may have had a progress bar.
        _last_line.time = max(_last_line.time, work[1] - _KNOWN_SILENCE)

    def tell() -> None:
        while not done.wait(max(0.01, _last_line.time + SECONDS - time.monotonic())):
            with _turn:
                silent = time.monotonic() - _last_line.time
                for name, started in _open[-1:] if silent >= SECONDS else ():
                    _last_line.time = time.monotonic()
                    _log.info("%s (%.0f s)", name(), time.monotonic() - started)

    thread = threading.Thread(target=tell, name="waiting", daemon=True)
    _open.append(work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        _open.remove(work)
        _last_line.block = time.monotonic()
        thread.join()
