"""Isolated processes for decoders that may crash or hang.

JPEG 2000, JPEG Lossless, JPEG-LS and TIFF are decoded by libraries with a history of memory errors
on damaged files. They run in worker processes, so that a crash becomes an error with a reason. The
limit is on processor time, because wall-clock time depends on the load of the machine and must not
decide which images are used.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from data_pipeline.decode.radiograph import Refused
from data_pipeline.processes import child_environment, end_with_parent

_MEMORY_BYTES = 2**30
_START_TIMEOUT_S = 60.0
# The last resort, for a decoder that waits for ever: wall-clock time over processor time.
_WALL_TIMES = 15.0
_TRIES = 2


class _Worker:
    """One process that answers one request at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        # One thread: OpenBLAS otherwise reserves memory for each core, out of the limit.
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "OPJ")}
        root = str(Path(__file__).resolve().parents[2])
        # Last, so that nothing beside this project comes before the standard library.
        code = (
            f"import sys; sys.path.append({root!r}); from {__name__} import serve; "
            f"serve({theirs.fileno()}, {os.getpid()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            env=child_environment() | threads,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        # The time for imports is not part of the limit of the first file.
        try:
            if not self._connection.poll(_START_TIMEOUT_S):
                raise TimeoutError
            self._connection.recv()
        except EOFError:
            self.stop()
            raise Refused("its decoder process does not start") from None
        except BaseException:
            self.stop()
            raise

    def call(self, function: str, args: tuple[Any, ...], cpu_s: float) -> Any:
        self._connection.send((function, args, cpu_s))
        if not self._connection.poll(_WALL_TIMES * cpu_s):
            raise TimeoutError
        return self._connection.recv()

    def stop(self) -> int:
        """Ends the process; returns its exit code."""
        self._process.kill()
        code = self._process.wait()
        self._connection.close()
        return code


class _Pool:
    """Idle workers, as many as there were callers at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def run(self, function: str, args: tuple[Any, ...], cpu_s: float) -> Any:
        for _ in range(_TRIES):
            try:
                return self._try(function, args, cpu_s)
            except TimeoutError:
                continue
        raise Refused(f"its decoder did not answer, {_TRIES} times")

    def _try(self, function: str, args: tuple[Any, ...], cpu_s: float) -> Any:
        """Raises `TimeoutError` if the wall-clock time is over, which a busy machine may cause."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        try:
            worker = worker or _Worker()
            kind, value = worker.call(function, args, cpu_s)
        except BaseException as error:
            code = worker.stop() if worker is not None else None
            if isinstance(error, EOFError | ConnectionError):
                if code == -signal.SIGPROF:
                    taken = f"its decoder took more than {cpu_s:.0f} s of processor time"
                    raise Refused(taken) from None
                memory = " or ran out of memory" if code == -signal.SIGABRT else ""
                raise Refused(f"its decoder crashed{memory}") from None
            raise
        with self._lock:
            self._idle.append(worker)
        if kind == "refused":
            raise Refused(value)
        return value

    def stop(self) -> None:
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.stop()

    def forget(self) -> None:
        """Drops the workers in a forked process: they belong to the parent alone."""
        self._lock = threading.Lock()
        self._idle = []


_pool = _Pool()
atexit.register(_pool.stop)
os.register_at_fork(after_in_child=_pool.forget)


def run_isolated(function: str, *args: Any, cpu_s: float) -> Any:
    """Calls `module:name` with picklable arguments in a worker process and returns its result.

    Args:
      function: what to call.
      args: its arguments.
      cpu_s: limit on its processor time in seconds. The limit on wall-clock time is many times
        that, and after it the call is tried once more.

    Raises:
      Refused: the function refused, failed, crashed, took too long or too much memory.
    """
    return _pool.run(function, args, cpu_s)


def time_limit(pixels: int) -> float:
    """Limit on processor time in seconds, by number of pixels: several times that of decoding."""
    return 4.0 + max(0, pixels - 4_000_000) / 2_000_000


def serve(descriptor: int, parent: int) -> None:
    """Answers requests until the other side of the connection, or the parent process, is gone."""
    import numpy  # noqa: F401  (before the limit: importing maps much, and uses little)
    import PIL.Image  # noqa: F401

    end_with_parent(parent)
    _limit_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection = Connection(descriptor)
    connection.send("ready")
    while True:
        try:
            function, args, cpu_s = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_answer(function, args, cpu_s))


def _answer(function: str, args: tuple[Any, ...], cpu_s: float) -> tuple[str, Any]:
    try:
        module, name = function.split(":")
        decode = getattr(importlib.import_module(module), name)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # Ends the process, even inside a library.
        return "ok", decode(*args)
    except Refused as refusal:
        return "refused", str(refusal)
    except MemoryError:
        return "refused", "its decoder ran out of memory"
    except BaseException as error:  # Codecs in Rust panic past Exception.
        return "refused", f"damaged or not what its format says ({type(error).__name__})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # On Windows.
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
