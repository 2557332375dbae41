"""NIH ChestX-ray14: 112,120 chest images of 30,805 patients, 5,402 of them under 18."""

from __future__ import annotations

import math
import re

from data_pipeline.adapters.place import (
    ADULT_MONTHS,
    SEXES,
    find_file,
    image_index,
    keep_present,
    leave_out_children,
    parse_place,
    read_table,
)
from data_pipeline.manifest import Records

_AGE = re.compile(r"(\d{1,3})([YMD]?)")
_MONTHS = {"": 12.0, "Y": 12.0, "M": 1.0, "D": 12 / 365.25}
_MAX_AGE_MONTHS = 120 * 12.0  # Older releases hold ages up to 414.


def read_nih(place: str) -> Records:
    """Reads `PATH[:min_age_months=216]`: `Data_Entry_2017*.csv` and the images at any depth.

    An image with exactly one finding is labelled with it (`No Finding` included), one with several
    is not. Images of `test_list.txt` are the test split where that list is there.

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
    tested = set()
    for path in root.glob("test_list*.txt"):
        tested.update(path.read_text(encoding="utf-8").split())
    records = Records.create(
        [index.get(name, "") for name in names],
        source=f"nih:{root}",
        patient_id=[f"nih-{patient}" for patient in table["Patient ID"]],
        age_months=[_age(text) for text in table["Patient Age"]],
        sex=[SEXES.get(sex.lower(), "") for sex in table["Patient Gender"]],
        view=table["View Position"],
        label=["" if "|" in findings else findings for findings in table["Finding Labels"]],
        split=["test" if name in tested else "train" if tested else "" for name in names],
    )
    return leave_out_children("nih", records.take(present), options["min_age_months"])


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    months = int(match[1]) * _MONTHS[match[2]] if match else math.nan
    return months if months <= _MAX_AGE_MONTHS else math.nan
