"""PadChest: 160,000 chest images of one Spanish hospital, 16-bit PNG."""

from __future__ import annotations

import ast
import math

from data_pipeline.adapters.place import (
    find_file,
    image_index,
    keep_present,
    leave_out_children,
    parse_place,
)
from data_pipeline.adapters.source_tables import ADULT_MONTHS, number, read_table
from data_pipeline.cells import SEXES, join_findings
from data_pipeline.manifest import Records

_MAX_AGE_YEARS = 120


def read_padchest(place: str) -> Records:
    """Reads `PATH[:min_age_months=216]`: the label table, and the images at any depth.

    Age is the year of the study less the year of birth. The label joins an image's findings;
    without any the condition is unknown, not normal. Images that are not on disk are left out.

    Raises:
      DataError: the table or every image is missing.
    """
    root, options = parse_place("padchest", place, min_age_months=ADULT_MONTHS)
    path = find_file("padchest", root, "PADCHEST*.csv*", "*adchest*.csv*", "*.csv*")
    table = read_table(
        "padchest",
        path,
        (
            "ImageID",
            "PatientID",
            "?StudyDate_DICOM",
            "?PatientBirth",
            "?PatientSex_DICOM",
            "?Projection",
            "?ViewPosition_DICOM",
            "?Labels",
        ),
    )
    index = image_index(path.parent, (".png",))
    found = [index.get(name) for name in table["ImageID"]]
    projections = zip(table["Projection"], table["ViewPosition_DICOM"], strict=True)
    dates = zip(table["StudyDate_DICOM"], table["PatientBirth"], strict=True)
    records = Records.create(
        [at or "" for at in found],
        source=f"padchest:{root}",
        patient_id=[f"padchest-{patient}" for patient in table["PatientID"]],
        age_months=[_age(study, birth) for study, birth in dates],
        sex=[SEXES.get(sex.lower(), "") for sex in table["PatientSex_DICOM"]],
        view=[projection or view for projection, view in projections],
        label=[_label(text) for text in table["Labels"]],
    )
    records = records.take(keep_present("padchest", found))
    return leave_out_children("padchest", records, options["min_age_months"])


def _age(study: str, birth: str) -> float:
    years = number(study[:4]) - number(birth)
    return 12 * years if 0 <= years <= _MAX_AGE_YEARS else math.nan


def _label(text: str) -> str:
    """`"['normal']"` -> `normal`; empty if there are no labels, or no list."""
    try:
        labels = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ""
    return join_findings(map(str, labels)) if isinstance(labels, list) else ""
