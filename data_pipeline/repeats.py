"""Duplicate images: the same file in several rows, and files with the same content."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from data_pipeline.contents import equal_files, rows_of_equal_keys
from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.splits import Split

_log = logging.getLogger(__name__)


def check_repeats(split: Split, **limits: Any) -> None:
    """Warns of images that occur more than once, before anything is trained on them.

    Files are compared by size first, and read only where sizes are equal. Phantom images are
    compared by their address.

    Args:
      split: split of the data.
      **limits: see `contents.equal_files`.

    Raises:
      DataError: a file is listed several times with different labels.
    """
    everyone = Records.concatenate([split[name] for name in SPLITS])
    sides = np.repeat(SPLITS, [len(split[name]) for name in SPLITS])
    paths = [os.path.normpath(p) if os.path.isabs(p) else p for p in everyone.image_path]
    by_path = rows_of_equal_keys(zip(paths, range(len(paths)), strict=True))
    for rows in by_path:
        labels = sorted({everyone.label[row] for row in rows} - {""})
        if len(labels) > 1:
            raise DataError(
                f"{everyone.image_path[rows[0]]} is listed {len(rows)} times with different "
                f"labels: {', '.join(labels)}; keep one row, or join several findings as "
                f"{'|'.join(labels)} in it"
            )
    groups = by_path + equal_files(paths, **limits)
    across = [rows for rows in groups if len({sides[row] for row in rows}) > 1]
    for rows in across[:3]:
        where = ", ".join(f"{everyone.image_path[row]} ({sides[row]})" for row in rows[:3])
        _log.warning("the same image is in several splits: %s", where)
    if len(across) > 3:
        _log.warning("and %d more images are in several splits; configs/check_data.py lists them",
                     len(across) - 3)  # fmt: skip
    labels = [sorted({everyone.label[row] for row in rows} - {""}) for rows in groups]
    torn = [(rows, names) for rows, names in zip(groups, labels, strict=True) if len(names) > 1]
    for rows, names in torn[:3]:
        where = ", ".join(everyone.image_path[row] for row in rows[:3])
        _log.warning("the same image has several labels (%s): %s", ", ".join(names), where)
    if len(torn) > 3:
        _log.warning("and %d more images have several labels", len(torn) - 3)
    for side in ("train", "test"):
        here = [[row for row in rows if sides[row] == side] for rows in groups]
        repeated = [row for rows in here for row in rows[1:]]
        if repeated:
            _log.warning(
                "%d images for %s repeat another one, such as %s; configs/check_data.py lists them",
                len(repeated),
                side,
                everyone.image_path[repeated[0]],
            )
