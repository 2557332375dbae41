"""SIGINT, SIGTERM and SIGHUP at random moments of every command: one line, no process, no file.

    python tests/drills/signals.py --count 6

The exit code is 130, 143 or 129 where the command stops at once, and 2 where it saves its state
first. The same command ends with the same results afterwards.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import disk_full
import harness

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def trial(task, flags, folder: Path, signum: int, moment: float) -> tuple[str, list[str], str]:
    command = harness.Command(task, *flags, workdir=folder)
    while command.poll() is None and command.cpu_seconds() < moment:
        time.sleep(0.002)
    command.send(signum)
    sent = time.monotonic()
    code = command.wait(60)
    output, problems = command.output(), []
    if code == 0:
        return "ended", [], ""
    if code not in (2, 128 + signum, -signum):
        problems.append(f"exit code {code}")
    if code != -signum and harness.one_line(output):  # Before the command line is read.
        problems.append(harness.one_line(output))
    if time.monotonic() - sent > 30:
        problems.append(f"took {time.monotonic() - sent:.0f} s to stop")
    problems += harness.leftovers(folder)
    time.sleep(0.5)
    problems += harness.processes_in(folder)
    return f"exit code {code}", problems, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=3, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="JSON file for the results")
    parser.add_argument("tasks", nargs="*")
    options = parser.parse_args()
    harness.load()
    table, bad = {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        commands = harness.commands(place)
        for task in options.tasks or commands:
            flags, folder = commands[task][1:], place / "run"
            rng = random.Random(f"{options.seed} {task}")
            for _ in range(2):  # The first run also compiles.
                shutil.rmtree(folder, ignore_errors=True)
                seconds = harness.finish(task, *flags, workdir=folder).cpu_seconds()
            expected = harness.call(disk_full.same_results, task, folder)
            for name in ("history", "events"):  # A stop logs its own row of the steps so far.
                expected.pop(name, None)
            counts: collections.Counter[str] = collections.Counter()
            wrong = []
            for i in range(options.count):
                shutil.rmtree(folder)
                signum = SIGNALS[i % len(SIGNALS)]
                moment = rng.uniform(0, seconds)
                outcome, problems, output = trial(task, flags, folder, signum, moment)
                again = harness.run(task, *flags, workdir=folder)
                if again.poll():
                    problems.append(f"does not continue: {again.output()[-1000:]}")
                else:
                    found = harness.call(disk_full.same_results, task, folder)
                    found = {key: value for key, value in found.items() if key in expected}
                    keys = harness.differences(expected, found)
                    stopped = task in ("pretrain", "finetune")
                    problems += [
                        key for key in keys
                        if not stopped or not key.startswith(("figures/", "report", "SHA256"))
                    ]  # fmt: skip
                counts[outcome] += 1
                if problems:
                    wrong.append([signal.Signals(signum).name, f"{moment:.2f} s", *problems])
                    print(task, i, wrong[-1], output[-3000:], flush=True)
            table[task] = {**counts, "wrong": wrong}
            print(task, dict(counts), f"{len(wrong)} wrong", flush=True)
            bad += len(wrong)
    if options.output:
        harness.write_results(options.output, table)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
