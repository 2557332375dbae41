"""Seconds and memory from a manifest of many rows to the first batch.

From the repository's root, about a minute:

    python benchmarks/manifest_scale.py --output benchmarks/results/manifest_scale.md

312,000 rows are the paper's scale, three million ten times that. The timed steps, in a separate
process, are reading the manifest, dividing it by patient, opening the images and the first shuffled
batch of 32 at 224 pixels. Memory is the peak of the process, including interpreter and libraries.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

ROWS = (312_000, 3_000_000)
CLASSES = 11


def write_data(folder: Path, rows: int) -> None:
    """A manifest of `rows` distinct images, two and a half a patient, over few files."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (256, 256), np.uint8)
    (folder / "images").mkdir()
    Image.fromarray(pixels).save(folder / "images" / "image.png")
    for i in range(1000):
        (folder / f"{i:03}").symlink_to("images")
        (folder / "images" / f"{i:04}").symlink_to(".")
    with (folder / "manifest.csv").open("w") as file:
        file.write("image_path,patient_id,age_months,sex,view,label\n")
        for i in range(rows):
            path = f"{i % 1000:03}/{i // 1000 % 1000:04}/{i // 10**6:04}/film.png"
            file.write(f"{path},P{i * 2 // 5},{i % 216},{'FM'[i % 2]},AP,class {i % CLASSES}\n")


def measure(manifest: str) -> dict:
    """In this process. Imports are not counted: they are the same for ten rows."""
    from data_pipeline.decode import Preprocessing
    from data_pipeline.division import divide
    from data_pipeline.loader import ImageSource, training_batches
    from data_pipeline.sources import open_sources

    start = time.perf_counter()
    records = open_sources(f"manifest:{manifest}")
    read = time.perf_counter()
    split = divide(records, validation_fraction=0.15, test_fraction=0.15, seed=0)
    divided = time.perf_counter()
    classes = tuple(sorted(set(split.train.label)))
    source = ImageSource(split.train, classes, Preprocessing(224))
    batch = next(training_batches(source, 32, seed=0, num_threads=2))
    assert batch["image"].shape == (32, 224, 224, 1)
    end = time.perf_counter()
    return {
        "rows": len(records),
        "read_s": read - start,
        "divide_s": divided - read,
        "batch_s": end - divided,
        "total_s": end - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--measure", default="", help="a manifest, in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    lines = [
        "# From a manifest to the first batch\n",
        f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"`python {' '.join(sys.argv)}`\n",
        "| rows | read, s | divide, s | first batch, s | together, s | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), rows)
            command = [sys.executable, __file__, "--measure", f"{folder}/manifest.csv"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        lines.append(
            f"| {found['rows']:,} | {found['read_s']:.1f} | {found['divide_s']:.1f} | "
            f"{found['batch_s']:.1f} | {found['total_s']:.1f} | {found['peak_mib']:.0f} |"
        )
    print("\n".join(lines))
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
