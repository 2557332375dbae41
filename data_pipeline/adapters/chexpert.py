"""CheXpert: 223,414 chest images of 64,540 adults in the training table."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.adapters.place import keep_present, leave_out_children, on_disk, parse_place
from data_pipeline.adapters.source_tables import ADULT_MONTHS, ages_in_months, number, read_table
from data_pipeline.cells import SEXES, join_findings
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

    The label joins the findings marked 1; those marked -1 are `uncertain`. Age 0 means unknown, and
    the source caps ages at 90 years. Images that are not on disk are left out.

    Raises:
      DataError: no table or no image is found, or a path in a table is not of CheXpert's form.
    """
    root, options = parse_place("chexpert", place, min_age_months=ADULT_MONTHS)
    tables = [(root / name, split) for name, split in _TABLES.items() if (root / name).is_file()]
    if not tables:
        raise DataError(f"chexpert: no train.csv in {root}; name the folder that holds it")
    parts = [_read_table(path, split, f"chexpert:{root}") for path, split in tables]
    records = Records.concatenate(parts)
    records = records.take(keep_present("chexpert", on_disk(records.image_path.tolist())))
    return leave_out_children("chexpert", records, options["min_age_months"])


def _read_table(path: Path, split: str, source: str) -> Records:
    columns = ("Path", "?Sex", "?Age", "?Frontal/Lateral", "?AP/PA")
    table = read_table("chexpert", path, columns + tuple(f"?{name}" for name in _FINDINGS))
    paths = [entry.replace("\\", "/") for entry in table["Path"]]
    if not paths:
        raise DataError(f"chexpert: {path} lists no image")
    base = _base(path.parent, paths[0])
    views = zip(table["Frontal/Lateral"], table["AP/PA"], strict=True)
    marks = list(zip(*(map(number, table[name]) for name in _FINDINGS), strict=True))
    ages = ["" if number(age) == 0 else age for age in table["Age"]]
    return Records.create(
        [base + entry.partition("/")[2] for entry in paths],
        source=source,
        patient_id=[_patient(entry, path) for entry in paths],
        age_months=ages_in_months("chexpert", ages, 12),
        sex=[SEXES.get(sex.lower(), "") for sex in table["Sex"]],
        view=[detail or plane for plane, detail in views],
        label=[join_findings(_marked(row, 1)) for row in marks],
        uncertain=[tuple(sorted(_marked(row, -1))) for row in marks],
        split=[split] * len(paths),
    )


def _base(folder: Path, first: str) -> str:
    """The folder that paths without their first part are relative to.

    Paths start with the name of the release, such as `CheXpert-v1.0-small/`. It may be the folder
    itself, a subfolder, or renamed. Some images, even the first, may be missing.
    """
    head, _, rest = first.partition("/")
    inside = os.path.join(folder, head)
    # Not Path.is_dir, which raises an error for a name that is too long.
    here = os.path.isdir(os.path.join(folder, rest.partition("/")[0]))
    return os.path.join(inside if os.path.isdir(inside) and not here else folder, "")


def _patient(entry: str, path: Path) -> str:
    for part in entry.split("/"):
        if part.startswith("patient"):
            return f"chexpert-{part.removeprefix('patient')}"
    raise DataError(f"chexpert: {path} has a Path without a patient folder: {entry!r}")


def _marked(marks: tuple[float, ...], value: float) -> list[str]:
    return [name for name, mark in zip(_FINDINGS, marks, strict=True) if mark == value]
