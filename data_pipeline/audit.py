"""What can be seen in images before training on them: unreadable files, repeats, outliers.

Nothing here prints or writes; `infantxray/check_data.py` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from data_pipeline.decode import (
    PHANTOM_PREFIX,
    Preprocessing,
    load_image,
    read_radiograph,
    to_square,
)
from data_pipeline.errors import UnreadableImage
from data_pipeline.manifest import Records

THUMBNAIL = Preprocessing(image_size=32, resize="squash")
_DECODE_SIDE = 64  # Pixels: twice the thumbnail.
_CHUNK = 64
_PHANTOM_SIDE = 64

# Two images are the same if their thumbnails correlate in the large, and in what remains of them
# without the large. Among 3,000 children's chests and hands and 3,000 adults' chests, different
# images reached 0.87 in detail; copies at 60 % of the size, JPEG quality 30, another gamma, contrast
# and brightness had a median of 0.988, and one in 150 fell below 0.95.
SAME_IN_DETAIL = 0.93
_SAME_IN_THE_LARGE = 0.98
_BLOCK = 2048
_FEW = 0.02  # Of the images of a source.


@dataclasses.dataclass(frozen=True)
class Images:
    """What was measured of each image, as columns `[n]`. NaN and zero where `reason` is not empty.

    Attributes:
      reason: why the image could not be read; empty if it could.
      note: what the decoder had to decide by itself.
      digest: hash of the file's bytes.
      height, width, bits: as stored.
      brightness, contrast: mean and standard deviation of the image, of the full range.
      border: mean of its outermost sixteenth, of the full range.
      thumbnail: uint8 `[n, 32, 32]`, stretched.
    """

    reason: np.ndarray
    note: np.ndarray
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
        return self.width / np.where(self.height > 0, self.height, np.nan)

    @property
    def readable(self) -> np.ndarray:
        return self.reason == ""


def _measure(path: str) -> tuple:
    """One image's row of `Images`."""
    blank = np.zeros((32, 32), np.uint8)
    try:
        if path.startswith(PHANTOM_PREFIX):
            pixels = load_image(path, Preprocessing(_PHANTOM_SIDE))
            digest, size, bits, notes = hashlib.blake2b(pixels).digest()[:16], pixels.shape, 8, ()
        else:
            radiograph = read_radiograph(path, min_side=_DECODE_SIDE)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "blake2b").digest()[:16]
            pixels, header = radiograph.pixels, radiograph.header
            size, bits, notes = header.size, header.bits, header.notes
        small = to_square(pixels, THUMBNAIL)
    except UnreadableImage as error:
        return error.reason, "", b"", 0, 0, 0, np.nan, np.nan, np.nan, blank
    unit = small / np.float32(255)
    margins = (unit[:2], unit[-2:], unit[:, :2], unit[:, -2:])
    border = np.concatenate([margin.ravel() for margin in margins])
    note = "; ".join(note for note in notes if not note.startswith("age"))
    return "", note, digest, *size, bits, unit.mean(), unit.std(), border.mean(), small


def _measure_many(paths: Sequence[str]) -> list[tuple]:
    return [_measure(path) for path in paths]


def measure(
    paths: Sequence[str], *, num_processes: int, progress: Callable[[int], object] = lambda n: None
) -> Images:
    """Reads every image once, in parallel.

    Args:
      paths: files or phantom addresses.
      num_processes: how many to use; 1 works in this process.
      progress: called with the number of images done since the last call.
    """
    chunks = [paths[at : at + _CHUNK] for at in range(0, len(paths), _CHUNK)]
    rows: list[tuple] = []
    if num_processes <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            rows += _measure_many(chunk)
            progress(len(chunk))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(num_processes, len(chunks)), mp_context=context) as pool:
            for part in pool.map(_measure_many, chunks):
                rows += part
                progress(len(part))
    reason, note, digest, height, width, bits, brightness, contrast, border, thumbnail = zip(
        *rows, strict=True
    )
    return Images(
        reason=np.array(reason, object),
        note=np.array(note, object),
        digest=np.array(digest, object),
        height=np.array(height, np.float64),
        width=np.array(width, np.float64),
        bits=np.array(bits, np.float64),
        brightness=np.array(brightness, np.float64),
        contrast=np.array(contrast, np.float64),
        border=np.array(border, np.float64),
        thumbnail=np.stack(thumbnail),
    )


def same_images(radiographs: Images, compare: np.ndarray | None = None) -> list[list[int]]:
    """Groups of rows that show the same image: equal bytes, or thumbnails that are alike.

    Args:
      images: what was measured.
      compare: boolean `[n]`, the images whose thumbnails to compare; None compares all.
    """
    parent = np.arange(len(radiographs.reason))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for i in np.flatnonzero(radiographs.readable):
        parent[root(i)] = root(first.setdefault(radiographs.digest[i], i))
    compare = radiographs.readable if compare is None else radiographs.readable & compare
    # An image without contrast resembles nothing, or anything.
    for i, j in _alike(
        radiographs.thumbnail, np.flatnonzero(compare & (radiographs.contrast > 0.01))
    ):
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
    pairs = []
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
    """What 5x5 smoothing takes from thumbnails `[n, 32, 32]`."""
    padded = np.pad(thumbnails.astype(np.float32), ((0, 0), (2, 2), (2, 2)), mode="edge")
    rows = sum(padded[:, y : y + 32] for y in range(5))
    return padded[:, 2:-2, 2:-2] - sum(rows[:, :, x : x + 32] for x in range(5)) / 25


def _normalised(images: np.ndarray) -> np.ndarray:
    """Images `[n, h, w]` as vectors `[n, h * w]` whose dot products are correlations."""
    vectors = images.reshape(len(images), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def outliers(radiographs: Images, records: Records) -> list[tuple[int, str]]:
    """Rows that differ from the rest of their source, with how."""
    found = []
    for source in dict.fromkeys(records.source):
        rows = np.flatnonzero((records.source == source) & radiographs.readable)
        if len(rows):
            found += _outliers_of_source(radiographs, rows)
    return found


def _outliers_of_source(radiographs: Images, rows: np.ndarray) -> list[tuple[int, str]]:
    found = []
    for row in rows[radiographs.contrast[rows] < 0.02]:
        found.append((int(row), "almost without contrast"))
    if len(rows) < 20:
        return found
    bits, counts = np.unique(radiographs.bits[rows], return_counts=True)
    for value, count in zip(bits, counts, strict=True):
        if count <= _FEW * len(rows):
            found += [
                (int(row), f"{value:.0f} bits, unlike the others")
                for row in rows[radiographs.bits[rows] == value]
            ]
    for name, values in (
        ("size", np.log(radiographs.height[rows] * radiographs.width[rows])),
        ("aspect ratio", np.log(radiographs.aspect_ratio[rows])),
    ):
        middle = np.median(values)
        spread = max(1.4826 * np.median(np.abs(values - middle)), 0.05)
        far = np.abs(values - middle) > 6 * spread
        if far.mean() <= _FEW:  # More of them are a second kind of image, not outliers.
            found += [(int(row), f"unusual {name}") for row in rows[far]]
    # An inverted image looks like the negative of the others' mean.
    thumbnails = _normalised(radiographs.thumbnail[rows])
    mean = thumbnails.mean(axis=0)
    likeness = thumbnails @ (mean / max(np.linalg.norm(mean), 1e-6))
    if np.median(likeness) > 0.4:
        found += [(int(row), "perhaps inverted") for row in rows[likeness < -0.3]]
    return found
