"""Profile of VGG19's training step on the CPU, here and in PyTorch.

It measures each 3x3 convolution alone, forward and with both gradients, in multiplications and
additions a second, because the step consists of these. A plain matrix product of the same size
shows the best rate of each framework. The two take turns, as in `training_step.py`; the results are
medians.

Needs torch beside the requirements. From the repository's root, about two minutes on two cores:

    python benchmarks/vgg_profile.py
"""

from __future__ import annotations

import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BATCH_SIZE, SIDE, TURNS = 16, 128, 7
# Side of the map as a part of the image's, channels before and after, and how often.
LAYERS = (
    (1, 64, 64, 1),
    (2, 64, 128, 1),
    (2, 128, 128, 1),
    (4, 128, 256, 1),
    (4, 256, 256, 3),
    (8, 256, 512, 1),
    (8, 512, 512, 3),
    (16, 512, 512, 4),
)


def jax_functions(side: int, channels: int, features: int) -> dict:
    import jax

    from infantxray.models.convolution import convolve

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH_SIZE, side, side, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, features))
    gradient = jax.random.normal(keys[2], (BATCH_SIZE, side, side, features))

    def forward(x, kernel):
        return convolve(x, kernel, padding=1)

    def both(x, kernel, gradient):
        y, pull_back = jax.vjp(forward, x, kernel)
        return y, pull_back(gradient)

    a = jax.random.normal(keys[0], (BATCH_SIZE * side * side, 9 * channels))
    b = jax.random.normal(keys[1], (9 * channels, features))
    product = jax.jit(lambda a, b: a @ b)
    forward, both = jax.jit(forward), jax.jit(both)
    return {
        "product": lambda: jax.block_until_ready(product(a, b)),
        "forward": lambda: jax.block_until_ready(forward(x, kernel)),
        "both": lambda: jax.block_until_ready(both(x, kernel, gradient)),
    }


def torch_functions(side: int, channels: int, features: int) -> dict:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, features, 3, padding=1, bias=False)
    x = torch.randn(BATCH_SIZE, channels, side, side, requires_grad=True)
    gradient = torch.randn(BATCH_SIZE, features, side, side)
    a, b = torch.randn(BATCH_SIZE * side * side, 9 * channels), torch.randn(9 * channels, features)

    def forward():
        with torch.no_grad():
            conv(x)

    def both():
        x.grad = conv.weight.grad = None
        conv(x).backward(gradient)

    return {"product": lambda: a @ b, "forward": forward, "both": both}


def main() -> None:
    from infantxray.runs.cpu_memory import keep_freed_memory

    keep_freed_memory()
    print("| map, channels | times | GFLOP/s of | JAX | PyTorch | ratio of times |")
    print("|---|---|---|---|---|---|")
    totals = {"jax": 0.0, "torch": 0.0}
    for part, channels, features, count in LAYERS:
        side = SIDE // part
        flops = 2 * BATCH_SIZE * side**2 * 9 * channels * features
        functions = {
            "jax": jax_functions(side, channels, features),
            "torch": torch_functions(side, channels, features),
        }
        for kind, work in (("product", 1), ("forward", 1), ("both", 3)):
            times = {name: [] for name in functions}
            for turn in range(TURNS + 1):
                for name in functions if turn % 2 else reversed(functions):
                    start = time.perf_counter()
                    functions[name][kind]()
                    if turn:
                        times[name].append(time.perf_counter() - start)
            seconds = {name: statistics.median(values) for name, values in times.items()}
            if kind == "both":
                for name, value in seconds.items():
                    totals[name] += count * value
            rates = {name: work * flops / value / 1e9 for name, value in seconds.items()}
            print(
                f"| {side} x {side}, {channels} to {features} | {count} | {kind} "
                f"| {rates['jax']:.0f} | {rates['torch']:.0f} "
                f"| {seconds['jax'] / seconds['torch']:.2f} |",
                flush=True,
            )
    print(
        f"\nAll of VGG19's wide convolutions, forward and backward: JAX {totals['jax']:.2f} s, "
        f"PyTorch {totals['torch']:.2f} s, ratio {totals['jax'] / totals['torch']:.2f}."
    )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
