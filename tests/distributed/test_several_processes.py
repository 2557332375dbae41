"""Several processes on one machine compute what one process with as many devices computes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = Path(__file__).with_name("program.py")
SMALL = (
    "--config.encoder=small",
    "--config.batch_size=8",
    "--config.data.image_size=32",
    "--config.data.train=phantom:infant:films=60",
    "--config.data.num_threads=1",
    "--config.optimizer.name=sgd",
    # Sums over processes are rounded in another order, and training magnifies that.
    "--config.optimizer.learning_rate=0.0001",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=5",
)
STAGES = {
    "pretrain": ("--config.images_every_steps=10", "--config.probe_every_steps=0"),
    "finetune": ("--config.bootstrap_samples=20",),
}


def start(folder, config, *arguments, processes=1, devices=1):
    """Starts the processes of a run; what each prints goes to `<folder>.<process>.log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for i in range(processes):
        command = [sys.executable, PROGRAM, str(devices), f"--config=configs/{config}.py"]
        command += [f"--workdir={folder}", *arguments]
        if processes > 1:
            command += [f"--coordinator_address=localhost:{port}", f"--process_id={i}"]
            command += [f"--num_processes={processes}"]
        with open(f"{folder}.{i}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
                    },
                )
            )
    return started


@contextlib.contextmanager
def ended(processes):
    """Kills what still runs at the end of the block."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(folder, config, *arguments, **how):
    with ended(start(folder, config, *arguments, **how)) as processes:
        statuses = [process.wait(timeout=500) for process in processes]
    logs = [Path(f"{folder}.{i}.log").read_text() for i in range(len(statuses))]
    assert not any(statuses), "\n".join(logs)[-3000:]


def history(folder):
    """The logged scalars by step and name, without speeds."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if "per_second" not in name and name not in ("train/gradient_norm", "checksum")
    }


def equal(folder, other):
    first, second = history(folder), history(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, abs=1e-5), key


def test_two_processes_are_one_run(tmp_path):
    # Stopped halfway on two processes, and resumed on one: the same images, the same losses.
    arguments = (*SMALL, *STAGES["pretrain"], "--config.eval_every_steps=5")
    length = "--config.train_steps=10"
    run(tmp_path / "one", "pretrain", *arguments, length, devices=2)
    with ended(start(tmp_path / "two", "pretrain", *arguments, length, processes=2)) as processes:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "two").glob("checkpoints/5/_CHECKPOINT_METADATA")):
            assert time.monotonic() < deadline, Path(f"{tmp_path}/two.0.log").read_text()[-2000:]
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)  # One is told; both stop.
        statuses = [process.wait(timeout=60) for process in processes]
    logs = [Path(f"{tmp_path}/two.{i}.log").read_text() for i in range(2)]
    stopped = [f"stopped at step {step} of 10" for step in range(5, 10)]
    if any(statuses):  # The last steps may be quicker than the signal.
        assert statuses == [2, 2]
        (line,) = {line for line in stopped for log in logs if line in log}
        assert all(line in log for log in logs)
    run(tmp_path / "two", "pretrain", *arguments, length, devices=2)
    equal(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "split.csv").read_bytes() == (
        tmp_path / "two" / "split.csv"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_one_two_and_four_processes_agree_over_20_steps(stage, tmp_path):
    arguments = (*SMALL, *STAGES[stage], "--config.train_steps=20", "--config.eval_every_steps=10")
    run(tmp_path / "1", stage, *arguments, devices=4)
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        run(folder, stage, *arguments, processes=processes, devices=4 // processes)
        equal(tmp_path / "1", folder)
    if stage == "finetune":
        # One checkpoint has the same metrics and predictions, to the last digit.
        checkpoint = (f"--config.checkpoint={tmp_path / '1'}", "--config.batch_size=8")
        for processes in (1, 4):
            folder = tmp_path / f"evaluate{processes}"
            run(folder, "evaluate", *checkpoint, processes=processes, devices=4 // processes)
        for name in ("metrics.json", "predictions.csv"):
            first, second = ((tmp_path / f"evaluate{n}" / name).read_bytes() for n in (1, 4))
            assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line(victim, tmp_path):
    arguments = (*SMALL, *STAGES["finetune"], "--config.train_steps=100000")
    folder = tmp_path / "run"
    with ended(start(folder, "finetune", *arguments, processes=2)) as processes:
        deadline = time.monotonic() + 300
        while not list(folder.glob("checkpoints/5/_CHECKPOINT_METADATA")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes[victim].kill()
        assert processes[1 - victim].wait(timeout=30) != 0
    log = Path(f"{folder}.{1 - victim}.log").read_text()
    assert log.count("another process of this run has ended") == 1
    assert "Traceback" not in log
    assert "Fatal Python error" not in log


def test_a_command_of_one_process_refuses_several(tmp_path):
    (process,) = start(tmp_path / "run", "check_data", "--num_processes=2")
    assert process.wait(timeout=120) == 2
    assert "check_data runs in one process" in Path(f"{tmp_path}/run.0.log").read_text()


def test_flags_of_several_processes_come_together(tmp_path):
    (process,) = start(tmp_path / "run", "pretrain", "--num_processes=2")
    assert process.wait(timeout=120) == 2
    assert "--process_id together" in Path(f"{tmp_path}/run.0.log").read_text()
