"""Several processes and several devices compute what one process with one device computes.

    INFANTXRAY_SLOW_TESTS=1 python -m pytest tests/distributed            # all, in minutes
    python tests/distributed/test_several_processes.py agree pretrain devices  # with figures

Each test is a function that starts the processes of runs as forks of a process which has loaded
every module and never starts JAX; see `tests/drills/harness.py`. So it is itself a process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "drills")]

import harness  # noqa: E402

# Sums over devices are rounded in another order, and a high learning rate magnifies that.
SGD = (
    "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.0001",
    "--config.checkpoint_every_steps=5", "--config.eval_every_steps=10",
)  # fmt: skip
STAGES = {
    "pretrain": (*harness.PRETRAIN[1:], *SGD, "--config.images_every_steps=20",
                 "--config.probe_every_steps=0"),
    "finetune": (*harness.FINETUNE[1:], *SGD),
}  # fmt: skip
TOLERANCE = 1e-5


@contextlib.contextmanager
def started(folder, task, *flags, processes=1, devices=1):
    """The processes of a run, each with so many devices; what still runs at the end is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = (f"--coordinator_address=localhost:{port}", f"--num_processes={processes}")
    commands = [
        harness.Command(
            task, *flags, *((*together, f"--process_id={i}") if processes > 1 else ()),
            workdir=folder, devices=devices,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        yield commands
    finally:
        for command in commands:
            if command.poll() is None:
                command.send(signal.SIGKILL)
                command.poll(block=True)


def run(folder, task, *flags, **how):
    with started(folder, task, *flags, **how) as commands:
        codes = [command.wait(500) for command in commands]
    assert not any(codes), "\n".join(command.output() for command in commands)[-3000:]


def wait_for(folder, step, commands):
    """Returns once the run has saved a step."""
    deadline = time.monotonic() + 300
    while not list(folder.glob(f"checkpoints/{step}/_CHECKPOINT_METADATA")):
        assert time.monotonic() < deadline, commands[0].output()[-2000:]
        time.sleep(0.05)


def history(folder):
    """The logged scalars by step and name, without speeds."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if "per_second" not in name and name not in ("train/gradient_norm", "checksum")
    }


def differences(folder, other, step):
    """The largest differences of losses, metrics, and parameters of the checkpoint at a step.

    Raises:
      AssertionError: one is larger than 1e-5 and 1e-5 of the value.
    """
    losses, metrics, parameters = [], [], []
    first, second = history(folder), history(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if not key[1].endswith(("roc_auc", "accuracy")):  # These change by whole ranks.
            is_loss = key[1].endswith(("loss", "l1", "cross_entropy", "age_mse"))
            (losses if is_loss else metrics).append(abs(value - second[key]))
            assert abs(value - second[key]) <= TOLERANCE * (1 + abs(value)), (key, second[key])
    arrays, others = (harness.call(harness.arrays, place, step) for place in (folder, other))
    for name, array in arrays.items():
        if name.startswith("['params']"):
            change = abs(array - others[name])
            parameters.append(float(change.max()))
            assert (change <= TOLERANCE * (1 + abs(array))).all(), (name, parameters[-1])
    assert len(losses) > step
    assert len(parameters) > 20
    found = {"losses": losses, "metrics": metrics, "parameters": parameters}
    return ", ".join(f"{name} {max(values):.1e}" for name, values in found.items() if values)


def resume(place):
    """Two processes, of which one is told to stop, are resumed as one: the same images."""
    flags = (*STAGES["pretrain"], "--config.train_steps=20", "--config.eval_every_steps=5")
    run(place / "one", "pretrain", *flags, devices=2)
    with started(place / "two", "pretrain", *flags, processes=2) as commands:
        wait_for(place / "two", 5, commands)
        commands[1].send(signal.SIGTERM)  # One is told; both stop.
        codes = [command.wait(60) for command in commands]
    if any(codes):  # The last steps may be quicker than the signal.
        assert codes == [2, 2], "\n".join(command.output() for command in commands)[-3000:]
        stopped = [f"stopped at step {step} of 20" for step in range(5, 20)]
        (line,) = {line for line in stopped for c in commands if line in c.output()}
        assert all(line in command.output() for command in commands)
    run(place / "two", "pretrain", *flags, devices=2)
    print("resumed as one process:", differences(place / "one", place / "two", 20))
    split = [(place / name / "split.csv").read_bytes() for name in ("one", "two")]
    assert split[0] == split[1]


def agree(place, stage, what):
    """1, 2, 4, 8 devices, or 1, 2, 4 processes, over 20 steps; 4 processes go on as 2."""
    flags = (*STAGES[stage], "--config.train_steps=20")
    run(place / "1", stage, *flags)
    several = {"devices": ((1, 2), (1, 4), (1, 8)), "processes": ((2, 1), (4, 1))}.get(what, ())
    for processes, devices in several:
        folder = place / f"{processes}x{devices}"
        run(folder, stage, *flags, processes=processes, devices=devices)
        found = differences(place / "1", folder, 20)
        print(f"{stage}, {processes} processes, {devices} devices each: {found}", flush=True)
    if what == "restart":
        with started(place / "less", stage, *flags, processes=4) as commands:
            wait_for(place / "less", 10, commands)
            commands[2].send(signal.SIGTERM)
            codes = [command.wait(60) for command in commands]
        assert codes == [2] * 4, "stopped too late: run it again"
        run(place / "less", stage, *flags, processes=2)
        found = differences(place / "1", place / "less", 20)
        print(f"{stage}, stopped with 4 processes, resumed with 2: {found}", flush=True)


def evaluate(place):
    """One checkpoint has the same metrics to the byte, whatever the processes and devices."""
    run(place / "model", "finetune", *STAGES["finetune"], "--config.train_steps=4")
    flags = (f"--config.checkpoint={place / 'model'}", "--config.batch_size=8",
             "--config.bootstrap_samples=20")  # fmt: skip
    for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1)):
        folder = place / f"{processes}x{devices}"
        run(folder, "evaluate", *flags, processes=processes, devices=devices)
        for name in ("metrics.json", "predictions.csv"):
            same = (folder / name).read_bytes() == (place / "1x1" / name).read_bytes()
            assert same, (name, processes, devices)


def kill(place):
    """When a process is killed, the others end within 30 seconds with one line."""
    flags = (*STAGES["finetune"], "--config.train_steps=100000")
    for victim in (0, 1):
        folder = place / f"kill{victim}"
        with started(folder, "finetune", *flags, processes=2) as commands:
            wait_for(folder, 5, commands)
            commands[victim].send(signal.SIGKILL)
            since = time.monotonic()
            assert commands[1 - victim].wait(30) != 0
        print(f"process {victim} killed: the other ended {time.monotonic() - since:.0f} s later")
        log = commands[1 - victim].output()
        assert log.count("another process of this run has ended") == 1, log
        assert "Traceback" not in log
        assert "Fatal Python error" not in log


def drill(*arguments):
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")},
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr


def test_two_processes_are_one_run():
    drill("resume")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["devices", "processes", "restart"])
@pytest.mark.parametrize("stage", STAGES)
def test_processes_and_devices_agree_over_20_steps(stage, what):
    drill("agree", stage, what)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "kill"])
def test_several_processes(name):
    drill(name)


if __name__ == "__main__":
    harness.load()
    with tempfile.TemporaryDirectory() as folder:
        {"resume": resume, "agree": agree, "evaluate": evaluate, "kill": kill}[sys.argv[1]](
            Path(folder), *sys.argv[2:]
        )
