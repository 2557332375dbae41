"""What is equal bit for bit, and what within which tolerance: devices, resuming, parts of a batch.

    python tests/drills/tolerances.py

Each row trains 12 steps of one stage by SGD and compares all parameters with those of the first
run of its dtype, on one device. The difference of an array is relative to its largest value. (Adam
divides by the size of the gradient: where that is zero but for rounding, such as for a bias before
BatchNorm, its steps are rounding alone.)
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

STEPS = 12
_SGD = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.01")


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of any parameter, relative to the largest value of its array."""
    import numpy as np

    worst = 0.0
    for name, array in one.items():
        if "params" in name:
            a, b = array.astype(np.float64), other[name].astype(np.float64)
            scale = max(float(np.abs(a).max()), 1e-3)  # Biases start at zero.
            worst = max(worst, float(np.abs(a - b).max()) / scale)
    return worst


def table(
    place: Path,
    *,
    stages=("pretrain", "finetune"),
    dtypes=("float32", "bfloat16"),
    devices=(2, 4, 8),
    parts=(2, 4),
) -> dict[str, float]:
    """Differences by what was changed.

    Args:
      place: for the runs.
      stages: tasks.
      dtypes: of the computation.
      devices: numbers of devices.
      parts: values of `accumulate_steps`, with an encoder that has no BatchNorm.
    """
    found: dict[str, float] = {}
    for stage in stages:
        flags = (harness.PRETRAIN if stage == "pretrain" else harness.FINETUNE)[1:]
        for dtype in dtypes:

            def train(name, *extra, stage=stage, flags=flags, dtype=dtype, count=1, stop=False):
                folder = place / f"{stage}-{dtype}-{name}"
                settings = (*flags, f"--config.dtype={dtype}", *_SGD, *extra)
                if stop:
                    command = harness.Command(stage, *settings, workdir=folder)
                    while not (folder / "checkpoints" / "4").exists() and command.poll() is None:
                        time.sleep(0.002)
                    command.send(signal.SIGKILL)
                    command.poll(block=True)
                harness.finish(stage, *settings, workdir=folder, devices=count)
                return harness.call(harness.arrays, folder, STEPS)

            def note(what, one, other, stage=stage, dtype=dtype):
                found[f"{stage}, {dtype}, {what}"] = difference(one, other)

            whole = train("whole")
            note("the same command again", whole, train("again"))
            note("killed and resumed", whole, train("resumed", stop=True))
            for count in devices:
                note(f"{count} devices", whole, train(f"{count}-devices", count=count))
            if parts:
                plain = f"--config.encoder={harness.PLAIN}"
                one = train("plain", plain)
                for count in parts:
                    extra = (plain, f"--config.accumulate_steps={count}")
                    note(f"{count} parts of a batch", one, train(f"{count}-parts", *extra))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", default="", help="JSON file for the results")
    parser.add_argument("stages", nargs="*", default=["pretrain", "finetune"])
    options = parser.parse_args()
    harness.load()
    with tempfile.TemporaryDirectory() as place:
        found = table(Path(place), stages=options.stages)
    for what, value in found.items():
        print(f"{what:50s} {value:.1e}" if value else f"{what:50s} equal bit for bit")
    if options.output:
        harness.write_results(options.output, found)


if __name__ == "__main__":
    main()
