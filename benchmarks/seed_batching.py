"""Training the seeds of one run together (`vmap`), compared with one after another.

    python benchmarks/seed_batching.py --output benchmarks/results/seed_batching.md

One update of stage two (forward, backward, AdamW) of several seeds with their own parameters and
their own images, in one program and in turn. The two take turns, and a ratio above 1 means that
`vmap` is faster. Takes three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from infantxray.models import create_encoder  # noqa: E402
from infantxray.models.diagnosis import DiagnosisModel  # noqa: E402
from infantxray.runs.cpu_memory import keep_freed_memory  # noqa: E402

_BATCH_SIZE = 16
_CLASSES = 11
_AGE_WEIGHT = 0.8
_TURNS = 7
_STEPS = 3


def make_step(name: str, size: int):
    """Initialisation by key, and one update of one seed: state, batch -> state, loss."""
    model = DiagnosisModel(create_encoder(name), num_classes=_CLASSES)
    optimizer = optax.adamw(1e-3)

    def init(key):
        variables = model.init(key, jnp.zeros((1, size, size, 1)), train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return params, batch_stats, optimizer.init(params)

    def loss(params, batch_stats, batch):
        image, label, age = batch
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], label)
        value = (entropy + _AGE_WEIGHT * (outputs["age"] - age) ** 2).mean()
        return value, updated.get("batch_stats", {})

    def step(state, batch):
        params, batch_stats, moments = state
        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(
            params, batch_stats, batch
        )
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), batch_stats, moments), value

    return init, step


def make_batch(key, size: int):
    keys = jax.random.split(key, 3)
    return (
        jax.random.normal(keys[0], (_BATCH_SIZE, size, size, 1)),
        jax.random.randint(keys[1], (_BATCH_SIZE,), 0, _CLASSES),
        jax.random.normal(keys[2], (_BATCH_SIZE,)),
    )


def compiled(function, *arguments):
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=0).lower(*arguments).compile()
    return program, time.perf_counter() - start


def measure(name: str, size: int, seeds: int) -> dict[str, float]:
    """Seconds for one update of all seeds, each way, and to compile."""
    init, step = make_step(name, size)
    keys = jax.random.split(jax.random.key(0), seeds)
    batches = jax.vmap(lambda key: make_batch(key, size))(keys)
    together = jax.jit(jax.vmap(init))(keys)
    apart = [jax.tree.map(lambda x, i=i: x[i] + 0, together) for i in range(seeds)]
    parts = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(seeds)]
    single, compile_single = compiled(step, apart[0], parts[0])
    batched, compile_batched = compiled(jax.vmap(step), together, batches)

    def run_apart():
        for i in range(seeds):
            apart[i], value = single(apart[i], parts[i])
        value.block_until_ready()

    def run_together():
        nonlocal together
        together, value = batched(together, batches)
        value.block_until_ready()

    times = {run_apart: [], run_together: []}
    for run in times:
        run()
    for _ in range(_TURNS):
        for run, found in times.items():
            start = time.perf_counter()
            for _ in range(_STEPS):
                run()
            found.append((time.perf_counter() - start) / _STEPS)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        "apart": statistics.median(times[run_apart]),
        "together": statistics.median(times[run_together]),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "compile_single": compile_single,
        "compile_batched": compile_batched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", default="shufflenet,mobilenet_v2")
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", help="Markdown file to write.")
    arguments = parser.parse_args()
    keep_freed_memory()  # As training does.
    device = jax.devices()[0]
    where = device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} CPU cores"
    lines = [
        "# Seeds as a batch axis",
        "",
        f"{datetime.date.today()}, {where}, Python {platform.python_version()}, jax "
        f"{jax.__version__}, batches of {_BATCH_SIZE}, {arguments.seeds} seeds, `python "
        "benchmarks/seed_batching.py --output benchmarks/results/seed_batching.md`",
        "",
        "Milliseconds for one update of all seeds; the ratio is the median over turns, with the "
        "lowest and the highest; above 1, `vmap` is faster.",
        "",
        "| encoder | px | in turn | `vmap` | ratio | compile one, s | compile `vmap`, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in arguments.encoders.split(","):
        for size in map(int, arguments.sizes.split(",")):
            r = measure(name, size, arguments.seeds)
            lines.append(
                f"| {name} | {size} | {1e3 * r['apart']:.0f} | {1e3 * r['together']:.0f} | "
                f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) | "
                f"{r['compile_single']:.0f} | {r['compile_batched']:.0f} |"
            )
            print(lines[-1], flush=True)
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
