"""Runs decoders written in C in processes of their own, where they may crash or hang.

JPEG 2000, JPEG Lossless, JPEG-LS and compressed TIFF are decoded by libraries with a history of
memory errors on damaged files. A worker process takes the file's fate: the program gets a reason.
The limit is on processor time, because what a busy machine does to the clock says nothing about a
image, and must not decide which images are used.
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

from data_pipeline.decode.radiograph import Refused

_MEMORY_BYTES = 2**30
_START_TIMEOUT_S = 60.0
# The last resort, for a decoder that waits for ever: so many times the processor time it may take.
_WALL_TIMES = 15.0
_TRIES = 2


class _Worker:
    """One process that answers one request at a time."""

    def __init__(self):
        self._connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # One thread: OpenBLAS otherwise reserves memory for each core, out of the limit.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OPJ_NUM_THREADS": "1"}
        code = f"from data_pipeline.decode.isolation import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        # Importing is not decoding: a busy machine must not cost the first file its time.
        try:
            if not self._connection.poll(_START_TIMEOUT_S):
                raise TimeoutError
            self._connection.recv()
        except BaseException:
            self.stop()
            raise

    def call(self, function: str, args: tuple, cpu_s: float):
        self._connection.send((function, args, cpu_s))
        if not self._connection.poll(_WALL_TIMES * cpu_s):
            raise TimeoutError
        return self._connection.recv()

    def stop(self) -> int:
        """Ends the process; returns its exit code, that of its own end if it came first."""
        self._process.kill()
        code = self._process.wait()
        self._connection.close()
        return code


class _Pool:
    """Idle workers, as many as there were callers at the same time."""

    def __init__(self):
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def run(self, function: str, args: tuple, cpu_s: float):
        for _ in range(_TRIES):
            try:
                return self._try(function, args, cpu_s)
            except TimeoutError:
                continue
        raise Refused(f"its decoder did not answer, {_TRIES} times")

    def _try(self, function: str, args: tuple, cpu_s: float):
        """Raises `TimeoutError` where the clock ran out, which may be the machine's fault."""
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
                raise Refused("its decoder crashed") from None
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
        """After a fork, the workers belong to the parent alone."""
        self._lock = threading.Lock()
        self._idle = []


_pool = _Pool()
atexit.register(_pool.stop)
os.register_at_fork(after_in_child=_pool.forget)


def run_isolated(function: str, *args, cpu_s: float):
    """Calls `module:name` with picklable arguments in a worker process and returns its result.

    Args:
      function: what to call.
      args: its arguments.
      cpu_s: seconds of processor time that it may take. On the clock it may take many times that,
        and is tried twice.

    Raises:
      Refused: the function refused, failed, crashed, took too long or too much memory.
    """
    return _pool.run(function, args, cpu_s)


def time_limit(pixels: int) -> float:
    """Seconds of processor time for decoding so many pixels: several times what it does take."""
    return 4.0 + max(0, pixels - 4_000_000) / 2_000_000


def serve(descriptor: int) -> None:
    """The worker's loop; ends when the other side of the connection is gone."""
    import numpy  # noqa: F401  (before the limit: importing maps much, and uses little)
    import PIL.Image  # noqa: F401

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


def _answer(function: str, args: tuple, cpu_s: float) -> tuple[str, object]:
    try:
        module, name = function.split(":")
        decode = getattr(importlib.import_module(module), name)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # Ends the process, even inside a library.
        return "ok", decode(*args)
    except Refused as refusal:
        return "refused", str(refusal)
    except MemoryError:
        return "refused", "its decoder ran out of memory"
    except BaseException as error:  # codecs in Rust panic past Exception
        return "refused", f"damaged or not what its format says ({type(error).__name__})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
