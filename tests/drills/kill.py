"""SIGKILL at random moments: a command that is started again ends as if nothing had happened.

    python tests/drills/kill.py --count 50 pretrain finetune
    python tests/drills/kill.py --count 20 evaluate report prepare study

`report` kills an evaluation while it writes its report.

Half of the kills are aimed at a moment when a checkpoint or an output is being written. A run is
killed up to four times before it may end. Compared are the bytes of every array of every
checkpoint, the progress, the history, every TensorBoard event, predictions, metrics and pages. Two
runs that are not killed must also be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import FINETUNE, PRETRAIN, Command

_KILLS_A_RUN = 4
# What appears while a command writes.
_WRITING = ("checkpoints/*tmp*", "*.tmp", "figures/*", "*/.*.array_record", "*/.*.npy", "*/*.tmp")


def interrupt(
    command: Command, folder: Path, rng: random.Random, seconds: float, after: str = ""
) -> str:
    """Kills a command; returns when, or an empty string where it ended before.

    Args:
      command: what has been started.
      folder: its workdir.
      rng: draws the moment.
      seconds: of CPU time that the command takes.
      after: the file, written by this command, after which to kill it.
    """
    begun = time.time_ns()
    while after and command.poll() is None:
        if (folder / after).exists() and (folder / after).stat().st_mtime_ns > begun:
            break
        time.sleep(0.001)
    aimed = not after and rng.random() < 0.5
    moment = rng.uniform(command.cpu_seconds(), seconds)
    sightings = rng.randrange(1, 12)
    seen: set[str] = set()
    while command.poll() is None:
        if not aimed and command.cpu_seconds() >= moment:
            break
        if aimed:
            for pattern in _WRITING:
                seen.update(str(path) for path in folder.glob(pattern))
            if len(seen) >= sightings:
                time.sleep(rng.choice([0, 0, rng.uniform(0, 0.05)]))
                break
        time.sleep(0.001)
    if command.poll() is not None:
        return ""
    used = command.cpu_seconds()
    command.send(signal.SIGKILL)
    command.poll(block=True)
    return f"{'while writing' if aimed else 'at random'}, after {used:.2f} s of CPU time"


def cache(folder: Path) -> dict[str, Any]:
    """Digests of all decoded images by path, and what is left of unfinished shards."""
    from data_pipeline.cache import find_cache
    from data_pipeline.decode import Preprocessing

    images = [str(path) for path in sorted(folder.parent.glob("images/*.png"))]
    found = find_cache(folder, Preprocessing(32))
    assert found is not None
    values: dict[str, Any] = {}
    for path in images:
        image = found.get(path)
        values[path] = None if image is None else hashlib.sha256(image.tobytes()).hexdigest()
    values["leftovers"] = [p.name for p in folder.glob("*/.*") if "lock" not in p.name]
    return values


def drill(
    task: str,
    count: int,
    place: Path,
    flags: tuple[str, ...],
    compare: Callable[[Path], dict[str, Any]],
    rng: random.Random,
    after: str = "",
) -> dict[str, Any]:
    """Kills one command `count` times.

    Returns:
      Number of kills, of runs, the moments, and the runs that ended differently with what differs.
    """
    whole = place / f"{task}-whole{after}"
    harness.finish(task, *flags, workdir=whole)  # Compiles.
    first = harness.call(compare, whole)
    shutil.rmtree(whole)
    seconds = harness.finish(task, *flags, workdir=whole).cpu_seconds()
    expected = harness.call(compare, whole)
    moments: list[str] = []
    different: dict[str, list[str]] = {}
    if repeated := harness.differences(first, expected):
        different["not killed"] = repeated
    runs = 0
    while len(moments) < count:
        runs += 1
        folder = place / f"{task}-{runs}{after}"
        for _ in range(_KILLS_A_RUN):
            command = Command(task, *flags, workdir=folder)
            when = interrupt(command, folder, rng, seconds, after)
            if when:
                moments.append(when)
            elif command.poll():
                different[folder.name] = [command.output()[-2000:]]
            if not when or len(moments) == count:
                break
        last = harness.run(task, *flags, workdir=folder)
        if last.poll():
            different[folder.name] = [last.output()[-2000:]]
            continue
        keys = harness.differences(expected, harness.call(compare, folder))
        keys += harness.leftovers(folder)
        if keys:
            different[folder.name] = keys[:20]
        else:
            shutil.rmtree(folder)
        print(f"{task}: {len(moments)} of {count} kills, {runs} runs, {len(different)} differ",
              flush=True)  # fmt: skip
    return {
        "kills": len(moments),
        "while writing": sum("writing" in moment for moment in moments),
        "runs": runs,
        "compared": len(expected),
        "different": different,
    }


def study(count: int, seed: int) -> dict[str, Any]:
    """The drill of studies, which start processes of their own; it has a file of its own."""
    script = harness.ROOT / "tests" / "studies" / "test_killed_study.py"
    done = subprocess.run(
        [sys.executable, str(script), str(count), str(seed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-2000:]]
    return {"kills": count, "summary": last[0], "different": {} if not done.returncode else last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=3, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="", help="folder for runs that ended differently")
    parser.add_argument("--output", default="", help="JSON file for the results")
    parser.add_argument("tasks", nargs="*", default=["pretrain", "finetune", "evaluate", "prepare"])
    options = parser.parse_args()
    harness.load()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(options.keep or temporary)
        place.mkdir(parents=True, exist_ok=True)
        for task in options.tasks:
            rng = random.Random(f"{options.seed} {task}")
            if task == "study":
                results[task] = study(options.count, options.seed)
                continue
            compare: Callable[[Path], dict[str, Any]] = harness.fingerprint
            if task == "pretrain":
                flags = PRETRAIN[1:]
            elif task == "finetune":
                flags = FINETUNE[1:]
            elif task in ("evaluate", "report"):
                if not (place / "model").exists():
                    harness.finish(*FINETUNE, workdir=place / "model")
                flags = (f"--config.checkpoint={place / 'model'}", "--config.bootstrap_samples=20",
                         "--config.batch_size=8")  # fmt: skip
                compare = harness.results
            else:
                if not (place / "images").exists():
                    harness.call(harness.write_images, place / "images")
                flags = (f"--config.data.train=folder:{place / 'images'}",
                         "--config.data.image_size=32", "--config.num_processes=2",
                         "--config.images_per_shard=10")  # fmt: skip
                compare = cache
            after = "metrics.json" if task == "report" else ""
            command = "evaluate" if task == "report" else task
            results[task] = drill(command, options.count, place, flags, compare, rng, after)
        time.sleep(2)  # Workers notice within a fraction of a second that their parent is gone.
        results["processes left"] = harness.processes_in(place)
    print(results)
    if options.output:
        harness.write_results(options.output, results)
    sys.exit(any(r["different"] for r in results.values() if isinstance(r, dict)))


if __name__ == "__main__":
    main()
