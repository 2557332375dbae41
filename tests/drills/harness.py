"""Commands for drills: real processes of the command line, with a network that compiles in seconds.

Every module is loaded once, and each command is a fork of that process: a run of a few steps takes
about two seconds of CPU time. Training, files, signals and exit codes are those of `main.py`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "small"  # A ResNet of one narrow block a stage.
PLAIN = "plain"  # Without BatchNorm.
TASKS = (
    "pretrain", "finetune", "evaluate", "predict", "check_data", "prepare", "export_phantom",
    "probe", "label_efficiency", "study", "export", "compare",
)  # fmt: skip
DATA = "phantom:infant:films=60"
_STAGE = (
    f"--config.encoder={ENCODER}", "--config.batch_size=8", "--config.data.image_size=32",
    "--config.train_epochs=0", "--config.log_every_steps=1", "--config.eval_every_steps=4",
    "--config.checkpoint_every_steps=2", "--config.train_steps=12", f"--config.data.train={DATA}",
    "--config.data.num_threads=2",
)  # fmt: skip
PRETRAIN = (
    "pretrain", *_STAGE, "--config.images_every_steps=4", "--config.probe_every_steps=4",
    "--config.probe_images=32",
)  # fmt: skip
FINETUNE = ("finetune", *_STAGE, "--config.bootstrap_samples=20")


def load() -> None:
    """Loads every module, and registers the small encoder. JAX must not have started yet."""
    sys.path[:0] = [str(ROOT)]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    find = importlib.util.find_spec
    importlib.util.find_spec = (  # TensorBoard files without TensorFlow, which takes seconds.
        lambda name, *package: None if name == "tensorflow" else find(name, *package)
    )
    for task in TASKS:
        importlib.import_module(f"infantxray.commands.{task}")
    sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
    for name in ("clu.parameter_overview", "matplotlib.pyplot"):
        importlib.import_module(name)
    importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
    importlib.import_module("tensorboard.summary.writer.event_file_writer")
    importlib.import_module("infantxray.__main__")
    from infantxray.models import ENCODERS, torch_names
    from infantxray.models.encoders import resnet, vgg

    strides = zip(range(2, 6), (1, 2, 2, 2), strict=True)
    stages = tuple(resnet.Stage(f"conv{n}", 1, 8, stride) for n, stride in strides)
    ENCODERS[ENCODER] = functools.partial(resnet.ResNet, stages=stages)
    torch_names.RULES[ENCODER] = torch_names.RULES["resnet50"]
    ENCODERS[PLAIN] = functools.partial(vgg.VGG, stages=(vgg.Stage(1, 8),) * 5)


class Command:
    """A command in a process of its own, with stdout and stderr in a file.

    Args:
      task: of `configs/`.
      *settings: flags, such as `--config.seed=1`.
      workdir: of the command.
      devices: so many CPU devices.
    """

    def __init__(
        self, task: str, *settings: str, workdir: str | os.PathLike[str], devices: int = 1
    ):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.monotonic()
        arguments = [
            "main.py", f"--config={ROOT}/configs/{task}.py", f"--workdir={workdir}", *settings,
        ]  # fmt: skip
        self.pid = _fork(lambda: _console(arguments, devices), self._log)
        self._code: int | None = None
        self._cpu_seconds = 0.0

    def poll(self, *, block: bool = False) -> int | None:
        """The exit code, negative for a signal; None while the command works."""
        if self._code is None:
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu_seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def cpu_seconds(self) -> float:
        """CPU time of the process itself: its progress on a machine that is busy with others."""
        self.poll()
        return self._cpu_seconds

    def wait(self, seconds: float = 600) -> int:
        """Waits for the end; a command that takes too long is killed."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(self.output())
            time.sleep(0.005)
        return code

    def send(self, signum: int) -> None:
        if self._code is None:
            os.kill(self.pid, signum)

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def _fork(work: Callable[[], None], output: Any) -> int:
    """Does some work in a child process, whose stdout and stderr go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        weakref.finalize._registry.clear()  # Temporary folders are the parent's to remove.
        os.chdir(ROOT)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        # Worker processes load this module as their main one.
        main = types.ModuleType("__main__")
        main.__file__ = str(ROOT / "main.py")
        sys.modules["__main__"] = main
        work()
    except SystemExit as end:
        _exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        import traceback

        traceback.print_exc()
        _exit(70)
    _exit(0)
    return 0


def _exit(code: int) -> None:
    """Ends as an interpreter does: threads are joined and exit functions called."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _console(arguments: list[str], devices: int) -> None:
    import jax

    from infantxray.__main__ import console

    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = arguments
    console()


def run(task: str, *settings: str, workdir: str | os.PathLike[str], devices: int = 1) -> Command:
    """Executes a command to its end."""
    command = Command(task, *settings, workdir=workdir, devices=devices)
    command.wait()
    return command


def finish(task: str, *settings: str, workdir: str | os.PathLike[str], devices: int = 1) -> Command:
    """Executes a command, which must succeed."""
    command = run(task, *settings, workdir=workdir, devices=devices)
    if command.poll() != 0:
        raise AssertionError(f"{task} ended with {command.poll()}:\n{command.output()[-4000:]}")
    return command


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a child process: this one must never start JAX."""
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as log:

        def work() -> None:
            result.write(pickle.dumps(function(*arguments)))
            result.flush()

        _, status = os.waitpid(_fork(work, log), 0)
        if status:
            log.seek(0)
            raise AssertionError(log.read().decode(errors="replace")[-4000:])
        result.seek(0)
        return pickle.loads(result.read())


def arrays(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """The arrays of a checkpoint by name; call it through `call`."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from infantxray.training import checkpoints

    with checkpoints._open_to_read(str(workdir)) as manager:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            manager.item_metadata(step).state.tree,
        )
        restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
        state = manager.restore(step, args=ocp.args.Composite(state=restore)).state
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def fingerprint(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What must be the same however often a run was killed; call it through `call`."""
    from infantxray.training import checkpoints
    from infantxray.training.writers import read_history

    folder = Path(workdir)
    found: dict[str, Any] = {}
    for step in checkpoints.checkpoint_steps(str(folder)):
        assert not checkpoints.find_damage(str(folder), step)
        for name, array in arrays(folder, step).items():
            found[f"step {step} {name}"] = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        found[f"progress {step}"] = checkpoints._read_progress(str(folder), step)
    rows = read_history(str(folder / "history.jsonl"))
    found["history"] = [
        {k: v for k, v in row.items() if k != "train/images_per_second"} for row in rows
    ]
    found["events"] = sorted(_events(folder))
    for name in ("metrics.json", "predictions.csv", "split.csv", "model.json"):
        if (folder / name).exists():
            found[name] = digest(folder / name)
    return found


def digest(path: Path) -> str:
    """Digest of a file, but for the time of writing that a page and some tables carry."""
    content = path.read_bytes()
    if path.suffix in (".html", ".csv", ".md", ".tex"):
        content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", content)
    return hashlib.sha256(content).hexdigest()[:16]


def _events(folder: Path) -> Iterator[tuple[int, str]]:
    """Step and tag of every TensorBoard event; a step that is logged twice is there twice."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in folder.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if "config" not in value.tag:
                    yield event.step, value.tag


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys of two fingerprints that differ."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def leftovers(*folders: str | os.PathLike[str]) -> list[str]:
    """Temporary files below some folders."""
    found = []
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.name.endswith(".tmp") or "orbax-checkpoint-tmp" in path.name:
                found.append(str(path))
    return found


def processes_in(folder: str | os.PathLike[str]) -> list[str]:
    """Command lines of processes that name a folder, or that are children of none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [text] if str(folder) in text and str(os.getpid()) != path.parent.name else []
    return found


def one_line(output: str) -> str:
    """What is wrong with the messages of a command that failed; empty where nothing is."""
    if "Traceback" in output:
        return "a traceback"
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines or not (lines[-1].startswith(("error: ", "stopped"))):
        return f"the last line is {lines[-1] if lines else ''!r}"
    if sum(line.startswith("error: ") for line in lines) > 1:
        return "several errors"
    return ""


def write_results(path: str, values: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def commands(place: Path) -> dict[str, tuple[str, ...]]:
    """Every command on little data, by name; a study takes minutes and has drills of its own.

    Args:
      place: a folder, which gets a finished run of either stage and some images.
    """
    stage_one, model, images = place / "stage-one", place / "model", place / "images"
    other = place / "other-model"
    if not images.exists():
        call(write_images, images)
    if not model.exists():
        finish(*PRETRAIN, workdir=stage_one)
        finish(*FINETUNE, workdir=model)
        finish(*FINETUNE, "--config.seed=1", workdir=other)
    small = ("--config.batch_size=8", "--config.bootstrap_samples=20")
    frozen = (*small, f"--config.data.train={DATA}", "--config.data.image_size=32")
    scored = (f"--config.checkpoint={model}", "--config.batch_size=8")
    folder = f"--config.data.train=folder:{images}"
    return {
        "pretrain": PRETRAIN,
        "finetune": FINETUNE,
        "evaluate": ("evaluate", *scored, "--config.bootstrap_samples=20"),
        "predict": ("predict", *scored, f"--config.data.test=folder:{images}"),
        "check_data": ("check_data", folder, "--config.num_processes=2"),
        "prepare": (
            "prepare", folder, "--config.data.image_size=32", "--config.num_processes=2",
            "--config.images_per_shard=10",
        ),
        "export_phantom": (
            "export_phantom", "--config.data.train=phantom:infant:films=40",
            "--config.data.image_size=128",
        ),
        "probe": ("probe", *frozen, f"--config.pretrained={stage_one}",
                  f"--config.encoder={ENCODER}"),
        "label_efficiency": (
            "label_efficiency", *frozen, f"--config.encoder={ENCODER}",
            f"--config.encoders=random,{stage_one}", "--config.draws=2",
            "--config.label_fractions=(0.5,1.0)",
        ),
        "export": ("export", scored[0]),
        "compare": ("compare", f"--config.runs={model},{other}"),
    }  # fmt: skip


def write_images(folder: Path) -> None:
    """Images for commands that read files, enough to be interrupted; call it through `call`."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(300):
        Image.fromarray(rng.integers(0, 255, (200, 200), np.uint8)).save(folder / f"{i:03d}.png")


def results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Digests of the files that a command writes for its user, but not of its records of time."""
    root, found = Path(folder), {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        skipped = ("checkpoints/", "events.out", "history", "run.lock", "config.json", "error.log",
                   "SHA256SUMS")  # fmt: skip
        if path.is_file() and not name.startswith(skipped):
            found[name] = digest(path)
    return found
