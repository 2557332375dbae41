"""Writes records as a manifest."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.manifest_header import BOX_COLUMNS, OPTIONAL_COLUMNS
from data_pipeline.records import Records
from data_pipeline.tables import neutralise, write_csv


def write_manifest(
    path: str | os.PathLike[str],
    records: Records,
    extra: Mapping[str, Sequence[Any]] | None = None,
    *,
    relative: bool = True,
) -> None:
    """Writes records as a manifest that `read_manifest` reads back to the same columns.

    Columns of uncertain findings and of boxes are written where an image has any.

    Args:
      path: the CSV to write.
      records: what to list.
      extra: further columns, such as a reason, of the same length.
      relative: write file paths relative to the manifest's folder.
    """
    folder = str(Path(path).parent.absolute())

    def name(image_path: str) -> str:
        if not relative or not os.path.isabs(image_path):
            return image_path
        image_path = os.path.relpath(image_path, folder)
        # Not an apostrophe, as for other text: other programs open the path as it is.
        return f"./{image_path}" if image_path != neutralise(image_path) else image_path

    columns: dict[str, Sequence[Any]] = {"image_path": [name(p) for p in records.image_path]}
    columns |= {column: getattr(records, column) for column in OPTIONAL_COLUMNS}
    columns["age_months"] = ["" if math.isnan(age) else f"{age:.9g}" for age in records.age_months]
    columns |= _finding_cells(records) | dict(extra or {})
    write_csv(path, list(columns), zip(*columns.values(), strict=True))


def _finding_cells(records: Records) -> dict[str, list[str]]:
    """Columns of a manifest for the uncertain findings and boxes that are there, if any."""
    columns = {}
    if any(records.uncertain):
        columns["uncertain"] = ["|".join(names) for names in records.uncertain]
    if any(records.boxes):
        for i, name in enumerate((*BOX_COLUMNS, "box_label")):
            columns[name] = [
                "|".join(b[i] if name == "box_label" else f"{b[i]:.9g}" for b in boxes)
                for boxes in records.boxes
            ]
    return columns
