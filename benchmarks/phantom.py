"""Measurements of the phantom: images a second on one core, memory, and grey levels.

From the repository's root, about two minutes:

    python benchmarks/phantom.py --output benchmarks/results/phantom.md \
        [--real NAME=MANIFEST[:dataset=VALUE] ...]
    python benchmarks/phantom.py --images docs/images
    python benchmarks/phantom.py --floor --output benchmarks/results/phantom_floor.md

The second command draws the pictures of docs/phantom.md instead; the third (five minutes, needs
scikit-learn) measures a forest of extremely randomised trees on 32 x 32 pixels: a baseline for
networks, and a check that the task is harder where it should be. In the first, `--real` adds a row
of statistics for the images of a manifest (a CSV with `image_path`, of which only the rows with
that value in its column `dataset` count, if given). No image is stored.

Statistics, over the middle 70 % of images of 128 px, of 256 grey levels:
  mean, sd: of the greys of an image, averaged over images.
  p5, p50, p95: percentiles of the greys of all images.
  contrast: root mean square of the greys in blocks of 16 x 16 px, median over blocks.
  slope: of the logarithm of the power against the logarithm of the frequency, 3 to 40 cycles a
    image, averaged over directions; natural pictures and radiographs have -2 to -4.
  noise: 1.4826 x the median of the absolute second difference along rows and columns, over
    sqrt(6): the standard deviation if there were noise alone.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from data_pipeline.decode import Preprocessing, load_image  # noqa: E402
from data_pipeline.errors import UnreadableImage  # noqa: E402
from data_pipeline.phantom import CLASSES, VERSION, open_phantom, render  # noqa: E402

SIZES = (64, 128, 224, 512)
SIZE, FILMS = 128, 300
TURNS = 5


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rate(addresses: list[str], size: int) -> float:
    """Images a second of processor time: other programs on the machine do not count."""
    rates = []
    for _ in range(TURNS):
        start = time.process_time()
        for address in addresses:
            render(address, size)
        rates.append(len(addresses) / (time.process_time() - start))
    return statistics.median(rates)


def speed() -> list[str]:
    lines = ["| images | " + " | ".join(f"{size} px" for size in SIZES) + " |"]
    lines.append("|---" * (len(SIZES) + 1) + "|")
    for place in ("infant", "adult"):
        addresses = list(open_phantom(f"{place}:films=66").image_path[:66])
        render(addresses[0], 64)
        cells = [f"{rate(addresses, size):.0f}" for size in SIZES]
        lines.append(f"| {place} | " + " | ".join(cells) + " |")
    return lines


def memory(radiographs: int) -> list[str]:
    """Peak memory after few images and after many."""
    addresses = open_phantom(f"infant:films={radiographs}").image_path[:radiographs]
    marks = []
    for i, address in enumerate(addresses):
        render(address, SIZE)
        if i + 1 in (100, radiographs):
            marks.append(f"{peak_mb():.0f} MB after {i + 1:,} images of {SIZE} px")
    return ["Peak memory of the process: " + ", ".join(marks) + "."]


def middle(image: np.ndarray) -> np.ndarray:
    cut = round(0.15 * len(image))
    return image[cut : len(image) - cut, cut : len(image) - cut].astype(np.float64)


def slope(radiographs: np.ndarray) -> float:
    side = radiographs.shape[1]
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    power = np.zeros((side, side))
    for image in radiographs:
        power += np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    at = np.fft.fftfreq(side) * side
    radius = np.hypot(at[:, None], at[None, :])
    rings = np.arange(3, min(40, side // 2 - 1))
    mean = [power[(radius >= r - 0.5) & (radius < r + 0.5)].mean() for r in rings]
    return float(np.polyfit(np.log(rings), np.log(mean), 1)[0])


def row(name: str, paths: list[str]) -> str:
    how = Preprocessing(SIZE, resize="crop")
    radiographs, broken = [], 0
    for path in paths:
        try:
            radiographs.append(middle(load_image(path, how)))
        except UnreadableImage:
            broken += 1
    radiographs = np.stack(radiographs)
    blocks = radiographs[:, : radiographs.shape[1] // 16 * 16, : radiographs.shape[2] // 16 * 16]
    n = blocks.shape[1] // 16
    contrast = np.median(blocks.reshape(len(radiographs), n, 16, n, 16).std(axis=(2, 4)))
    seconds = [np.abs(np.diff(radiographs, 2, axis=axis)).ravel() for axis in (1, 2)]
    noise = 1.4826 * np.median(np.concatenate(seconds)) / np.sqrt(6)
    low, half, high = np.percentile(radiographs, (5, 50, 95))
    mean, sd = radiographs.mean(), radiographs.std(axis=(1, 2)).mean()
    return (
        f"| {name} | {len(radiographs)} | {mean:.0f} | {sd:.0f} | {low:.0f} | {half:.0f} "
        f"| {high:.0f} | "
        f"{contrast:.1f} | {slope(radiographs):.2f} | {noise:.1f} |"
    )


def real_paths(manifest: str) -> list[str]:
    path, _, dataset = manifest.partition(":dataset=")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if not dataset or r["dataset"] == dataset]
    every = max(1, len(rows) // FILMS)
    return [os.path.join(os.path.dirname(path), r["image_path"]) for r in rows[::every]][:FILMS]


def greys(real: list[str]) -> list[str]:
    lines = ["| images | n | mean | sd | p5 | p50 | p95 | contrast | slope | noise |"]
    lines.append("|---" * 10 + "|")
    for place in ("infant", "infant:site=b", "infant:dose=0.001", "adult", "adult:site=b"):
        addresses = open_phantom(f"{place}:films={FILMS}").image_path[:FILMS]
        lines.append(row(f"phantom:{place}", list(addresses)))
    for item in real:
        name, _, manifest = item.partition("=")
        lines.append(row(name, real_paths(manifest)))
    return lines


def floor() -> list[str]:
    """Accuracy and macro AUC of trees on raw pixels of 32 x 32."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score

    def load(place: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        records = open_phantom(place)
        records = records.take(records.split == split)
        radiographs = np.stack([render(address, 32) for address in records.image_path])
        return radiographs.reshape(len(radiographs), -1), records.label

    def learn(radiographs, labels) -> ExtraTreesClassifier:
        trees = ExtraTreesClassifier(300, min_samples_leaf=2, max_features=0.1, random_state=0)
        return trees.fit(radiographs, labels)

    def line(trained: str, tested: str, trees, radiographs, labels) -> str:
        p = trees.predict_proba(radiographs)
        accuracy = (trees.classes_[p.argmax(1)] == labels).mean()
        auc = np.mean([roc_auc_score(labels == c, p[:, k]) for k, c in enumerate(trees.classes_)])
        return f"| {trained} | {tested} | {accuracy:.3f} | {auc:.3f} |"

    lines = ["| trained on | tested on | accuracy | macro AUC |", "|---|---|---|---|"]
    test = load("infant", "test")
    radiographs, labels = load("infant", "train")
    for n in (200, 600, 2000):
        trees = learn(radiographs[:n], labels[:n])
        lines.append(line(f"infant, {n} images", "infant", trees, *test))
    lines.append(line("infant", "infant:site=b", trees, *load("infant:site=b", "test")))
    adult = learn(*load("adult", "train"))
    lines.append(line("adult", "adult", adult, *load("adult", "test")))
    lines.append(line("adult", "infant", adult, *test))
    for option in ("severity=obvious", "severity=subtle", "dose=0.001", "site=b"):
        place = f"infant:{option}"
        trees = learn(*load(place, "train"))
        lines.append(line(place, place, trees, *load(place, "test")))
    return lines


def montage() -> Image.Image:
    """One image of every condition at four ages, with obvious findings."""
    bands = (("infant", 0, 3), ("infant", 9, 15), ("infant", 28, 36), ("adult", 400, 800))
    side, head = 118, 16
    picture = Image.new("L", (side * len(CLASSES), head + side * len(bands)))
    pen = ImageDraw.Draw(picture)
    for column, name in enumerate(CLASSES):
        pen.text((side * column + 4, 2), name.removesuffix(" totalis"), fill=255)
    for line, (domain, youngest, oldest) in enumerate(bands):
        records = open_phantom(f"{domain}:films=1500:severity=obvious")
        inside = (records.age_months >= youngest) & (records.age_months < oldest)
        for column, name in enumerate(CLASSES):
            address = records.image_path[inside & (records.label == name)][0]
            # Twice as large, then reduced: what a better screen would show.
            image = Image.fromarray(render(address, 2 * side)).resize((side, side), Image.BOX)
            picture.paste(image, (side * column, head + side * line))
    return picture


def pair() -> Image.Image:
    """A normal adult and a normal infant, supine."""
    radiographs = []
    for place, youngest, oldest in (("adult", 400, 600), ("infant", 4, 8)):
        records = open_phantom(f"{place}:films=600")
        chosen = (records.label == "normal") & (records.view == "supine")
        chosen &= (records.age_months >= youngest) & (records.age_months < oldest)
        radiographs.append(render(records.image_path[chosen][0], 420))
    return Image.fromarray(np.concatenate(radiographs, axis=1))


def dose_and_severity() -> Image.Image:
    """Free air in one image, subtle and obvious, and the same image at decreasing dose."""
    records = open_phantom("infant:films=300")
    label, view = records.label[:300], records.view[:300]
    ill = records.image_path[:300][(label == "aeroperitoneum") & (view == "supine")][0]
    radiographs = [
        render(ill.replace(":split", f":severity={severity}:split"), 300)
        for severity in ("subtle", "obvious")
    ]
    radiographs += [
        render(ill.replace(":split", f":dose={d}:split"), 300) for d in ("0.001", "0.0001")
    ]
    return Image.fromarray(np.concatenate(radiographs, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="Markdown file; printed if left out")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=MANIFEST")
    parser.add_argument("--images", help="folder to draw the documentation's pictures into")
    parser.add_argument("--floor", action="store_true", help="train trees on raw pixels")
    arguments = parser.parse_args()
    if arguments.images:
        pictures = {"montage": montage, "pair": pair, "dose_and_severity": dose_and_severity}
        for name, draw in pictures.items():
            draw().save(Path(arguments.images) / f"phantom_{name}.png", optimize=True)
        return
    title = f"# {VERSION}" + (": a floor from raw pixels" if arguments.floor else "")
    names = [f'--real "{text.partition("=")[0]}=..."' for text in arguments.real]
    command = " ".join(
        ["python benchmarks/phantom.py", *(["--floor"] if arguments.floor else []), *names]
    )
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    lines = [title, "", f"`{command}`, {datetime.date.today()}, {versions}.", ""]
    if arguments.floor:
        lines += [*floor(), ""]
    else:
        timing = f"Processor time, median of {TURNS} turns over 66 images."
        lines += ["## Images a second on one core", "", timing, "", *speed(), "", *memory(2000), ""]
        lines += [f"## Greys of {SIZE}-px images", "", *greys(arguments.real), ""]
    text = "\n".join(lines)
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
