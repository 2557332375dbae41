"""Seconds from the start of `main.py` to the end of its first update, in one or more checkouts.

    python benchmarks/first_update.py --checkouts ../before,. \
        --output benchmarks/results/first_update.md

runs stage two as a user does, with log_every_steps=1, in turn in each checkout, and stops it when
`history.jsonl` has the first loss. Each checkout has a cache of compiled programs of its own: the
first turn starts with an empty one (cold), the others find it (warm). Takes four minutes for two
checkouts on two CPU cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def first_update(checkout: Path, settings: list[str], cache: Path) -> float:
    """Seconds until the first loss is logged."""
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile("w+") as output:
        history = Path(workdir, "history.jsonl")
        command = [sys.executable, "main.py", "--config=configs/finetune.py", *settings]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}", "--config.log_every_steps=1"],
            cwd=checkout, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if history.exists() and '"train/loss"' in history.read_text(encoding="utf-8"):
                    return time.perf_counter() - start
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        raise SystemExit(f"{checkout}: no first update\n{output.read()[-500:]}")


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(checkouts: list[Path], cases: list[list[str]], turns: int) -> list[str]:
    """The lines of the table."""
    lines = ["| settings | commit | cold, s | warm, s | warm / first commit |", "|---" * 5 + "|"]
    for settings in cases:
        seconds: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        with tempfile.TemporaryDirectory() as caches:
            for turn in range(turns):
                for number, checkout in enumerate(checkouts):
                    cache = Path(caches, str(number))
                    seconds[checkout].append(first_update(checkout, settings, cache))
                    print(f"turn {turn}, {checkout}: {seconds[checkout][-1]:.1f} s", flush=True)
        named = " ".join(setting.removeprefix("--config.") for setting in settings)
        reference = statistics.median(seconds[checkouts[0]][1:])
        for checkout, (cold, *warm) in seconds.items():
            median = statistics.median(warm)
            spread = f"{median:.1f} [{min(warm):.1f}, {max(warm):.1f}]"
            row = [named, commit(checkout), f"{cold:.1f}", spread, f"{median / reference:.2f}"]
            lines.append("| " + " | ".join(row) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", default=str(ROOT), help="separated by commas")
    parser.add_argument("--encoders", default="shufflenet,resnet50")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkouts = [Path(place).resolve() for place in arguments.checkouts.split(",")]
    cases = [
        [
            f"--config.encoder={encoder}",
            f"--config.data.image_size={arguments.image_size}",
            f"--config.batch_size={arguments.batch_size}",
        ]
        for encoder in arguments.encoders.split(",")
    ]
    machine = f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()})"
    page = [
        "# From the command to the first update",
        "",
        f"Measured {datetime.date.today()} on {machine}: seconds from the start of",
        "`python main.py --config=configs/finetune.py` to the end of its first update. The",
        "checkouts take turns. Cold: no compiled program at hand, one turn. Warm: median [least,",
        f"most] of {arguments.turns - 1} turns.",
        "",
        "```",
        "python benchmarks/first_update.py --checkouts ../before,. "
        f"--encoders {arguments.encoders} --turns {arguments.turns}",
        "```",
        "",
        *measure(checkouts, cases, arguments.turns),
    ]
    text = "\n".join(page) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
