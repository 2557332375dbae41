"""Memory and images a second of `evaluate` over many images, the report included.

    python benchmarks/evaluate_scale.py [--images=100000] [--output=FILE.md]

PNG files of 32 pixels with random labels and ages, and a ShuffleNet that has been trained for two
steps; the command is the ordinary one. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = ("normal", "intussusception", "constipation")
TRAINING, SHARED = 600, 200  # Training images; pictures that the test images share.


def write_manifest(path: pathlib.Path, images: int, pictures: int) -> None:
    """A manifest of random labels and ages, with the files that it names."""
    rng, part = np.random.default_rng(images), path.stem
    for i in range(images):
        file = path.with_name(f"{part}{i}.png")
        if i < pictures:
            Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).save(file)
        else:
            file.symlink_to(f"{part}{i % pictures}.png")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "patient_id", "label", "age_months"))
        for i in range(images):
            label, age = CLASSES[rng.integers(3)], rng.integers(0, 36)
            writer.writerow((f"{part}{i}.png", f"{part}{i}", label, age))


def command(task: str, *settings: str) -> list[str]:
    flags = [f"--config.{setting}" for setting in settings]
    return [sys.executable, str(ROOT / "main.py"), f"--config=configs/{task}.py", *flags]


def resident_mb(pid: int) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--output", help="Markdown file to write.")
    args = parser.parse_args()
    samples = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_manifest(folder / "train.csv", TRAINING, TRAINING)
        write_manifest(folder / "test.csv", args.images, SHARED)
        small = ("data.image_size=32", "train_steps=2", "coverage=0.0", "bootstrap_samples=20")
        train = command("finetune", f"data.train=manifest:{folder}/train.csv", *small)
        subprocess.run([*train, f"--workdir={folder}/model"], cwd=ROOT, check=True)
        score = command("evaluate", f"checkpoint={folder}/model", "batch_size=64")
        score += [f"--config.data.test=manifest:{folder}/test.csv", f"--workdir={folder}/scored"]
        start = time.perf_counter()
        process = subprocess.Popen(
            score, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"predicted ([\d,]+) of", line):
                done = int(found[1].replace(",", "")) / args.images
                samples.append((done, time.perf_counter() - start, resident_mb(process.pid)))
        if process.wait():
            sys.exit(process.returncode)
        seconds = time.perf_counter() - start
    at = [
        max((mb for done, _, mb in samples if low < done <= high), default=float("nan"))
        for low, high in ((0.05, 0.2), (0.4, 0.6), (0.8, 1.0))
    ]
    (first, begun, _), (last, ended, _) = samples[0], samples[-1]
    rate = (last - first) * args.images / (ended - begun)
    resident = " | ".join(f"{mb:.0f}" for mb in at)
    lines = [
        "# Memory of evaluations",
        "",
        f"{datetime.date.today()}, `python benchmarks/evaluate_scale.py --images={args.images}`: "
        "files of 32 px, ShuffleNet, two cores.",
        "",
        "| images | images a second | resident MB at 5-20 % | at 40-60 % | at 80-100 % | "
        "seconds with metrics and report |",
        "|---|---|---|---|---|---|",
        f"| {args.images:,} | {rate:.0f} | {resident} | {seconds:.0f} |",
    ]
    print("\n".join(lines))
    if args.output:
        pathlib.Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
