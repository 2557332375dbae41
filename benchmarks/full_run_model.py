"""A model of the paper's full run on 1, 8 and 64 H100: hours, storage, network and bottleneck.

    python benchmarks/full_run_model.py

Everything follows from measured rates (`RATES`, `DECODE_MS`, `CACHE_US`) and the assumptions named
in the page that it writes, `benchmarks/results/full_run.md`. Parameters are counted.
"""

from __future__ import annotations

import heapq
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from infantxray.models import create_encoder

ROOT = Path(__file__).resolve().parent.parent

# Measured on one H100 SXM at 224 px, bfloat16, batch 128, commit 17b1f40: images/s of stage two.
RATES = {
    "vgg19": 3336,
    "mobilenet_v2": 9368,
    "shufflenet": 6256,
    "xception": 3802,
    "hrnet_w32": 1742,
    "resnext50": 4334,
    "densenet121": 3559,
    "resnet50": 5355,
}
BATCH = 128
DECODER_MS = 33.0 - 23.9  # Stage one less stage two of ResNet-50, the same measurement.
# Measured on CPUs: benchmarks/results/prepare.md.
DECODE_MS = {"JPEG, 1024 px": 3.7, "DICOM, mixed encodings": 109.3}
CACHE_US = 35.0

ALL_IMAGES, INFANT_IMAGES = 311_915, 70_353
EPOCHS = (20, 30)
VARIANTS, FROM_STAGE_ONE, SEEDS = 3, 2, 5  # One variant starts from random weights.
IMAGE_BYTES = 224 * 224

# Assumptions. Bytes/s in one direction, three quarters of the nominal rate: of a GPU within a
# machine, and of a machine of eight GPUs. A ring passes each machine's network once.
NVLINK = 0.75 * 450e9
INFINIBAND = min(NVLINK, 0.75 * 8 * 50e9)  # Eight ports of 400 Gb/s.
ETHERNET = 0.75 * 12.5e9  # One port of 100 Gb/s.
MACHINE_CORES = 128
OVERHEAD = 1.1  # Validation, checkpoints, compilation.


def seconds_per_image(encoder: str) -> tuple[float, float]:
    """Of stage one, estimated, and of stage two, measured."""
    two = 1 / RATES[encoder]
    return two + DECODER_MS / 1e3 / BATCH, two


def run_hours(encoder: str) -> tuple[float, float]:
    """Of one run of stage one and of stage two on one GPU."""
    one, two = seconds_per_image(encoder)
    return (
        ALL_IMAGES * EPOCHS[0] * one * OVERHEAD / 3600,
        INFANT_IMAGES * EPOCHS[1] * two * OVERHEAD / 3600,
    )


def parameters(encoder: str) -> int:
    model = create_encoder(encoder)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 1)), train=False)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def makespan(gpus: int) -> float:
    """Hours until the last run has ended: a run a GPU, the longest chain of runs first."""
    jobs = []  # Hours of a stage one and of what follows it.
    alone = []
    for encoder in RATES:
        one, two = run_hours(encoder)
        jobs += [(one, two)] * SEEDS
        alone += [two] * SEEDS * (VARIANTS - FROM_STAGE_ONE)
    free = [0.0] * gpus
    waiting = []  # Runs of stage two: when their stage one has ended, and their hours.
    for one, two in sorted(jobs, reverse=True):
        end = heapq.heappop(free) + one
        heapq.heappush(free, end)
        waiting += [(end, two)] * FROM_STAGE_ONE
    waiting += [(0.0, two) for two in alone]
    last = 0.0
    for ready, two in sorted(waiting, key=lambda job: (job[0], -job[1])):
        end = max(heapq.heappop(free), ready) + two
        heapq.heappush(free, end)
        last = max(last, end, *free)
    return last


def all_reduce_ms(count: int, gpus: int, bandwidth: float) -> float:
    """A ring: each GPU sends and receives the gradient twice, less its own part."""
    return 2 * (gpus - 1) / gpus * count * 4 / bandwidth * 1e3


def main() -> None:
    counts = {encoder: parameters(encoder) for encoder in RATES}
    runs_one, runs_two = len(RATES) * SEEDS, len(RATES) * SEEDS * VARIANTS
    hours_one = SEEDS * sum(run_hours(encoder)[0] for encoder in RATES)
    hours_two = SEEDS * VARIANTS * sum(run_hours(encoder)[1] for encoder in RATES)
    longest = max(sum(run_hours(encoder)) for encoder in RATES)
    mean_rate = (runs_one * ALL_IMAGES * EPOCHS[0] + runs_two * INFANT_IMAGES * EPOCHS[1]) / (
        (hours_one + hours_two) / OVERHEAD * 3600
    )
    state = 3 * 4 * sum(counts.values())  # Parameters and the two moments of AdamW, float32.
    checkpoints = 2 * state * SEEDS * (1 + VARIANTS)  # The latest and the best.
    cache = ALL_IMAGES * IMAGE_BYTES
    fastest = max(RATES.values())
    lines = [
        "# The paper's full run on 1, 8 and 64 H100",
        "",
        "A model, not a measurement: `python benchmarks/full_run_model.py`.",
        "",
        f"- {ALL_IMAGES:,} images, {EPOCHS[0]} epochs of stage one; {INFANT_IMAGES:,} of infants, "
        f"{EPOCHS[1]} epochs of stage two. No image is held out, so hours are upper bounds.",
        f"- {len(RATES)} encoders, {SEEDS} seeds, {VARIANTS} variants of which {FROM_STAGE_ONE} "
        f"start from the same stage one: {runs_one} runs of stage one, {runs_two} of stage two.",
        "- 224 px, bfloat16, batch 128 on a GPU. Stage two: images/s measured on one H100 at "
        "commit 17b1f40 with a resident batch, without augmentation. Several encoders are faster "
        f"since (gpu.md). Stage one: {DECODER_MS:.1f} ms a batch more, "
        "measured with ResNet-50 and taken for all encoders.",
        f"- {OVERHEAD - 1:.0%} more for validation, checkpoints and compilation (assumed).",
        "",
        "## Hours of one run on one GPU",
        "",
        "| encoder | parameters, million | stage one | stage two |",
        "|---|---|---|---|",
    ]
    for encoder in RATES:
        one, two = run_hours(encoder)
        lines.append(f"| {encoder} | {counts[encoder] / 1e6:.1f} | {one:.2f} | {two:.2f} |")
    lines += [
        f"| all runs | | {hours_one:.1f} | {hours_two:.1f} |",
        "",
        "## A run on each GPU",
        "",
        "| GPUs | hours | GPU hours used | share of time at work |",
        "|---|---|---|---|",
    ]
    total = hours_one + hours_two
    for gpus in (1, 8, 64):
        hours = makespan(gpus)
        lines.append(f"| {gpus} | {hours:.1f} | {total:.0f} | {total / hours / gpus:.0%} |")
    lines += [
        "",
        f"The longest chain, stage one and two of HRNet, takes {longest:.1f} hours on one GPU: "
        "no number of GPUs is faster with a run on each. Beyond that, a run must be divided.",
        "",
        "## One run over several GPUs",
        "",
        "Milliseconds of the gradients' all-reduce (float32, a ring, nothing hidden behind the "
        "backward pass), and images/s of all GPUs as a share of as many single ones, stage two, "
        "128 images a GPU.",
        "",
        "| encoder | step | 8, NVLink | 64, eight ports of 400 Gb/s | 64, one port of 100 Gb/s |",
        "|---|---|---|---|---|",
    ]
    for encoder, count in counts.items():
        step = BATCH / RATES[encoder] * 1e3
        row = f"| {encoder} | {step:.1f} "
        for gpus, bandwidth in ((8, NVLINK), (64, INFINIBAND), (64, ETHERNET)):
            extra = all_reduce_ms(count, gpus, bandwidth)
            row += f"| {extra:.1f} ({step / (step + extra):.0%}) "
        lines.append(row + "|")
    feed = mean_rate * IMAGE_BYTES
    lines += [
        "",
        "Batches grow with the GPUs: 1,024 images on 8 and 8,192 on 64, against 256 and 64 in "
        "`configs/`. At the batch sizes of the paper's settings 64 GPUs have 1 to 4 images each.",
        "",
        "## Data",
        "",
        "| | |",
        "|---|---|",
        f"| cache of decoded images | {cache / 1e9:.1f} GB |",
        f"| checkpoints of all runs, latest and best | at most {checkpoints / 1e9:.0f} GB |",
        f"| read by one GPU, mean over the runs | {mean_rate:,.0f} images/s, "
        f"{feed / 1e6:,.0f} MB/s |",
        f"| read by 8 / 64 GPUs | {8 * feed / 1e9:.1f} / {64 * feed / 1e9:.1f} GB/s |",
        f"| processor cores a GPU, reading the cache | {mean_rate * CACHE_US / 1e6:.2f} |",
    ]
    for kind, ms in DECODE_MS.items():
        lines += [
            f"| processor cores a GPU, decoding {kind} each time | {mean_rate * ms / 1e3:.0f} |",
            f"| `prepare`, all images as {kind} | {ALL_IMAGES * ms / 3.6e6:.1f} core hours, "
            f"{ALL_IMAGES * ms / 6e4 / MACHINE_CORES:.1f} min on {MACHINE_CORES} cores |",
        ]
    lines += [
        "",
        "## What binds first",
        "",
        f"1. Without a cache, decoding: {mean_rate * DECODE_MS['JPEG, 1024 px'] / 1e3:.0f} cores "
        "of JPEG for every GPU. `prepare` first.",
        f"2. With the cache on a network disk, the disk: 64 GPUs read {64 * feed / 1e9:.0f} "
        f"GB/s. The cache of {cache / 1e9:.0f} GB fits in the memory or on the disk of each "
        "machine: copy it there, and nothing is read over the network.",
        "3. Then the GPUs' memory traffic (the steps run at .15 to .47 of its floor), up to the "
        f"number of runs: {runs_one} of stage one keep {runs_one} GPUs busy.",
        f"4. On 64 GPUs the longest chain of runs, HRNet's {longest:.1f} hours.",
        "5. A run divided over machines with one 100 Gb/s port waits for the all-reduce for up to "
        "half of its time: spread runs over machines and divide a run within one.",
        "",
        f"The fastest encoder trains {fastest:,} images/s and reads "
        f"{fastest * IMAGE_BYTES / 1e6:.0f} MB/s.",
    ]
    path = ROOT / "benchmarks" / "results" / "full_run.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
