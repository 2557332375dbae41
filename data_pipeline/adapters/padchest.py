"""PadChest: 160,000 chest images of one Spanish hospital, 16-bit PNG."""

from __future__ import annotations

import ast
import math
import os

from data_pipeline.adapters.place import (
    ADULT_MONTHS,
    SEXES,
    find_file,
    leave_out_children,
    number,
    parse_place,
    read_table,
)
from data_pipeline.manifest import Records

_MAX_AGE_YEARS = 120


def read_padchest(place: str) -> Records:
    """Reads `PATH[:min_age_months=216]`: the label table and `ImageDir/ImageID` (or all in one).

    Age is the year of the study less the year of birth. An image with exactly one label is labelled
    with it; without labels the condition is unknown, not normal.

    Raises:
      DataError: the table is missing.
    """
    root, options = parse_place("padchest", place, min_age_months=ADULT_MONTHS)
    path = find_file("padchest", root, "PADCHEST*.csv*", "*adchest*.csv*", "*.csv*")
    table = read_table(
        "padchest",
        path,
        (
            "ImageID",
            "ImageDir",
            "PatientID",
            "?StudyDate_DICOM",
            "?PatientBirth",
            "?PatientSex_DICOM",
            "?Projection",
            "?ViewPosition_DICOM",
            "?Labels",
        ),
    )
    base = os.path.join(path.parent, "")
    rows = list(zip(table["ImageDir"], table["ImageID"], strict=True))
    nested = bool(rows) and os.path.isdir(f"{base}{rows[0][0]}")
    projections = zip(table["Projection"], table["ViewPosition_DICOM"], strict=True)
    dates = zip(table["StudyDate_DICOM"], table["PatientBirth"], strict=True)
    records = Records.create(
        [f"{base}{folder}/{name}" if nested else f"{base}{name}" for folder, name in rows],
        source=f"padchest:{root}",
        patient_id=[f"padchest-{patient}" for patient in table["PatientID"]],
        age_months=[_age(study, birth) for study, birth in dates],
        sex=[SEXES.get(sex.lower(), "") for sex in table["PatientSex_DICOM"]],
        view=[projection or view for projection, view in projections],
        label=[_label(text) for text in table["Labels"]],
    )
    return leave_out_children("padchest", records, options["min_age_months"])


def _age(study: str, birth: str) -> float:
    years = number(study[:4]) - number(birth)
    return 12 * years if 0 <= years <= _MAX_AGE_YEARS else math.nan


def _label(text: str) -> str:
    """`"['normal']"` -> `normal`; empty for several labels, none, or what is no list."""
    try:
        labels = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ""
    if not isinstance(labels, list):
        return ""
    names = {str(name).strip() for name in labels} - {""}
    return names.pop() if len(names) == 1 else ""
