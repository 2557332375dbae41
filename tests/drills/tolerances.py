"""What is equal bit for bit, and what within which tolerance: devices, resuming, parts of a batch.

    python tests/drills/tolerances.py

Each row trains 12 steps of one stage and compares the parameters and the last validation loss with
those of the first run of its dtype, on one device: the norm of the difference of all parameters, as
a share of their norm, and the relative difference of the loss. SGD, since Adam divides by the size
of the gradient: where that is zero but for rounding, such as for a bias before BatchNorm, Adam's
steps are rounding alone.
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
Result = tuple[dict[str, Any], float]
_SGD = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.01")


def difference(one: Result, other: Result) -> tuple[float, float]:
    """Of all parameters, as a share of their norm, and of the last validation loss, as a share."""
    import numpy as np

    (arrays, loss), (others, other_loss) = one, other
    names = [name for name in arrays if "params" in name]
    pairs = [(arrays[n].astype(np.float64), others[n].astype(np.float64)) for n in names]
    norm = sum(float((a**2).sum()) for a, _ in pairs) ** 0.5
    change = sum(float(((a - b) ** 2).sum()) for a, b in pairs) ** 0.5
    return change / norm, abs(loss - other_loss) / abs(loss)


def result(folder: Path, stage: str) -> Result:
    """Arrays of the last checkpoint, and the last validation loss; use `harness.call`."""
    from infantxray.training.writers import read_history

    name = "validation/l1" if stage == "pretrain" else "validation/loss"
    rows = read_history(str(folder / "history.jsonl"))
    return harness.arrays(folder, STEPS), [row[name] for row in rows if name in row][-1]


def table(
    place: Path,
    *,
    stages=("pretrain", "finetune"),
    dtypes=("float32", "bfloat16"),
    devices=(2, 4, 8),
    parts=(2, 4),
) -> dict[str, tuple[float, float]]:
    """Differences by what was changed.

    Args:
      place: for the runs.
      stages: tasks.
      dtypes: of the computation.
      devices: numbers of devices.
      parts: values of `accumulate_steps`, with an encoder that has no BatchNorm.
    """
    found: dict[str, tuple[float, float]] = {}
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
                return harness.call(result, folder, stage)

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
    for what, (parameters, loss) in found.items():
        equal = "equal bit for bit" if not parameters else f"{parameters:.1e}, loss {loss:.1e}"
        print(f"{what:50s} {equal}")
    if options.output:
        harness.write_results(options.output, found)


if __name__ == "__main__":
    main()
