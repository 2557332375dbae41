"""Detection of unusual images, by kind and score.

    make demo
    python -m benchmarks.outliers [--workdir=runs/demo/finetune] [--real=FOLDER] \
        [--output=benchmarks/results/outliers.md]

Inliers are the test images of the run. Drawn kinds are always there. `--real` is a folder with
`children/manifest.csv` (hands with ages, chests with conditions), `adult/manifest.csv` (chests) and
`dicom/` (files named `mg_*`, `*animal*`); missing parts are left out. One or two images of a kind
give 60 rotated, shifted and scaled copies. The autoencoder is the stage one that the run started
from. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import tempfile
from pathlib import Path

import jax
import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.uid import ComputedRadiographyImageStorage
from sklearn.datasets import load_sample_images

import infantxray
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.manifest import read_manifest
from data_pipeline.phantom import open_phantom
from data_pipeline.splits import read_split
from infantxray.evaluation import roc
from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.outliers import fit_detector
from infantxray.training.augment import Augmentation, augment

_MANY, _TRAINING = 200, 2000
_MOVES = Augmentation(rotation_degrees=15.0, scale=0.15, shift=0.08)


def screenshot(image: np.ndarray) -> np.ndarray:
    """The image in the window of a viewer."""
    size = len(image)
    screen = Image.new("L", (size, size), 230)
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, size, size // 10), fill=60)
    for i in range(8):
        top = size // 6 + i * size // 10
        draw.line((size // 24, top, size // 5, top), fill=90, width=max(size // 64, 1))
    side = size * 2 // 3
    screen.paste(Image.fromarray(image).resize((side, side)), (size // 4, size // 5))
    return np.asarray(screen)


def copies(images: np.ndarray, n: int = 60) -> np.ndarray:
    """Moved copies of few images, uint8 `[n, S, S]`."""
    repeated = np.resize(images, (n, *images.shape[1:]))[..., None]
    moved = augment(repeated.astype(np.float32) / 255, jax.random.key(0), _MOVES)
    return np.rint(np.asarray(moved)[..., 0] * 255).astype(np.uint8)


def drawn(inliers: np.ndarray, model: infantxray.Model) -> dict[str, np.ndarray]:
    """Kinds that are made from ordinary images, or drawn."""
    rng = np.random.default_rng(0)
    photographs = [np.asarray(Image.fromarray(x).convert("L")) for x in load_sample_images().images]
    adults = open_phantom(f"adult:films={_MANY}:seed=5").image_path[:_MANY]
    elsewhere = open_phantom(f"infant:films={_MANY}:seed=5:site=b").image_path[:_MANY]
    greys = np.linspace(60, 200, len(inliers)).astype(np.uint8)[:, None, None]
    return {
        "inverted": 255 - inliers,
        "rotated by 90°": np.rot90(inliers, axes=(1, 2)),
        "upside down": inliers[:, ::-1],
        "noise": rng.integers(0, 256, inliers.shape, np.uint8),
        "one grey": np.broadcast_to(greys, inliers.shape),
        "screenshot": np.stack([screenshot(x) for x in inliers]),
        "photograph (2)": copies(np.concatenate([model.read(p[None]) for p in photographs])),
        "adult for infant, phantom": model.read(list(adults)),
        "another hospital, phantom: not an outlier": model.read(list(elsewhere)),
    }


def read_as_radiograph(path: Path, how: Preprocessing) -> np.ndarray:
    """A DICOM file, even if its header says that it is no radiograph, which the decoder refuses."""
    data = pydicom.dcmread(path)
    for element in list(data):
        if element.tag.group not in (0x0028, 0x7FE0):
            del data[element.tag]
    data.Modality, data.SOPClassUID = "CR", ComputedRadiographyImageStorage
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        data.save_as(file.name)
        return load_image(file.name, how)


def real(folder: Path, model: infantxray.Model) -> dict[str, np.ndarray]:
    """Kinds that are found in a folder of images."""
    rng, found = np.random.default_rng(0), {}
    for kind, place, wanted in (
        ("hand", "children", lambda r: np.isfinite(r.age_months)),
        ("child's chest for abdomen", "children", lambda r: r.label != ""),
        ("adult's chest", "adult", lambda r: np.ones(len(r), bool)),
    ):
        if (manifest := folder / place / "manifest.csv").exists():
            records = read_manifest(manifest)
            rows = rng.permutation(np.flatnonzero(wanted(records)))[:_MANY]
            found[kind] = model.read(list(records.image_path[rows]))
    for kind, pattern in (("mammogram", "mg_*.dcm"), ("animal", "*animal*.dcm")):
        if files := sorted((folder / "dicom").glob(pattern)):
            images = np.stack([read_as_radiograph(f, model.spec.preprocessing) for f in files])
            found[f"{kind} ({len(files)})"] = copies(images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/demo/finetune")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--output", help="Markdown file to write.")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    model = infantxray.load(args.workdir)
    stage_one = json.loads(Path(args.workdir, "config.json").read_text())["pretrained"]
    autoencoder = infantxray.load(stage_one)
    split = read_split(str(Path(args.workdir, "split.csv")))

    def images(records, n):
        rows = np.random.default_rng(0).permutation(len(records))[:n]
        return model.read(list(records.image_path[np.sort(rows)]))

    def errors(pixels):
        rebuilt = autoencoder.reconstruct(pixels).astype(np.float32)
        return {"reconstruction": np.abs(rebuilt - pixels).mean((1, 2)) / 255}

    validation, test = images(split.validation, 10**6), images(split.test, 10**6)
    detector = fit_detector(
        model.embed(images(split.train, _TRAINING)),
        model.embed(validation),
        extra=errors(validation),
    )
    names = (*detector.names, "either")

    def scores(pixels):
        found = detector.distances(model.embed(pixels), errors(pixels))
        known = np.stack([found[name] for name in detector.names[:-1]], 1)
        standardised = (known - detector.centre) / detector.spread
        return found | {"either": standardised[:, [0, 2]].max(1)}

    limits = [*detector.thresholds, np.quantile(scores(validation)["either"], 0.99)]
    inside = scores(test)
    alarms = (f"{(inside[n] > t).mean():.1%}" for n, t in zip(names, limits, strict=True))
    lines = [
        "# Unusual images",
        "",
        f"{datetime.date.today()}, `python -m benchmarks.outliers`: {model!r}, {len(test)} test "
        "images against each kind. Area under the ROC curve with its 95 % interval, and the share "
        "above the threshold, below which 99 % of the validation images are. `combined` is the "
        "mean of the three scores, standardised on validation images; `either` is the larger of "
        "`mahalanobis` and `reconstruction`.",
        "",
        f"| kind | images | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
        f"| test images | {len(test)} | {' | '.join(alarms)} |",
    ]
    kinds = drawn(test[:_MANY], model) | (real(args.real, model) if args.real else {})
    for kind, pixels in kinds.items():
        found, cells = scores(np.ascontiguousarray(pixels)), []
        for name, limit in zip(names, limits, strict=True):
            score = np.concatenate([inside[name], found[name]])
            area = roc.auc(Scores.of(np.arange(len(score)) >= len(test), score))
            flagged = (found[name] > limit).mean()
            cells.append(f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}], {flagged:.0%}")
        lines.append(f"| {kind} | {len(pixels)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if args.output:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
