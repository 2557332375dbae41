"""Executes the runs of a study in child processes, on this machine or on a Ray cluster."""

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
from typing import IO, Any

from data_pipeline.errors import UserError
from data_pipeline.extras import install_line
from data_pipeline.processes import child_environment, watched
from infantxray.studies.plan import Run
from infantxray.studies.timing import seconds_left
from infantxray.training.stopping import StopOnSignal

_log = logging.getLogger(__name__)

_ATTEMPTS = 2
_GPU_FILES = "/dev/nvidia[0-9]*"
_GPU_SHARE = 0.9  # Of its memory, divided among the runs at a time.
_LOG, _LOCK = "study_run.log", "study_run.lock"
_POLL_SECONDS = 0.1


class Stopped(UserError):
    """The study was asked to stop, and its runs saved their state."""


def run_command(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[int, float]:
    """Executes one run, with its messages in `study_run.log` in its folder.

    The process holds a lock on the folder as long as it lives, and is asked to stop when this
    process ends, even by SIGKILL. A study that is started again meanwhile waits for it.

    Args:
      command: of the run: interpreter, `-m`, module, and its arguments.
      folder: its workdir.
      environment: environment of the process.
      stopping: once it is true, the run is asked to stop, and saves its state.

    Returns:
      The exit status, and the seconds that the process took.
    """
    os.makedirs(folder, exist_ok=True)
    with (
        open(os.path.join(folder, _LOCK), "w") as lock,
        open(os.path.join(folder, _LOG), "a", encoding="utf-8") as log,
    ):
        while not _try_lock(lock):
            if stopping():
                return -signal.SIGTERM, 0.0
            time.sleep(_POLL_SECONDS)
        started = time.monotonic()
        process = subprocess.Popen(
            watched(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(environment) | {"INFANTXRAY_ALONE": "1"},
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


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_running(folder: str) -> bool:
    """Whether a process executes the run of this folder now."""
    try:
        with open(os.path.join(folder, _LOCK)) as lock:
            return not _try_lock(lock)  # Closing the file unlocks it.
    except OSError:
        return False


def last_error(folder: str) -> str:
    """The last line in the log of a run that is not empty."""
    try:
        with open(os.path.join(folder, _LOG), encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read()[-20_000:].splitlines()]
    except FileNotFoundError:
        return "it left no log"
    return next((line for line in reversed(lines) if line), "its log is empty").removeprefix(
        "error: "
    )


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that processes with this environment would see; empty without any."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        named = environment["CUDA_VISIBLE_DEVICES"].split(",")
        return [name.strip() for name in named if name.strip() not in ("", "-1")]
    # CUDA counts those that it sees from 0, whatever the numbers of their device files.
    return [str(i) for i in range(len(glob.glob(_GPU_FILES)))]


class LocalRunner:
    """Executes up to `slots` runs at a time on this machine.

    One run at a time has all GPUs. Several are dealt out to the GPUs in turn, and those on one GPU
    divide its memory.

    Args:
      slots: how many.
      environment: environment of their processes.
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

    def submit(self, run: Run) -> Future[tuple[int, float]]:
        return self._pool.submit(self._execute, run)

    def _execute(self, run: Run) -> tuple[int, float]:
        share = self._shares.get()
        try:
            environment = self._environment | share
            return run_command(run.command, run.folder, environment, self._stopping.is_set)
        finally:
            self._shares.put(share)

    def stop(self) -> None:
        """Asks the processes to save and stop; their futures end soon after."""
        self._stopping.set()

    def close(self) -> None:
        self._pool.shutdown()


class RayRunner:
    """Executes runs as tasks of a Ray cluster, each with a GPU where the cluster has any.

    Every machine must have this code, its Python and the study's workdir at the same paths.

    Raises:
      UserError: Ray is not installed.
    """

    def __init__(self, address: str, environment: dict[str, str]):
        try:
            import ray
        except ImportError:
            raise UserError(
                f"config.ray_address needs Ray: {install_line('ray')}; leave the setting empty "
                "to use this machine alone"
            ) from None
        self._ray = ray
        ray.init(
            address=address, runtime_env={"env_vars": child_environment({})}, log_to_driver=False
        )
        # A GPU, or all processors of a machine: a run uses all that it is given.
        gpus = ray.cluster_resources().get("GPU", 0)
        processors = min(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
        options = {"num_gpus": 1} if gpus else {"num_cpus": processors}
        self.slots = 10_000  # Ray queues the tasks that do not fit.
        self._task = ray.remote(_run_on_worker).options(max_retries=0, **options)
        self._environment = environment
        self._references: list[Any] = []

    def submit(self, run: Run) -> Future[tuple[int, float]]:
        reference = self._task.remote(run.command, run.folder, self._environment)
        self._references.append(reference)
        future: Future[tuple[int, float]] = reference.future()
        return future

    def stop(self) -> None:
        for reference in self._references:
            self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


# Set by the worker that executes a task, not by the machine that started the study.
_OF_THE_WORKER = ("CUDA_VISIBLE_DEVICES", "PATH", "LD_LIBRARY_PATH", "HOSTNAME", "TMPDIR")


def _run_on_worker(
    command: list[str], folder: str, environment: dict[str, str]
) -> tuple[int, float]:
    own = {name: os.environ[name] for name in _OF_THE_WORKER if name in os.environ}
    return run_command(command, folder, {**environment, **own})


def run_all(
    todo: Sequence[Run],
    plan: Sequence[Run],
    finished: set[int],
    runner: LocalRunner | RayRunner,
) -> dict[int, str]:
    """Executes runs, each after those that it needs; one that fails is tried a second time.

    Args:
      todo: runs to execute.
      plan: all runs of the study.
      finished: numbers of those that are finished; grows.
      runner: where they are executed.

    Returns:
      `{number of a run: why it failed}`.

    Raises:
      Stopped: SIGTERM or SIGINT came.
    """
    waiting = list(todo)
    attempts = dict.fromkeys((run.index for run in todo), 0)
    failed: dict[int, str] = {}
    running: dict[Future[tuple[int, float]], Run] = {}
    with StopOnSignal(runner.stop) as stop:
        while waiting or running:
            # Another process may execute the same study: what it has begun comes last here.
            for run in sorted(waiting, key=lambda run: is_running(run.folder)):
                broken = [need for need in run.needs if need in failed]
                if broken:
                    failed[run.index] = f"needs run {broken[0]}, which failed"
                    waiting.remove(run)
                elif stop.requested:
                    break
                elif run.is_finished():
                    waiting.remove(run)
                    finished.add(run.index)
                    _log.info("finished by another process: %d, %s", run.index, run.title)
                elif len(running) < runner.slots and finished.issuperset(run.needs):
                    waiting.remove(run)
                    attempts[run.index] += 1
                    _log.info("starts: %d, %s", run.index, run.title)
                    running[runner.submit(run)] = run
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                problem = _outcome(run, future)
                if stop.requested:
                    continue
                if problem is None:
                    finished.add(run.index)
                    left = [r for r in todo if r.index not in finished and r.index not in failed]
                    _log.info(
                        "[%d/%d] finished: %d, %s%s",
                        len(todo) - len(left),
                        len(todo),
                        run.index,
                        run.title,
                        _time_left(left, plan, runner.slots),
                    )
                elif attempts[run.index] < _ATTEMPTS:
                    _log.warning("%s failed (%s): tried again", run.title, problem)
                    waiting.insert(0, run)
                else:
                    _log.error("%s failed: %s", run.title, problem)
                    failed[run.index] = problem
            if stop.requested and not running:
                raise Stopped("stopped; the runs saved their state: the same command resumes")
    return failed


def _outcome(run: Run, future: Future[tuple[int, float]]) -> str | None:
    """Why a run failed; None if it finished. Updates the record of its time."""
    try:
        status, seconds = future.result()
    except Exception as error:  # Of Ray: a worker died.
        return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    finished = status == 0 and run.is_finished()
    record = run.read_record()
    run.write_record(
        {"seconds": round(record.get("seconds", 0.0) + seconds, 3), "finished": finished}
    )
    if finished:
        return None
    if status < 0:
        return f"killed by {signal.Signals(-status).name}, most often because memory ran out"
    return last_error(run.folder) if status else "it ended without being finished"


def _time_left(left: Sequence[Run], plan: Sequence[Run], slots: int) -> str:
    seconds = seconds_left(left, plan, max(1, min(slots, len(left))))
    if not left or seconds is None:
        return ""
    return f"; about {max(1, round(seconds / 60))} min left"
