"""The paper's objective, `best` and random weights on one GPU: ResNet-50, 128 and 224 px.

From the repository's root, 8 to 12 minutes on an H100, compilation included:

    python benchmarks/gpu_study.py --adults=manifest:adult.csv --children=manifest:kermany.csv

Each size is a study (`configs/study.py:best`, arms `random`, `paper` and `best`, 2 and 100 % of the
labels) in bfloat16, on images that are decoded once into a cache. Runs share the GPU two at a time.
What does not fit into `--minutes` is listed as not run, and the same command continues.
`--size=tiny` tries everything on a CPU, on embedded data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARMS = ("random", "paper", "best")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained."""

    images: tuple[int, ...]  # Sides in pixels.
    encoder: str
    fractions: tuple[float, ...]
    pretrain_steps: int
    finetune_steps: int  # 0 = by the data.
    batch: int
    dtype: str
    at_once: int


SIZES = {
    "full": Size((128, 224), "resnet50", (0.02, 1.0), 1500, 0, 64, "bfloat16", 2),
    "tiny": Size((32,), "vgg19", (1.0,), 1, 1, 8, "float32", 1),
}


def commands(size: Size, side: int, args: argparse.Namespace) -> list[list[str]]:
    """The commands of one image size: the decoded cache, then the study."""
    cache = f"{args.out}/images{side}"
    sources = f"{args.adults},{args.children}"
    data = [f"--config.data.image_size={side}", f"--config.data.num_threads={args.threads}"]
    data.append(f"--config.data.given_splits={args.given_splits}")
    main = [sys.executable, str(ROOT / "main.py")]
    prepare = [
        *main,
        "--config=configs/prepare.py",
        f"--workdir={cache}",
        f"--config.data.train={sources}",
        f"--config.data.image_size={side}",
    ]
    every = max(size.pretrain_steps // 3, 1)
    study = [
        *main,
        "--config=configs/study.py:best",
        f"--workdir={args.out}/study{side}",
        *data,
        f"--config.data.cache={cache}",
        f"--config.study.pretrain_data={sources}",
        f"--config.data.train={args.children}",
        f"--config.study.variants={','.join(ARMS)}",
        f"--config.study.encoders={size.encoder},",
        f"--config.study.label_fractions={','.join(map(str, size.fractions))},",
        "--config.study.seeds=0,",
        "--config.study.pretrain_seeds=0,",
        "--config.study.frozen=False",
        f"--config.study.parallel_cells={size.at_once}",
        f"--config.dtype={size.dtype}",
        "--config.pretrain.probe_every_steps=0",
        "--config.finetune.coverage=0.0",
        "--config.finetune.bootstrap_samples=200",
        "--config.bootstrap_samples=200",
    ]
    for stage, steps in (("pretrain", size.pretrain_steps), ("finetune", size.finetune_steps)):
        study += [
            f"--config.{stage}.train_steps={steps}",
            f"--config.{stage}.batch_size={size.batch}",
        ]
    for interval in ("eval", "checkpoint", "images"):
        study.append(f"--config.pretrain.{interval}_every_steps={every}")
    return [prepare, study]


def run(command: list[str], seconds: float) -> bool:
    """Runs a command, which saves and stops at the time limit. Returns whether it finished."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(timeout=max(seconds, 1.0)) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return False


def page(size: Size, out: pathlib.Path, minutes: float) -> str:
    """A table of the finished runs, and what was not run."""
    lines = [
        "| size, px | labels | arm | ROC AUC [95 %] | accuracy | minutes, stage one and two |",
        "|---|---|---|---|---|---|",
    ]
    missing = []
    for side in size.images:
        study = out / f"study{side}"
        for fraction in size.fractions:
            for arm in ARMS:
                folder = study / "finetune" / size.encoder / arm / f"fraction{fraction:g}" / "seed0"
                name = f"{side} px, {fraction:.0%}, {arm}"
                if not (folder / "metrics.json").exists():
                    missing.append(name)
                    continue
                metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
                low, high = metrics["ci95"]["roc_auc"]
                objective = {"paper": "l1", "best": "masked_hog"}.get(arm)
                took = [folder]
                if objective:
                    took.insert(0, study / "pretrain" / size.encoder / objective / "seed0")
                spent = ", ".join(f"{_seconds(place) / 60:.1f}" for place in took)
                lines.append(
                    f"| {side} | {fraction:.0%} | {arm} | {metrics['roc_auc']:.3f} "
                    f"[{low:.3f}, {high:.3f}] | {metrics['accuracy']:.3f} | {spent} |"
                )
    lines.append("")
    lines.append(f"{minutes:.1f} minutes in all. Not run: {'; '.join(missing) or 'nothing'}.")
    return "\n".join(lines) + "\n"


def _seconds(folder: pathlib.Path) -> float:
    return float(json.loads((folder / "study_run.json").read_text(encoding="utf-8"))["seconds"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adults", default="phantom:adult")
    parser.add_argument("--children", default="phantom:infant")
    parser.add_argument("--given_splits", default="keep", choices=("keep", "ignore"))
    parser.add_argument("--out", default="runs/gpu_study")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--size", default="full", choices=SIZES)
    parser.add_argument("--images", type=int, nargs="*", help="sides in pixels, instead of both")
    parser.add_argument("--fractions", type=float, nargs="*", help="shares of the labels")
    parser.add_argument("--at_once", type=int, help="runs that share the GPU")
    args = parser.parse_args(arguments)
    args.out = str(pathlib.Path(args.out).resolve())
    size, started = SIZES[args.size], time.monotonic()
    given = {name: getattr(args, name) for name in ("images", "fractions", "at_once")}
    size = dataclasses.replace(size, **{name: value for name, value in given.items() if value})
    left = args.minutes * 60
    for side in size.images:
        for command in commands(size, side, args):
            if left > 0:
                run(command, left)
            left = args.minutes * 60 - (time.monotonic() - started)
    text = page(size, pathlib.Path(args.out), (time.monotonic() - started) / 60)
    pathlib.Path(args.out, "page.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
