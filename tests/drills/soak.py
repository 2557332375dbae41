"""A long run of tiny steps: memory, threads, open files and step time stay flat.

    python tests/drills/soak.py --steps 20000

A network of a few parameters trains with the loop, checkpoints and logs of both stages, with an
evaluation and a checkpoint every 500 steps (in short runs, four times in an eighth of the run). It
is stopped once, half-way, and started again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import harness

SEGMENTS = 8
# What a part may grow by. Pools of native threads (XLA, TensorStore) start their threads when work
# first comes, which may be late: a leak of one thread an evaluation or a checkpoint is more.
LIMITS = {
    "resident_mb": 20, "python_threads": 0, "native_threads": 4, "open_files": 0, "cpu_ms_a_step": 1
}  # fmt: skip
_SIDE, _BATCH = 8, 8


def part(folder: str, steps: int, stop_at: int) -> list[dict[str, float]]:
    """Trains up to `stop_at` of `steps`; returns what was measured in each segment."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from data_pipeline.decode import Preprocessing
    from data_pipeline.loader import ImageSource, evaluation_batches, training_batches
    from data_pipeline.sources import open_sources
    from infantxray.training import loop
    from infantxray.training.train_step import Task

    records = open_sources("phantom:infant:films=40")
    source = ImageSource(records, (), Preprocessing(32), memory_mb=64)
    model = nn.Dense(4)

    def features(batch: Any) -> Any:
        image = batch["image"].astype(jnp.float32) / 255
        return image.reshape(len(image), _SIDE, 32 // _SIDE, _SIDE, 32 // _SIDE).mean((2, 4))

    def losses(params: Any, batch_stats: Any, batch: Any, key: Any) -> Any:
        x = features(batch).reshape(_BATCH, -1)
        return {"loss": (model.apply({"params": params}, x) ** 2).mean(1)}, batch_stats

    def evaluate(variables: Any) -> dict[str, float]:
        batches = evaluation_batches(source, _BATCH, num_threads=2)
        return {"loss": float(np.mean([float(batch["image"].mean()) for batch in batches]))}

    task = Task(
        init=lambda key: {**model.init(key, jnp.zeros((1, _SIDE * _SIDE))), "batch_stats": {}},
        weights=lambda batch: {"loss": batch["mask"]},
        losses=losses,
        coefficients={"loss": 1.0},
        evaluate=evaluate,
    )
    measured: list[dict[str, float]] = []
    every = steps // SEGMENTS
    clock = [time.perf_counter(), time.process_time()]

    open_files: list[int] = []

    def observe(moment: Any) -> dict[str, float]:
        # The fewest of a segment: threads open a file for a moment, a leak lifts all of them.
        open_files.append(len(os.listdir("/proc/self/fd")))
        if moment.step and moment.step % every == 0:
            now = [time.perf_counter(), time.process_time()]
            status = Path("/proc/self/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            measured.append({
                "step": moment.step,
                "resident_mb": int(resident.split()[1]) / 1024,
                "native_threads": len(os.listdir("/proc/self/task")) - threading.active_count(),
                "python_threads": threading.active_count(),
                "open_files": min(open_files),
                "cpu_ms_a_step": 1000 * (now[1] - clock[1]) / every,
                "ms_a_step": 1000 * (now[0] - clock[0]) / every,
            })  # fmt: skip
            clock[:] = now
            open_files.clear()
        if moment.step == stop_at < steps:
            os.kill(os.getpid(), 15)
        return {}

    interval = min(500, every // 4)
    settings = loop.LoopSettings(
        total_steps=steps, batch_size=_BATCH, log_every_steps=50, eval_every_steps=interval,
        checkpoint_every_steps=interval,
    )  # fmt: skip
    batches = training_batches(source, _BATCH, seed=0, num_threads=2)
    os.makedirs(folder, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", 1)
    with contextlib.suppress(loop.Interrupted):
        loop.fit(task, batches, settings, folder, hooks=[observe])
    return measured


def soak(steps: int) -> list[dict[str, float]]:
    """Rows of what was measured, of both parts."""
    with tempfile.TemporaryDirectory() as folder:
        rows = harness.call(part, folder, steps, steps // 2)
        return rows + harness.call(part, folder, steps, steps)


def growth(rows: list[dict[str, float]]) -> dict[str, float]:
    """Change of each measure in each part, from its second segment to its last."""
    parts = (rows[: SEGMENTS // 2], rows[SEGMENTS // 2 :])  # The second starts afresh.
    return {
        f"{name} {i + 1}": part[-1][name] - part[1][name]
        for i, part in enumerate(parts)
        for name in LIMITS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--output", default="", help="JSON file for the results")
    options = parser.parse_args()
    harness.load()
    rows = soak(options.steps)
    for row in rows:
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))
    changes = growth(rows)
    print(changes)
    if options.output:
        harness.write_results(options.output, {"rows": rows, "growth": changes})
    flat = all(value <= LIMITS[name.rpartition(" ")[0]] for name, value in changes.items())
    sys.exit(not flat)


if __name__ == "__main__":
    main()
