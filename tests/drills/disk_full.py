"""A disk that fills up at a random moment of every command: one line, and it continues afterwards.

    sudo python tests/drills/disk_full.py --count 20
    sudo python tests/drills/disk_full.py --count 20 study

The second takes half an hour: a study starts processes of its own.

Each command works on a small disk of its own (tmpfs: mounting it needs root), which is filled to
the last bytes at a random moment. Checked are the exit code, the one line, that no temporary file
stays behind, that the latest checkpoint is whole, and that the same command ends with the same
results once there is space again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness


@contextlib.contextmanager
def small_disk(path: Path, mebibytes: int = 64) -> Iterator[Path]:
    """Mounts a tmpfs."""
    path.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, slack: int) -> Path:
    """Fills a disk, but for some bytes."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)
    with open(filler, "ab") as file:
        file.truncate(max(0, filler.stat().st_size - slack))
    return filler


def same_results(task: str, folder: Path) -> dict[str, Any]:
    if task == "prepare":
        from data_pipeline.cache import find_cache
        from data_pipeline.decode import Preprocessing

        cache = find_cache(folder, Preprocessing(32))
        leftovers = [path.name for path in folder.glob("*/.*") if "lock" not in path.name]
        return {"images": len(cache or ()), "leftovers": leftovers}
    values = harness.results(folder)
    if task in ("pretrain", "finetune"):
        values |= harness.fingerprint(folder)
    # JAX serialises with other bytes each time; the export itself compares the answers.
    values.pop("model.stablehlo", None)
    return values


def trial(
    task: str, flags: tuple[str, ...], disk: Path, seconds: float, rng: random.Random
) -> tuple[str, Any]:
    """One command on a disk that fills up; returns the outcome, and what is wrong."""
    folder = disk / "run"
    command = harness.Command(task, *flags, workdir=folder)
    moment = rng.uniform(0, seconds)
    while command.poll() is None and command.cpu_seconds() < moment:
        time.sleep(0.002)
    filler = fill(disk, rng.choice([0, 0, 1000, 20_000, 200_000]))
    code = command.wait()
    output = command.output()
    problems = []
    if code:
        problems += [harness.one_line(output)] if harness.one_line(output) else []
        problems += ["the line does not name the disk"] if "disk is full" not in output else []
        problems += [f"exit code {code}"] if code != 2 else []
        problems += harness.leftovers(disk)
        problems += harness.call(damaged_checkpoints, folder)
    filler.unlink()
    again = harness.run(task, *flags, workdir=folder)
    if again.poll():
        problems.append(f"does not continue: {again.output()[-1000:]}")
    return ("stopped" if code else "ended"), (problems, output if problems else "")


def study(count: int, seed: int, disk: Path) -> tuple[collections.Counter[str], list[list[str]]]:
    """The same for a study of one fine-tuning run; returns the outcomes, and what was wrong."""
    sys.path.append(str(harness.ROOT / "tests" / "studies"))
    import test_killed_study as studies

    variants, folder = ["without_pretraining"], disk / "run"
    for _ in range(2):  # The first study also compiles.
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        studies.finish(folder, variants)
        seconds = time.monotonic() - started
    expected = studies.tables(folder)
    rng = random.Random(f"{seed} study")
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for i in range(count):
        shutil.rmtree(folder)
        process = studies.start(folder, variants)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, seconds))
        filler = fill(disk, rng.choice([0, 0, 1000, 20_000, 200_000]))
        output, _ = process.communicate()
        code = process.returncode
        counts["stopped" if code else "ended"] += 1
        problems = []
        if code:
            problems += ["a traceback"] if "Traceback" in output else []
            problems += ["no line names the disk"] if "disk is full" not in output else []
            # 1 where a run met the full disk, and the study ended with its list of failed runs.
            problems += [f"exit code {code}"] if code not in (1, 2) else []
            problems += harness.leftovers(disk)
            for checkpoints in folder.rglob("checkpoints"):
                problems += harness.call(damaged_checkpoints, checkpoints.parent)
        filler.unlink()
        studies.finish(folder, variants)
        if studies.tables(folder) != expected:
            problems.append("other tables")
        if problems:
            wrong.append(problems)
            print("study", i, problems, output[-3000:], flush=True)
    shutil.rmtree(folder)
    return counts, wrong


def damaged_checkpoints(folder: Path) -> list[str]:
    from infantxray.training import checkpoints

    steps = checkpoints.checkpoint_steps(str(folder))
    return [damage for step in steps if (damage := checkpoints.find_damage(str(folder), step))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=2, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="JSON file for the results")
    parser.add_argument("tasks", nargs="*")
    options = parser.parse_args()
    harness.load()
    table: dict[str, Any] = {}
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        commands = {} if options.tasks == ["study"] else harness.commands(place)
        with small_disk(place / "disk", 256 if "study" in options.tasks else 64) as disk:
            for task in options.tasks or commands:
                if task == "study":
                    counts, wrong = study(options.count, options.seed, disk)
                    table[task] = {**counts, "wrong": wrong}
                    print(task, dict(counts), f"{len(wrong)} wrong", flush=True)
                    bad += len(wrong)
                    continue
                flags = commands[task][1:]
                rng = random.Random(f"{options.seed} {task}")
                for _ in range(2):  # The first run also compiles.
                    shutil.rmtree(disk / "run", ignore_errors=True)
                    seconds = harness.finish(task, *flags, workdir=disk / "run").cpu_seconds()
                expected = harness.call(same_results, task, disk / "run")
                counts: collections.Counter[str] = collections.Counter()
                wrong = []
                for i in range(options.count):
                    shutil.rmtree(disk / "run")
                    outcome, (problems, output) = trial(task, flags, disk, seconds, rng)
                    if not problems:
                        found = harness.call(same_results, task, disk / "run")
                        problems = harness.differences(expected, found)
                    counts[outcome] += 1
                    if problems:
                        wrong.append(problems)
                        print(task, i, problems, output[-3000:], flush=True)
                table[task] = {**counts, "wrong": wrong}
                print(task, dict(counts), f"{len(wrong)} wrong", flush=True)
                bad += len(wrong)
                shutil.rmtree(disk / "run")
    if options.output:
        harness.write_results(options.output, table)
    sys.exit(bool(bad))


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("mounting a small disk needs root")
    main()
