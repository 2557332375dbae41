"""Messages on the terminal: this project's own, above the progress bar, and warnings of others."""

from __future__ import annotations

import logging
import sys
import threading

from absl import logging as absl_logging
from tqdm import tqdm


class _AboveTheBar(logging.Handler):
    """Writes to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup() -> None:
    """Call once, before the first message."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax logs every step of every save.
    for name in ("absl", "asyncio"):  # An error that they log with its traceback is raised as well.
        for target in (logging.getLogger(name), *logging.getLogger(name).handlers):
            target.addFilter(lambda record: not record.exc_info)
    sys.unraisablehook = _print_unraisable
    threading.excepthook = _log_thread_error
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("infantxray", "data_pipeline"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def _print_unraisable(found: sys.UnraisableHookArgs) -> None:
    """Prints an error of a thread, but for those of saving threads after a failed save."""
    if str(found.exc_value) != "Event loop is closed":  # The command reports why.
        sys.__unraisablehook__(found)


def _log_thread_error(found: threading.ExceptHookArgs) -> None:
    """Logs a failed read or write of a thread in one line; other errors with their traceback."""
    if isinstance(found.exc_value, OSError):
        logging.getLogger(__name__).warning("%s", found.exc_value)
    else:
        threading.__excepthook__(found)
