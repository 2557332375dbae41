"""Audit of images before training: unreadable files, duplicates, outliers.

Nothing here prints or writes; `infantxray/commands/check_data.py` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline import remote
from data_pipeline.adapters.place import PICTURE_SUFFIXES
from data_pipeline.decode import (
    PHANTOM_PREFIX,
    Header,
    Preprocessing,
    load_image,
    read_radiograph,
    to_square,
)
from data_pipeline.errors import UnreadableImage
from data_pipeline.manifest import Records
from data_pipeline.processes import WorkerPool, stopping

THUMBNAIL = Preprocessing(image_size=32, resize="squash")
_DECODE_SIDE = 64  # Pixels: twice the thumbnail.
_CHUNK = 64
_PHANTOM_SIDE = 64
_TEXTS = ("reason", "note", "body_part", "digest")

# Two images are the same if their thumbnails correlate at low resolution, and so do the details
# beyond it. Among 3,000 children's chests and hands and 3,000 adults' chests, different images
# reached 0.87 in detail; copies at 60 % of the size, JPEG quality 30, with another gamma, contrast
# and brightness had a median of 0.988, and one in 150 fell below 0.95.
SAME_IN_DETAIL = 0.93
_SAME_IN_THE_LARGE = 0.98
_BLOCK = 2048
_FEW = 0.02  # Of the images of a source: more are a second kind of image, not outliers.
_FEW_AGES = 0.1
_ENOUGH = 20  # Least number of images for finding unusual ones.
_ALIKE, _NEGATIVE = 0.4, -0.3  # Correlation with the mean of the others.


@dataclasses.dataclass(frozen=True)
class Images:
    """Measurements of each image, as columns `[n]`. NaN and zero if `reason` is not empty.

    Attributes:
      reason: the reason why the image could not be read; empty if it was read.
      note: decisions of the decoder.
      body_part: body part in the header; empty if it is missing or the file has no header.
      digest: hash of the file's bytes.
      height, width, bits: as stored.
      brightness, contrast: mean and standard deviation of the image, of the full range.
      border: mean of its outermost sixteenth, of the full range.
      thumbnail: uint8 `[n, 32, 32]`, stretched.
    """

    reason: np.ndarray
    note: np.ndarray
    body_part: np.ndarray
    digest: np.ndarray
    height: np.ndarray
    width: np.ndarray
    bits: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    border: np.ndarray
    thumbnail: np.ndarray

    @property
    def aspect_ratio(self) -> np.ndarray:
        ratio: np.ndarray = self.width / np.where(self.height > 0, self.height, np.nan)
        return ratio

    @property
    def readable(self) -> np.ndarray:
        readable: np.ndarray = self.reason == ""
        return readable


def _measure(path: str) -> tuple[Any, ...]:
    """One image's row of `Images`."""
    blank = np.zeros((32, 32), np.uint8)
    try:
        if path.startswith(PHANTOM_PREFIX):
            pixels = load_image(path, Preprocessing(_PHANTOM_SIDE))
            digest = hashlib.blake2b(pixels.tobytes()).digest()[:16]
            header = Header(size=(_PHANTOM_SIDE, _PHANTOM_SIDE))
        else:
            radiograph = read_radiograph(path, min_side=_DECODE_SIDE)
            with remote.open_binary(path) as file:
                digest = hashlib.file_digest(file, "blake2b").digest()[:16]
            pixels, header = radiograph.pixels, radiograph.header
        small = to_square(pixels, THUMBNAIL)
    except UnreadableImage as error:
        return error.reason, "", "", b"", 0, 0, 0, np.nan, np.nan, np.nan, blank
    unit = small / np.float32(255)
    margins = (unit[:2], unit[-2:], unit[:, :2], unit[:, -2:])
    border = np.concatenate([margin.ravel() for margin in margins])
    notes = [note for note in header.notes if not note.startswith("age")]
    if header.patient_key and path.lower().endswith(PICTURE_SUFFIXES):
        notes.append("DICOM under the name of a picture; its patient, age and sex are not read")
    note = "; ".join(notes)
    measures = unit.mean(), unit.std(), border.mean()
    return "", note, header.body_part, digest, *header.size, header.bits, *measures, small


def _measure_many(paths: Sequence[str]) -> list[tuple[Any, ...]]:
    return [_measure(path) for path in paths if not stopping()]


def measure(
    paths: Sequence[str], *, num_processes: int, progress: Callable[[int], object] = lambda n: None
) -> Images:
    """Reads every image once, in parallel, and measures it.

    Args:
      paths: files or phantom addresses.
      num_processes: how many to use; 1 works in this process.
      progress: called with the number of images done since the last call.
    """
    chunks = [paths[at : at + _CHUNK] for at in range(0, len(paths), _CHUNK)]
    rows: list[tuple[Any, ...]] = []
    if num_processes <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            rows += _measure_many(chunk)
            progress(len(chunk))
    else:
        with WorkerPool(min(num_processes, len(chunks))) as pool:
            try:
                for part in pool.map(_measure_many, chunks):
                    rows += part
                    progress(len(part))
            except BaseException:  # Workers ignore Ctrl-C.
                pool.stop()
                pool.shutdown(cancel_futures=True)
                raise
    columns: dict[str, np.ndarray] = {}
    for field, values in zip(dataclasses.fields(Images), zip(*rows, strict=True), strict=True):
        if field.name == "thumbnail":
            columns[field.name] = np.stack(values)
        else:
            columns[field.name] = np.array(values, object if field.name in _TEXTS else np.float64)
    return Images(**columns)


def same_images(images: Images, compare: np.ndarray | None = None) -> list[list[int]]:
    """Groups of rows that show the same image: equal bytes, or thumbnails that are alike.

    Args:
      images: what was measured.
      compare: boolean `[n]`, the images whose thumbnails to compare; None compares all.
    """
    parent = list(range(len(images.reason)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for i in np.flatnonzero(images.readable).tolist():
        parent[root(i)] = root(first.setdefault(images.digest[i], i))
    compare = images.readable if compare is None else images.readable & compare
    # An image without contrast has no correlation with any other.
    for i, j in _alike(images.thumbnail, np.flatnonzero(compare & (images.contrast > 0.01))):
        parent[root(j)] = root(i)
    groups = defaultdict(list)
    for i in range(len(parent)):
        groups[root(i)].append(i)
    return [rows for rows in groups.values() if len(rows) > 1]


def _alike(thumbnails: np.ndarray, rows: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows whose thumbnails `[n, 32, 32]` show the same image."""
    if len(rows) < 2:
        return []
    means = thumbnails[rows].reshape(len(rows), 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32)
    large = _normalised(means)
    pairs: list[tuple[int, int]] = []
    for a in range(0, len(rows), _BLOCK):
        for b in range(a, len(rows), _BLOCK):
            near = large[a : a + _BLOCK] @ large[b : b + _BLOCK].T >= _SAME_IN_THE_LARGE
            i, j = np.nonzero(near)
            i, j = i + a, j + b
            i, j = i[i < j], j[i < j]
            for at in range(0, len(i), _BLOCK):
                left, right = rows[i[at : at + _BLOCK]], rows[j[at : at + _BLOCK]]
                detail = (_normalised(_detail(thumbnails[side])) for side in (left, right))
                same = np.einsum("nd,nd->n", *detail) >= SAME_IN_DETAIL
                pairs += zip(left[same].tolist(), right[same].tolist(), strict=True)
    return pairs


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails `[n, 32, 32]` minus their 5x5 smoothing."""
    padded = np.pad(thumbnails.astype(np.float32), ((0, 0), (2, 2), (2, 2)), mode="edge")
    rows = np.sum([padded[:, y : y + 32] for y in range(5)], axis=0)
    detail: np.ndarray = (
        padded[:, 2:-2, 2:-2] - np.mean([rows[:, :, x : x + 32] for x in range(5)], axis=0) / 5
    )
    return detail


def _normalised(images: np.ndarray) -> np.ndarray:
    """Images `[n, h, w]` as vectors `[n, h * w]` whose dot products are correlations."""
    vectors = images.reshape(len(images), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def outliers(images: Images, records: Records) -> tuple[list[tuple[int, str]], list[str]]:
    """Rows that differ from the rest of their source, with the reason; and checks not possible."""
    found = []
    not_judged = []
    for source in dict.fromkeys(records.source):
        rows = np.flatnonzero((records.source == source) & images.readable)
        found += _outliers_of_source(images, rows)
        inverted, unknown = _inverted(images, records, rows)
        found += [(row, "perhaps inverted") for row in inverted]
        if unknown:
            not_judged.append(
                f"whether an image is inverted was not judged for {unknown:,} of {len(rows):,} "
                f"images of {source}: fewer than {_ENOUGH} of one body part or label, or these are "
                "too different from each other"
            )
    return found, not_judged


def _outliers_of_source(images: Images, rows: np.ndarray) -> list[tuple[int, str]]:
    found = [(int(row), "almost without contrast") for row in rows[images.contrast[rows] < 0.02]]
    if len(rows) < _ENOUGH:
        return found
    bits, counts = np.unique(images.bits[rows], return_counts=True)
    for value, count in zip(bits, counts, strict=True):
        if count <= _FEW * len(rows):
            found += [
                (int(row), f"{value:.0f} bits, unlike the others")
                for row in rows[images.bits[rows] == value]
            ]
    for name, values in (
        ("size", np.log(images.height[rows] * images.width[rows])),
        ("aspect ratio", np.log(images.aspect_ratio[rows])),
    ):
        far = _far(values, least_spread=0.05)
        if far.mean() <= _FEW:
            found += [(int(row), f"unusual {name}") for row in rows[far]]
    return found


def _far(values: np.ndarray, least_spread: float) -> np.ndarray:
    """Boolean `[n]`: more than six robust standard deviations from the median."""
    middle = np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), least_spread)
    far: np.ndarray = np.abs(values - middle) > 6 * spread
    return far


def _inverted(images: Images, records: Records, rows: np.ndarray) -> tuple[list[int], int]:
    """Rows that look like the negative of their group's mean, and the number of rows not judged.

    Groups are the images of a body part and those of a label.
    """
    found: set[int] = set()
    judged: set[int] = set()
    for column in (images.body_part, records.label):
        for name in set(column[rows]):
            group = rows[column[rows] == name]
            if len(group) < _ENOUGH:
                continue
            thumbnails = _normalised(images.thumbnail[group])
            mean = thumbnails.mean(axis=0)
            likeness = thumbnails @ (mean / max(float(np.linalg.norm(mean)), 1e-6))
            if np.median(likeness) > _ALIKE:
                judged.update(group.tolist())
                found.update(group[likeness < _NEGATIVE].tolist())
    return sorted(found), len(rows) - len(judged)


def age_outliers(records: Records) -> list[tuple[np.ndarray, str]]:
    """Rows whose ages may be mistakes, with the reason, by source."""
    found = []
    for source in dict.fromkeys(records.source):
        rows = np.flatnonzero((records.source == source) & records.has_age)
        if len(rows) < _ENOUGH:
            continue
        ages = records.age_months[rows].astype(np.float64)
        far = _far(ages, least_spread=1.0)
        if 0 < far.mean() <= _FEW_AGES:
            named = ", ".join(f"{age:g}" for age in sorted(set(ages[far]))[-5:])
            found.append((rows[far], f"ages far from the others of {source} ({named} months)"))
        zero = ages == 0
        if zero.mean() > 0.02 and not ((ages > 0) & (ages < 12)).any():
            found.append((rows[zero], f"ages of 0 in {source}, where no other is below a year"))
    return found
