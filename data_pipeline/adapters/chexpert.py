"""CheXpert: 223,414 chest images of 64,540 adults in the training table."""

from __future__ import annotations

import math
import os
from pathlib import Path

from data_pipeline.adapters.place import (
    ADULT_MONTHS,
    SEXES,
    leave_out_children,
    number,
    parse_place,
    read_table,
)
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
_TABLES = {"train.csv": "train", "valid.csv": "validation", "test.csv": "test"}


def read_chexpert(place: str) -> Records:
    """Reads `PATH[:min_age_months=216]`, where `train.csv` lies (and `valid.csv`, `test.csv`).

    An image with exactly one finding, and none uncertain, is labelled with it. Age 0 stands for
    unknown there; ages are capped at 90 years by the source.

    Raises:
      DataError: no table is found, or a path in it is not of CheXpert's form.
    """
    root, options = parse_place("chexpert", place, min_age_months=ADULT_MONTHS)
    tables = [(root / name, split) for name, split in _TABLES.items() if (root / name).is_file()]
    if not tables:
        raise DataError(f"chexpert: no train.csv in {root}; name the folder that holds it")
    parts = [_read_table(path, split, f"chexpert:{root}") for path, split in tables]
    records = Records.concatenate(parts)
    return leave_out_children("chexpert", records, options["min_age_months"])


def _read_table(path: Path, split: str, source: str) -> Records:
    columns = ("Path", "?Sex", "?Age", "?Frontal/Lateral", "?AP/PA")
    table = read_table("chexpert", path, columns + tuple(f"?{name}" for name in _FINDINGS))
    paths = table["Path"]
    if not paths:
        raise DataError(f"chexpert: {path} lists no image")
    base = _base(path.parent, paths[0])
    views = zip(table["Frontal/Lateral"], table["AP/PA"], strict=True)
    marks = zip(*(table[name] for name in _FINDINGS), strict=True)
    return Records.create(
        [base + entry.partition("/")[2] for entry in paths],
        source=source,
        patient_id=[_patient(entry, path) for entry in paths],
        age_months=[12 * number(age) or math.nan for age in table["Age"]],
        sex=[SEXES.get(sex.lower(), "") for sex in table["Sex"]],
        view=[detail or plane for plane, detail in views],
        label=[_label(row) for row in marks],
        split=[split] * len(paths),
    )


def _base(folder: Path, first: str) -> str:
    """What to put before a path without its first part.

    Paths start with the release's name, such as `CheXpert-v1.0-small/`, which may be the folder
    itself, lie in it, or have been renamed.
    """
    head, _, rest = first.partition("/")
    inside = folder / head
    return os.path.join(inside if not (folder / rest).exists() and inside.is_dir() else folder, "")


def _patient(entry: str, path: Path) -> str:
    for part in entry.split("/"):
        if part.startswith("patient"):
            return f"chexpert-{part.removeprefix('patient')}"
    raise DataError(f"chexpert: {path} has a Path without a patient folder: {entry!r}")


def _label(marks: tuple[str, ...]) -> str:
    """The only finding marked 1, if no other is marked 1 or -1 (uncertain)."""
    values = [number(mark) for mark in marks]
    positive = [name for name, value in zip(_FINDINGS, values, strict=True) if value == 1]
    return positive[0] if len(positive) == 1 and -1.0 not in values else ""
