"""NIH ChestX-ray14: 112,120 chest images of 30,805 patients, 5,402 of them under 18."""

from __future__ import annotations

import logging
from pathlib import Path

from data_pipeline.adapters.place import (
    find_file,
    find_files,
    image_index,
    keep_present,
    leave_out_children,
    parse_place,
)
from data_pipeline.adapters.source_tables import ADULT_MONTHS, ages_in_months, read_table
from data_pipeline.cells import SEXES, join_findings
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

_OLDEST_MONTHS = 120 * 12.0  # Older releases hold ages up to 414 years.


def read_nih(place: str) -> Records:
    """Reads `PATH[:min_age_months=216]`: `Data_Entry_2017*.csv` and the images at any depth.

    The label joins an image's findings (`No Finding` counts as one). Images of `test_list.txt`, if
    it exists, are the test split. The others are for training; if `train_val_list.txt` exists, only
    the images that it lists.

    Raises:
      DataError: the table or every image is missing.
    """
    root, options = parse_place("nih", place, min_age_months=ADULT_MONTHS)
    table = read_table(
        "nih",
        find_file("nih", root, "Data_Entry_2017*.csv"),
        (
            "Image Index",
            "Finding Labels",
            "Patient ID",
            "Patient Age",
            "Patient Gender",
            "View Position",
        ),
    )
    index = image_index(root, (".png", ".jpg", ".jpeg"))
    names = table["Image Index"]
    present = keep_present("nih", [index.get(name) for name in names])
    tested, trained = (
        {name for path in find_files(root, pattern) for name in _read_list(path)}
        for pattern in ("test_list*.txt", "train_val_list*.txt")
    )
    if tested and tested.isdisjoint(names):
        _log.warning("nih: test_list.txt names no image of the table, so none is a test image")
    records = Records.create(
        [index.get(name, "") for name in names],
        source=f"nih:{root}",
        patient_id=[f"nih-{patient}" for patient in table["Patient ID"]],
        age_months=ages_in_months("nih", table["Patient Age"], 12, _OLDEST_MONTHS),
        sex=[SEXES.get(sex.lower(), "") for sex in table["Patient Gender"]],
        view=table["View Position"],
        label=[join_findings(cell.split("|")) for cell in table["Finding Labels"]],
        split=[_role(name, tested, trained) for name in names],
    )
    return leave_out_children("nih", records.take(present), options["min_age_months"])


def _role(name: str, tested: set[str], trained: set[str]) -> str:
    if name in tested:
        return "test"
    return "train" if tested and (name in trained or not trained) else ""


def _read_list(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"nih: {path} cannot be read as a list of names ({error})") from None
