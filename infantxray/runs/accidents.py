"""Errors and signals of a command: one line on stderr, an exit code, and a traceback file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

from data_pipeline.errors import UserError
from infantxray.runs import native_messages

USER_ERROR, INTERNAL_ERROR = 2, 1
ERROR_LOG = "error.log"

_OS_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "too many open files; raise the limit with ulimit -n",
    errno.EIO: "the disk or the network file system failed",
}
# Whatever raised it, these words of an error of the file system tell the cause.
_OS_WORDS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
}


class Terminated(BaseException):
    """SIGTERM or SIGHUP came outside of training, which handles signals itself."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `Terminated`, so that every `finally` runs."""

    def stop(signum: int, frame: object) -> None:
        del frame
        raise Terminated(signum)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            previous[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def report(error: BaseException, workdir: str | None) -> int:
    """Prints one line about the end of a command, and returns its exit code.

    The traceback of everything but mistakes of the user goes to `error.log` in the workdir.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else INTERNAL_ERROR
    if isinstance(error, KeyboardInterrupt | Terminated):
        signum = error.signum if isinstance(error, Terminated) else signal.SIGINT
        _print("stopped; the same command starts again where it can")
        return 128 + signum
    if isinstance(error, BrokenPipeError):
        # The reader of the output is gone, such as `head`; flushing at exit would fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    line = explain(error)
    if isinstance(error, UserError):
        _print(f"error: {line}")
        return USER_ERROR
    log = _write_log(error, workdir)
    if line == native_messages.LOST:
        native_messages.say_lost()
        return INTERNAL_ERROR
    where = f"; the details are in {log}" if log else ""
    _print(f"error: {line}{where}")
    if not log:
        traceback.print_exception(error)
    return USER_ERROR if os_error(error) is not None else INTERNAL_ERROR


def fail(message: str) -> NoReturn:
    """Ends the program over a mistake on the command line."""
    _print(f"error: {message}")
    sys.exit(USER_ERROR)


def explain(error: BaseException) -> str:
    """One line: what happened, and what helps."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if any(word in text for word in ("Gloo", "CoordinationService", "coordination service")):
        return native_messages.LOST
    number = os_error(error)
    if number is not None:
        name = getattr(error, "filename", None)
        return f"{name}: {_OS_ERRORS[number]}" if name else _OS_ERRORS[number]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            "memory ran out; lower config.batch_size, or keep it and raise "
            "config.accumulate_steps, or set config.dtype=bfloat16"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def os_error(error: BaseException | None) -> int | None:
    """The number of an ordinary error of the file system that this one is, or was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _OS_ERRORS:
            return error.errno
        for words, number in _OS_WORDS.items():
            if words in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def _write_log(error: BaseException, workdir: str | None) -> str | None:
    """Writes the traceback; None where that is impossible."""
    if not workdir or not os.path.isdir(workdir):
        return None
    path = os.path.join(workdir, ERROR_LOG)
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return None
    return path


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # The terminal may be gone.
        print(line, file=sys.stderr, flush=True)
