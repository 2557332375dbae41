"""One training step on the CPU, here and in PyTorch: time and peak memory.

For each encoder, image size and task, both frameworks run the same step (forward,
backward, AdamW) on the same number of grey images: this project's network, and the
reference's own network (torchvision, timm, pytorchcv) with the same decoder or heads.
The two take turns in one process, and a ratio (JAX / PyTorch) is the median over the
turns, with the lowest and the highest beside it. `cpu_ratio` compares processor time
instead of elapsed time: on a machine with other work it is the fair metric, with `--threads 1`
(with more, PyTorch's threads use processor time to wait for each other). Freed memory is kept in
both, as `infantxray.runs.cpu_memory` does. Peak memory is measured in a separate process for each
framework, and includes the framework.

Needs torch, torchvision, timm and pytorchcv beside the requirements. From the
repository's root, about 25 minutes on two cores:

    python benchmarks/training_step.py --output benchmarks/results/training_step.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

BATCH_SIZE = 16
CLASSES = 11
AGE_WEIGHT = 0.8
LEARNING_RATE = 1e-3
COLUMNS = [
    *("encoder", "size", "task", "torch_ms", "jax_ms", "ratio", "ratio_low", "ratio_high"),
    *("cpu_ratio", "threads", "compile_s", "torch_mib", "jax_mib"),
]


def make_jax_step(name: str, size: int, task: str):
    """Returns a function that runs one step, and the seconds that compiling took."""
    import jax
    import jax.numpy as jnp
    import optax

    from infantxray.models import Decoder, create_encoder
    from infantxray.models.autoencoder import Autoencoder
    from infantxray.models.diagnosis import DiagnosisModel

    encoder = create_encoder(name)
    if task == "autoencoder":
        model = Autoencoder(encoder, Decoder())
    else:
        model = DiagnosisModel(encoder, num_classes=CLASSES)
    optimizer = optax.adamw(LEARNING_RATE)
    image = jax.random.normal(jax.random.key(0), (BATCH_SIZE, size, size, 1))
    label = jax.random.randint(jax.random.key(1), (BATCH_SIZE,), 0, CLASSES)
    age = jax.random.normal(jax.random.key(2), (BATCH_SIZE,))

    def init(key):
        variables = model.init(key, image, train=True)
        params, statistics_ = variables["params"], variables.get("batch_stats", {})
        return params, statistics_, optimizer.init(params)

    def loss(params, batch_stats):
        output, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
        )
        batch_stats = updates.get("batch_stats", {})
        if task == "autoencoder":
            return jnp.abs(output - image).mean(), batch_stats
        entropy = optax.softmax_cross_entropy_with_integer_labels(output["logits"], label)
        return (entropy + AGE_WEIGHT * (output["age"] - age) ** 2).mean(), batch_stats

    def step(state):
        params, batch_stats, moments = state
        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch_stats)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), batch_stats, moments), value

    state = jax.jit(init)(jax.random.key(3))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
    seconds = time.perf_counter() - start

    def run():
        nonlocal state
        state, value = compiled(state)
        value.block_until_ready()
        return float(value)

    return run, seconds


def make_torch_step(name: str, size: int, task: str):
    """Returns a function that runs one step."""
    import torch
    from reference_networks import create_reference, reference_map
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    network = create_reference(name).train()
    make_grey(network)
    image = torch.randn(BATCH_SIZE, 1, size, size)
    label = torch.randint(0, CLASSES, (BATCH_SIZE,))
    age = torch.randn(BATCH_SIZE)
    with torch.no_grad():
        features = reference_map(network, name, image).shape[1]
    if task == "autoencoder":
        heads = torch_decoder(features)
    else:
        heads = nn.ModuleDict(
            {
                "condition": nn.Linear(features, CLASSES),
                "age": nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 1)),
            }
        )
    last_layers = ("fc.", "classifier.", "output.")
    parameters = [p for n, p in network.named_parameters() if not n.startswith(last_layers)]
    optimizer = torch.optim.AdamW(
        [*parameters, *heads.parameters()], lr=LEARNING_RATE, weight_decay=1e-4, fused=True
    )

    def run():
        optimizer.zero_grad(set_to_none=True)
        latent = reference_map(network, name, image)
        if task == "autoencoder":
            loss = (heads(latent) - image).abs().mean()
        else:
            pooled = latent.mean((2, 3))
            loss = nn.functional.cross_entropy(heads["condition"](pooled), label)
            loss = loss + AGE_WEIGHT * ((heads["age"](pooled)[:, 0] - age) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def make_grey(network) -> None:
    """Replaces the first convolution by one of a single input channel."""
    from torch import nn

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, attribute = path.rpartition(".")
            grey = nn.Conv2d(
                1,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                bias=module.bias is not None,
            )
            setattr(network.get_submodule(parent), attribute, grey)
            return


def torch_decoder(features: int):
    """The layers of `infantxray.models.Decoder`."""
    from torch import nn

    from infantxray.models.decoder import level_widths

    layers, channels = [], features
    widths = level_widths(features)
    for level, width in enumerate(widths, start=1):
        layers += [nn.ConvTranspose2d(channels, width, 2, 2, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if level < len(widths):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))


def measure_time(name: str, size: int, task: str, turns: int, seconds: float) -> dict:
    """Both frameworks' milliseconds a step, taking turns of about `seconds` each."""
    jax_step, compile_s = make_jax_step(name, size, task)
    steps = {"torch": make_torch_step(name, size, task), "jax": jax_step}
    repeats = {}
    for framework, step in steps.items():
        for _ in range(2):
            step()
        start = time.perf_counter()
        step()
        repeats[framework] = max(1, round(seconds / (time.perf_counter() - start)))
    times = {framework: [] for framework in steps}
    processor = {framework: [] for framework in steps}
    for turn in range(turns):
        order = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for framework in order:
            steps[framework]()  # wakes its threads
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(repeats[framework]):
                steps[framework]()
            times[framework].append((time.perf_counter() - start) / repeats[framework] * 1e3)
            processor[framework].append((time.process_time() - cpu_start) / repeats[framework])
    ratios = sorted(j / t for j, t in zip(times["jax"], times["torch"], strict=True))
    cpu_ratios = [j / t for j, t in zip(processor["jax"], processor["torch"], strict=True)]
    return {
        "torch_ms": round(statistics.median(times["torch"]), 1),
        "jax_ms": round(statistics.median(times["jax"]), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(ratios[0], 2),
        "ratio_high": round(ratios[-1], 2),
        "cpu_ratio": round(statistics.median(cpu_ratios), 2),
        "compile_s": round(compile_s, 1),
    }


def print_peak_memory(framework: str, name: str, size: int, task: str) -> None:
    """Runs three steps of one framework in this process and prints its peak in MiB."""
    if framework == "jax":
        step, _ = make_jax_step(name, size, task)
    else:
        step = make_torch_step(name, size, task)
    for _ in range(3):
        step()
    # Of this program alone: what getrusage says includes the process that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)


def measure_memory(framework: str, name: str, size: int, task: str) -> int:
    command = [sys.executable, __file__, "--memory", framework]
    command += ["--encoders", name, "--sizes", str(size), "--tasks", task]
    command += ["--threads", str(len(os.sched_getaffinity(0)))]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout.split()[-1])


def main() -> None:
    from infantxray.models import ENCODERS
    from infantxray.runs.cpu_memory import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128])
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["autoencoder", "diagnosis"],
        choices=["autoencoder", "diagnosis"],
    )
    parser.add_argument("--turns", type=int, default=5, help="turns of each framework")
    parser.add_argument("--turn-seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--output", type=pathlib.Path, help="CSV to which rows are added")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--threads", type=int, default=2, help="processors to use")
    parser.add_argument("--memory", choices=["jax", "torch"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    # The process that measures memory reads the program that this one compiled.
    programs = tempfile.TemporaryDirectory()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs.name)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    keep_freed_memory()
    cases = [
        (name, size, task)
        for name in arguments.encoders
        for size in arguments.sizes
        for task in arguments.tasks
    ]
    if arguments.memory:
        print_peak_memory(arguments.memory, *cases[0])
        return
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        row = dict(zip(("encoder", "size", "task"), case, strict=True))
        row["threads"] = arguments.threads
        row |= measure_time(*case, arguments.turns, arguments.turn_seconds)
        if not arguments.no_memory:
            row["torch_mib"] = measure_memory("torch", *case)
            row["jax_mib"] = measure_memory("jax", *case)
        writer.writerow(row)
        sys.stdout.flush()
        if arguments.output:
            new = not arguments.output.exists()
            with arguments.output.open("a", newline="") as file:
                rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    rows.writeheader()
                rows.writerow(row)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
