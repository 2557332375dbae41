"""Time of comparing a checkpoint with its digests, beside the time of restoring it.

    python -m benchmarks.checkpoint_digests

ResNet-50 with the state of AdamW, random values, files in the page cache. On a machine with other
work, CPU time is more reliable than wall-clock time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infantxray.models import create_encoder
from infantxray.training import checkpoints, partial_restore
from infantxray.training.state import TrainState

REPEATS = 7


def measure(work) -> tuple[float, float]:
    """Seconds of wall-clock and of CPU time."""
    before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - before[0], time.process_time() - before[1]


def main() -> None:
    encoder = create_encoder("resnet50")
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 1)), train=False)
    )
    rng = np.random.default_rng(0)

    def random(tree):
        return jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape).astype(x.dtype)), tree
        )

    variables = {name: {"encoder": random(shapes[name])} for name in ("params", "batch_stats")}
    state = TrainState.create(variables, optax.adamw(1e-3), ema=False)
    moments = jax.tree.map(lambda x: random(x) if x.ndim else x, state.opt_state)
    state = state.replace(opt_state=moments)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
    check = checkpoints.check
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoints.Checkpoints(folder)
        manager.save(1, state, {"best_step": 0})
        rows = {"check": [], "restore": [], "restore the encoder": []}
        for _ in range(REPEATS):
            rows["check"].append(measure(lambda: check(folder, 1)))
            checkpoints.check = lambda *a, **k: None
            rows["restore"].append(
                measure(lambda: jax.block_until_ready(manager.restore(abstract)[0]))
            )
            rows["restore the encoder"].append(
                measure(
                    lambda: partial_restore.restore_variables(folder, 1, variables, only="encoder")
                )
            )
            checkpoints.check = check
        manager.close()
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    best = {name: np.min(values, axis=0) for name, values in rows.items()}
    print(f"{size / 1e6:.0f} MB on disk, best of {REPEATS}")
    for name, (wall, cpu) in best.items():
        share = "" if name == "check" else f"; the check is {100 * best['check'][1] / cpu:.1f} % " \
            f"of it by CPU time, {100 * best['check'][0] / wall:.1f} % by the clock"  # fmt: skip
        print(f"{name:20s} {1000 * wall:6.0f} ms, {1000 * cpu:6.0f} ms of CPU time{share}")


if __name__ == "__main__":
    main()
