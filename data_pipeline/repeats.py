"""Duplicate images: the same file in several rows, and files with the same content."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.splits import Split

_log = logging.getLogger(__name__)

_MAX_BYTES = 2 * 2**30
_MAX_SECONDS = 20.0


def check_repeats(
    split: Split, *, max_bytes: int = _MAX_BYTES, max_seconds: float = _MAX_SECONDS
) -> None:
    """Warns of images that occur more than once, before anything is trained on them.

    Files are compared by size first, and read only where sizes are equal. Phantom images, which
    are drawn from their address, are compared by that.

    Args:
      split: of the data.
      max_bytes, max_seconds: after so much, the rest of the files is not compared, which is logged.

    Raises:
      DataError: a file is listed several times with different labels.
    """
    everyone = Records.concatenate([split[name] for name in SPLITS])
    sides = np.repeat(SPLITS, [len(split[name]) for name in SPLITS])
    paths = [os.path.normpath(p) if os.path.isabs(p) else p for p in everyone.image_path]
    by_path = _groups(zip(paths, range(len(paths)), strict=True))
    for rows in by_path:
        labels = sorted({everyone.label[row] for row in rows} - {""})
        if len(labels) > 1:
            raise DataError(
                f"{everyone.image_path[rows[0]]} is listed {len(rows)} times with different "
                f"labels: {', '.join(labels)}; keep one row, or join several findings as "
                f"{'|'.join(labels)} in it"
            )
    contents = _content(paths, max_bytes, time.monotonic() + max_seconds)
    groups = by_path + _groups(contents)
    across = [rows for rows in groups if len({sides[row] for row in rows}) > 1]
    for rows in across[:3]:
        where = ", ".join(f"{everyone.image_path[row]} ({sides[row]})" for row in rows[:3])
        _log.warning("the same image is in several splits: %s", where)
    if len(across) > 3:
        _log.warning("and %d more images are in several splits; configs/check_data.py lists them",
                     len(across) - 3)  # fmt: skip
    repeated = sum(max(0, sum(sides[row] == "train" for row in rows) - 1) for rows in groups)
    if repeated:
        example = next(rows for rows in groups if sum(sides[row] == "train" for row in rows) > 1)
        _log.warning(
            "%d training images repeat another one, such as %s; configs/check_data.py lists them",
            repeated,
            everyone.image_path[example[1]],
        )


def _groups(pairs: Iterable[tuple[object, int]]) -> list[list[int]]:
    """Rows with the same key, where there are several."""
    found: dict[object, list[int]] = {}
    for key, row in pairs:
        found.setdefault(key, []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]


def _content(paths: list[str], max_bytes: int, deadline: float) -> Iterator[tuple[bytes, int]]:
    """Digests of the files that have the size of another one, with the first row of each path."""
    first = {path: row for row, path in reversed(list(enumerate(paths)))}
    by_size: dict[int, list[str]] = {}
    for path in first:
        if os.path.isabs(path) and time.monotonic() < deadline:
            try:
                by_size.setdefault(os.stat(path).st_size, []).append(path)
            except OSError:
                continue  # Reading it will say why.
    read = compared = 0
    alike = {size: group for size, group in by_size.items() if len(group) > 1}
    for size, group in alike.items():
        for path in group:
            if read > max_bytes or time.monotonic() > deadline:
                total = sum(map(len, alike.values()))
                _log.warning(
                    "repeated images were looked for among %d of %d files of equal size; "
                    "configs/check_data.py compares all",
                    compared,
                    total,
                )
                return
            try:
                digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
            except OSError:
                continue
            read += size
            compared += 1
            yield digest, first[path]
