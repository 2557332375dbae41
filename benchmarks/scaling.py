"""Memory against number of images and number of steps.

    python benchmarks/scaling.py [--images=1000,10000,100000] [--steps=2000]

`predict` and `evaluate` run as commands on these numbers of images with a ResNet of one narrow
block a stage at 32 px; the kernel gives the largest resident memory of each process. Training runs
for `--steps` steps, and its memory is read during training. Writes `benchmarks/results/scaling.md`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FILES = 64


def small_encoder() -> None:
    from infantxray.models import ENCODERS
    from infantxray.models.encoders import resnet

    stages = tuple(
        resnet.Stage(f"conv{n}", 1, 8, strides)
        for n, strides in zip(range(2, 6), (1, 2, 2, 2), strict=True)
    )
    ENCODERS["small"] = functools.partial(resnet.ResNet, stages=stages)


def write_manifest(folder: Path, images: int) -> Path:
    """A manifest of links to a few images of noise, one patient each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(FILES):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / f"{i}.png")
    for i in range(FILES, images):
        os.link(folder / f"{i % FILES}.png", folder / f"{i}.png")
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "patient_id", "age_months", "label"])
        for i in range(images):
            writer.writerow(
                [f"{i}.png", f"{folder.name}-{i}", i % 36 + 1, ("mass", "normal")[i % 2]]
            )
    return folder / "manifest.csv"


def command(*arguments: str) -> tuple[float, float]:
    """Runs the program in a child; its largest resident memory in MiB, and seconds."""
    started = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, __file__, "--command", *arguments],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{arguments[0]} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(arguments: list[str]) -> None:
    """`finetune`, with its resident memory printed at intervals, and compilations."""
    import jax.monitoring

    from infantxray.training import hooks

    compilations = [0]

    def count(event: str, *_: object, **__: object) -> None:
        compilations[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    finished = hooks.MetricsLog.__call__

    def watched(self, moment):
        result = finished(self, moment)
        if result:
            with open(os.environ["SCALING_LOG"], "a") as file:
                file.write(f"{moment.step},{resident_mib():.1f},{compilations[0]}\n")
        return result

    hooks.MetricsLog.__call__ = watched
    program(arguments)


def program(arguments: list[str]) -> None:
    from infantxray.__main__ import console

    small_encoder()
    sys.argv = ["main.py", *arguments]
    os.chdir(ROOT)
    console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="1000,10000,100000")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    lines = [
        "# Memory as work grows",
        "",
        f"`python benchmarks/scaling.py --images={options.images} --steps={options.steps}` on "
        f"{os.cpu_count()} cores ({platform.machine()}), a narrow ResNet at 32 px, batch 32.",
        "",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_manifest(folder / "train", FILES)
        log = folder / "steps.csv"
        os.environ["SCALING_LOG"] = str(log)
        model = f"--workdir={folder / 'model'}"
        command(
            "--config=configs/finetune.py", model, "--config.encoder=small",
            "--config.data.image_size=32", f"--config.data.train=manifest:{data}",
            "--config.batch_size=8", f"--config.train_steps={options.steps}",
            "--config.bootstrap_samples=20", "--config.eval_every_steps=100",
            "--config.data.num_threads=1",
        )  # fmt: skip
        rows = [line.split(",") for line in log.read_text().splitlines()]
        shown = [rows[i] for i in np.linspace(0, len(rows) - 1, 6).astype(int)]
        shown[1] = next(row for row in rows if int(row[0]) >= 200)
        lines += [
            "Training, validation every 100 steps:",
            "",
            "| step | resident memory, MiB | programs compiled so far |",
            "|---|---|---|",
            *(f"| {step} | {float(mib):,.0f} | {count} |" for step, mib, count in shown),
            "",
            "The whole command:",
            "",
            "| images | `predict`: largest memory, MiB | seconds | `evaluate`: MiB | seconds |",
            "|---|---|---|---|---|",
        ]
        for images in map(int, options.images.split(",")):
            data = write_manifest(folder / str(images), images)
            row = f"| {images:,} "
            for task in ("predict", "evaluate"):
                arguments = [f"--config=configs/{task}.py", f"--config.checkpoint={model[10:]}"]
                arguments += [f"--workdir={folder / f'{task}{images}'}", "--config.batch_size=32"]
                arguments += [f"--config.data.test=manifest:{data}", "--config.data.num_threads=1"]
                if task == "evaluate":
                    arguments += ["--config.bootstrap_samples=20"]
                mib, seconds = command(*arguments)
                row += f"| {mib:,.0f} | {seconds:.0f} "
            print(row + "|", flush=True)
            lines.append(row + "|")
    path = ROOT / "benchmarks" / "results" / "scaling.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--command"]:
        rest = sys.argv[2:]
        train(rest) if "finetune" in rest[0] else program(rest)
    else:
        main()
