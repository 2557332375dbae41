"""Child processes that start isolated and end with their parent.

Python looks for modules in the current folder first when it is started with `-c` or `-m`, as for
spawned processes. Nothing here starts that way: a `numpy.py` that lies beside the images is not
executed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60.0


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment in which a Python child imports nothing from its working folder.

    `PYTHONSAFEPATH` keeps the working folder off the import path, and relative entries of
    `PYTHONPATH` are removed. A checkout is added to `PYTHONPATH`; an installed package needs none.

    Args:
      environment: base environment; None = that of this process.
    """
    found = dict(os.environ if environment is None else environment)
    paths = [p for p in found.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)]
    if (ROOT / "pyproject.toml").is_file() and str(ROOT) not in paths:
        paths.insert(0, str(ROOT))
    return found | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def end_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Ends this process once its parent has ended for any reason.

    Args:
      parent: process id of the parent.
      signum: sent first. After SIGTERM the process has a minute to save its state.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signum)
        time.sleep(_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextlib.contextmanager
def isolated_start() -> Iterator[None]:
    """Gives `child_environment` to the processes that start within this block."""
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    os.environ.update(child_environment())
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


class WorkerPool(ProcessPoolExecutor):
    """Worker processes that start isolated, ignore Ctrl-C and SIGTERM, and end with their parent.

    Args:
      processes: how many.
    """

    def __init__(self, processes: int):
        # Not forked: a fork would copy the locks of threads that JAX and Grain keep.
        context = multiprocessing.get_context("spawn")
        with isolated_start():  # An event starts the process that tracks semaphores.
            self._stop = context.Event()
        super().__init__(processes, context, _start_worker, (os.getpid(), self._stop))

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submits a call, for which a worker may be spawned."""
        with isolated_start():
            return super().submit(*args, **kwargs)

    def stop(self) -> None:
        """Asks the workers to stop: `stopping` is true in them from now on."""
        self._stop.set()


_stop: Event | None = None  # In a worker.


def _start_worker(parent: int, stop: Event) -> None:
    global _stop
    _stop = stop
    for signum in (signal.SIGINT, signal.SIGTERM):  # The parent decides.
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent(parent)


def stopping() -> bool:
    """Whether this is a worker that was asked to stop."""
    return _stop is not None and _stop.is_set()


def watched(command: list[str]) -> list[str]:
    """The command of a Python module, isolated and ended by SIGTERM when this process ends.

    Args:
      command: interpreter, `-m`, module, and its arguments. Run it in a `child_environment`.
    """
    python, _, module, *arguments = command
    return [python, "-P", "-m", __name__, str(os.getpid()), module, *arguments]


def _main() -> None:
    _, parent, module, *arguments = sys.argv
    end_with_parent(int(parent), signal.SIGTERM)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
