"""Runs cells, each in a process of its own: on this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from data_pipeline.errors import UserError
from infantxray.studies.plan import Cell
from infantxray.studies.timing import seconds_left
from infantxray.training.stopping import StopOnSignal

_log = logging.getLogger(__name__)

_RAY = "ray==2.60.0"
_ATTEMPTS = 2
_GPU_FILES = "/dev/nvidia[0-9]*"
_GPU_SHARE = 0.9  # Of its memory, divided among the cells at a time.
_LOG = "cell.log"
_POLL_SECONDS = 0.1


class Stopped(UserError):
    """The study was asked to stop; its cells saved where they were."""


def run_command(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[int, float]:
    """Runs one cell to its end, with its messages in `cell.log` of its folder.

    The folder is locked as long as that process lives, also when whoever started it is gone: a
    study that is started again waits for it, and does not run the same cell beside it.

    Args:
      command: of the cell.
      folder: its workdir.
      environment: of the process, beside this one's.
      stopping: once it is true, the cell is asked to stop: it saves where it is.

    Returns:
      The exit status, and the seconds that the process took.
    """
    os.makedirs(folder, exist_ok=True)
    with (
        open(os.path.join(folder, "cell.lock"), "w") as lock,
        open(os.path.join(folder, _LOG), "a", encoding="utf-8") as log,
    ):
        while not _try_lock(lock):
            if stopping():
                return -signal.SIGTERM, 0.0
            time.sleep(_POLL_SECONDS)
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),
        )
        asked = False
        try:
            while process.poll() is None:
                if stopping() and not asked:
                    process.terminate()
                    asked = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        except BaseException:  # Ray interrupts a task that is cancelled.
            process.terminate()
            process.wait()
            raise
        return process.returncode, time.monotonic() - started


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def last_error(folder: str) -> str:
    """The last line that says something in a cell's log."""
    try:
        with open(os.path.join(folder, _LOG), encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read()[-20_000:].splitlines()]
    except FileNotFoundError:
        return "it left no log"
    said = [line for line in lines if line]
    return (said or ["it said nothing"])[-1].removeprefix("error: ")


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that processes with this environment would see; empty without any."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        named = environment["CUDA_VISIBLE_DEVICES"].split(",")
        return [name.strip() for name in named if name.strip() not in ("", "-1")]
    # CUDA counts those that it sees from 0, whatever the numbers of their device files.
    return [str(i) for i in range(len(glob.glob(_GPU_FILES)))]


class LocalRunner:
    """Runs up to `slots` cells at a time on this machine.

    One cell at a time has all GPUs. Several are dealt out to the GPUs in turn, and those on one
    GPU divide its memory.

    Args:
      slots: how many.
      environment: of their processes.
    """

    def __init__(self, slots: int, environment: dict[str, str]):
        self.slots = slots
        self._environment = dict(environment)
        self._shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        gpus = visible_gpus(environment)
        for i in range(slots):
            share = {}
            if slots > 1:
                together = math.ceil(slots / max(len(gpus), 1))
                share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_GPU_SHARE / together:.3f}"
                if gpus:
                    share["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
            self._shares.put(share)
        self._pool = ThreadPoolExecutor(slots)
        self._stopping = threading.Event()

    def submit(self, cell: Cell) -> Future:
        return self._pool.submit(self._run, cell)

    def _run(self, cell: Cell) -> tuple[int, float]:
        share = self._shares.get()
        try:
            environment = self._environment | share
            return run_command(cell.command, cell.folder, environment, self._stopping.is_set)
        finally:
            self._shares.put(share)

    def stop(self) -> None:
        """Asks the running cells to save and stop; their futures end soon after."""
        self._stopping.set()

    def close(self) -> None:
        self._pool.shutdown()


class RayRunner:
    """Runs cells as tasks of a Ray cluster, a GPU each where it has any.

    Every machine must see this code, its Python and the study's workdir under the same paths.

    Raises:
      UserError: Ray is not installed.
    """

    def __init__(self, address: str, environment: dict[str, str]):
        try:
            import ray
        except ImportError:
            raise UserError(
                f"config.ray_address needs Ray: pip install {_RAY}; one machine needs none, leave "
                "the setting empty"
            ) from None
        self._ray = ray
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": root}},
            log_to_driver=False,
        )
        # A GPU, or all processors of a machine: a cell takes what it is given whole.
        gpus = ray.cluster_resources().get("GPU", 0)
        processors = min(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
        options = {"num_gpus": 1} if gpus else {"num_cpus": processors}
        self.slots = 10_000  # Ray itself keeps those waiting for which there is no room.
        self._task = ray.remote(_run_on_worker).options(max_retries=0, **options)
        self._environment = environment
        self._references: list = []

    def submit(self, cell: Cell) -> Future:
        reference = self._task.remote(cell.command, cell.folder, self._environment)
        self._references.append(reference)
        return reference.future()

    def stop(self) -> None:
        for reference in self._references:
            self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


# What a task may use is the worker's to say, not that of the machine that started the study.
_OF_THE_WORKER = ("CUDA_VISIBLE_DEVICES", "PATH", "LD_LIBRARY_PATH", "HOSTNAME", "TMPDIR")


def _run_on_worker(command, folder, environment) -> tuple[int, float]:
    own = {name: os.environ[name] for name in _OF_THE_WORKER if name in os.environ}
    return run_command(command, folder, {**environment, **own})


def run_cells(todo: Sequence[Cell], plan: Sequence[Cell], finished: set[int], runner) -> dict:
    """Runs cells, each after those that it needs; one that fails is tried once more.

    Args:
      todo: cells to run.
      plan: all cells of the study.
      finished: numbers of those that are finished; grows.
      runner: `LocalRunner` or `RayRunner`.

    Returns:
      `{number of a cell: why it failed}`.

    Raises:
      Stopped: SIGTERM or SIGINT came.
    """
    waiting = list(todo)
    attempts = dict.fromkeys((cell.index for cell in todo), 0)
    failed: dict[int, str] = {}
    running: dict[Future, Cell] = {}
    with StopOnSignal(runner.stop) as stop:
        while waiting or running:
            for cell in list(waiting):
                broken = [need for need in cell.needs if need in failed]
                if broken:
                    failed[cell.index] = f"needs cell {broken[0]}, which failed"
                    waiting.remove(cell)
                elif stop.requested:
                    break
                elif len(running) < runner.slots and finished.issuperset(cell.needs):
                    waiting.remove(cell)
                    attempts[cell.index] += 1
                    _log.info("starts: %d, %s", cell.index, cell.title)
                    running[runner.submit(cell)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                problem = _outcome(cell, future)
                if stop.requested:
                    continue
                if problem is None:
                    finished.add(cell.index)
                    left = [c for c in todo if c.index not in finished and c.index not in failed]
                    _log.info(
                        "[%d/%d] finished: %d, %s%s",
                        len(todo) - len(left),
                        len(todo),
                        cell.index,
                        cell.title,
                        _time_left(left, plan, runner),
                    )
                elif attempts[cell.index] < _ATTEMPTS:
                    _log.warning("%s failed (%s): once more", cell.title, problem)
                    waiting.insert(0, cell)
                else:
                    _log.error("%s failed: %s", cell.title, problem)
                    failed[cell.index] = problem
            if stop.requested and not running:
                raise Stopped("stopped; cells saved where they were: the same command goes on")
    return failed


def _outcome(cell: Cell, future: Future) -> str | None:
    """Why a cell failed; None where it finished. Adds to the record of its time."""
    try:
        status, seconds = future.result()
    except Exception as error:  # Of Ray: a worker died.
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finished = status == 0 and cell.is_finished()
    record = cell.read_record()
    cell.write_record(
        {"seconds": round(record.get("seconds", 0.0) + seconds, 3), "finished": finished}
    )
    if finished:
        return None
    if status < 0:
        return f"killed by {signal.Signals(-status).name}, most often because memory ran out"
    return last_error(cell.folder) if status else "it ended without being finished"


def _time_left(left: Sequence[Cell], plan: Sequence[Cell], runner) -> str:
    seconds = seconds_left(left, plan, max(1, min(runner.slots, len(left))))
    if not left or seconds is None:
        return ""
    return f"; about {max(1, round(seconds / 60))} min left"
