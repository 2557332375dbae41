"""Images a second from a cache of decoded images, through the training loader.

From the repository's root, under a minute (writes 0.4 GB to a temporary folder):

    python benchmarks/cached_loading.py --output benchmarks/results/cached_loading.md

The loader is that of training, with two threads and shuffled batches of 256 images at 224 pixels.
The table compares it with decoding the same images from their files (JPEG of 1024 pixels), and with
reading the cache without the loader.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from data_pipeline.cache import find_cache  # noqa: E402
from data_pipeline.cache_writing import create_folder, write_shard  # noqa: E402
from data_pipeline.decode import Preprocessing  # noqa: E402
from data_pipeline.loader import ImageSource, training_batches  # noqa: E402
from data_pipeline.manifest import Records  # noqa: E402

HOW = Preprocessing(224)
BATCH_SIZE = 256
TURNS = 3


def loader_rate(records: Records, cache: str, batches: int, threads: int) -> float:
    """Images a second after the first two batches."""
    source = ImageSource(records, (), HOW, cache=cache)
    iterator = training_batches(source, BATCH_SIZE, seed=0, num_threads=threads)
    for _ in range(2):
        next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def read_rate(records: Records, cache: str) -> float:
    found = find_cache(cache, HOW)
    order = np.random.default_rng(0).permutation(len(records))
    start = time.perf_counter()
    for row in order:
        assert found.get(records.image_path[row]) is not None
    return len(order) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        coarse = Image.fromarray(random.integers(0, 255, (64, 64), np.uint8))
        grain = random.normal(0, 4, (1024, 1024))
        image = np.clip(np.asarray(coarse.resize((1024, 1024))) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(f"{folder}/image.jpg", quality=90)
        Image.fromarray(image).resize((28, 28)).save(f"{folder}/small.jpg")
        # As many names as images, and few files: what is measured first is not decoding.
        os.mkdir(f"{folder}/one")
        for name in ("image", "small"):
            os.rename(f"{folder}/{name}.jpg", f"{folder}/one/{name}.jpg")
        for i in range(options.images):
            os.symlink("one", f"{folder}/{i}")
        small = [f"{folder}/{i}/small.jpg" for i in range(options.images)]
        cache = f"{folder}/cache"
        made = create_folder(cache, HOW)
        for at in range(0, len(small), 512):
            write_shard(made, small[at : at + 512], HOW, "uint8")
        cached = Records.create(small, source="benchmark")
        files = Records.create(
            [f"{folder}/{i}/image.jpg" for i in range(options.images)], source="benchmark"
        )
        rates: dict[str, list[float]] = {
            "cache, loader": [],
            "cache alone": [],
            "files, loader": [],
        }
        for _ in range(TURNS):
            rates["cache, loader"].append(loader_rate(cached, cache, 120, options.threads))
            rates["cache alone"].append(read_rate(cached, cache))
            rates["files, loader"].append(loader_rate(files, "", 3, options.threads))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"# Loading at {HOW.image_size} pixels, images a second\n",
        f"{datetime.date.today()}, {cores} cores, Python {platform.python_version()}, "
        f"{options.threads} loader threads, batches of {BATCH_SIZE}, "
        f"`python {' '.join(sys.argv)}`\n",
        "| from | median | lowest | highest |\n|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {statistics.median(v):,.0f} | {min(v):,.0f} | {max(v):,.0f} |"
        for name, v in rates.items()
    ]
    print("\n".join(lines))
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
