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
from typing import IO, Any, NoReturn

from data_pipeline.errors import UserError
from data_pipeline.files import replaced
from infantxray.runs import native_messages

USER_ERROR, INTERNAL_ERROR = 2, 1
ERROR_LOG = "error.log"

_AGAIN = "; then run the same command again"
_OS_ERRORS = {number: os.strerror(number).lower() for number in errno.errorcode} | {
    errno.ENOSPC: f"the disk is full; free some space{_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space{_AGAIN}",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: f"too many open files; raise the limit with ulimit -n{_AGAIN}",
    errno.ENFILE: "too many open files on this machine",
    errno.EIO: "the disk or the network file system failed",
    errno.ESTALE: f"the network file system lost the file; mount it again{_AGAIN}",
}
# Libraries raise other errors; these words of the operating system give the cause.
_OS_WORDS = {
    os.strerror(number): number
    for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO,
        errno.ESTALE, errno.ENAMETOOLONG,
    )
}  # fmt: skip
_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Cannot allocate memory")


class Terminated(BaseException):
    """SIGTERM or SIGHUP came outside of training, which handles signals itself."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into exceptions, so that every `finally` runs.

    SIGHUP stays ignored where it is, as under `nohup`.
    """

    def stop(signum: int, frame: object) -> None:
        del frame
        raise Terminated(signum)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:
                previous[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def open_standard_streams() -> None:
    """Replaces closed standard streams, and drops messages that cannot be written.

    Otherwise a file that is opened after stderr was closed would receive its messages. The terminal
    or the reader of the messages may also go away while a command runs.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest number that is free.
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(descriptor, "w", closefd=False)
        setattr(sys, name, _Forgiving(stream))


class _Forgiving:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def report(error: BaseException, workdir: str | None) -> int:
    """Prints one line about the end of a command, and returns its exit code.

    The traceback goes to `error.log` in the workdir, except for mistakes of the user.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else INTERNAL_ERROR
    if isinstance(error, KeyboardInterrupt | Terminated):
        signum = error.signum if isinstance(error, Terminated) else signal.SIGINT
        _print("stopped; the same command starts again where it can")
        return 128 + signum
    line = explain(error)
    if isinstance(error, UserError):
        _print(f"error: {line}")
        return USER_ERROR
    ordinary = _os_error(error) is not None
    log = _write_log(error, workdir)
    if line == native_messages.LOST:
        native_messages.say_lost()
        return INTERNAL_ERROR
    _print(f"error: {line}" + (f"; the details are in {log}" if log else ""))
    if not log and not ordinary:
        traceback.print_exception(error)
    return USER_ERROR if ordinary else INTERNAL_ERROR


def fail(message: str) -> NoReturn:
    """Ends the program over a mistake on the command line."""
    _print(f"error: {message}")
    sys.exit(USER_ERROR)


def explain(error: BaseException) -> str:
    """One line: what happened, and what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if any(word in text for word in ("Gloo", "CoordinationService", "coordination service")):
        return native_messages.LOST
    found = _os_error(error)
    if found is not None:
        number, name = found
        return f"{name}: {_OS_ERRORS[number]}" if name else _OS_ERRORS[number]
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return (
            "memory ran out; lower config.batch_size, or keep it and raise "
            "config.accumulate_steps, or set config.dtype=bfloat16"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _os_error(error: BaseException | None) -> tuple[int, str] | None:
    """Number and file name of the error of the file system that this one was raised from.

    None where there is no such error. A name that the operating system did not give is empty.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _OS_ERRORS:
            return error.errno, os.fsdecode(error.filename or "")
        for words, number in _OS_WORDS.items():
            if words in str(error):
                return number, ""
        error = error.__cause__ or error.__context__
    return None


def _write_log(error: BaseException, workdir: str | None) -> str | None:
    """Writes the traceback; None where that is impossible."""
    if not workdir or not os.path.isdir(workdir):
        return None
    path = os.path.join(workdir, ERROR_LOG)
    try:
        with replaced(path, errors="surrogateescape") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return None
    return path


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # The terminal may be gone.
        print(line, file=sys.stderr, flush=True)
