"""RSNA bone age: hands of children with their skeletal age, 1 to 228 months."""

from __future__ import annotations

import math
import os

from data_pipeline.adapters.place import (
    IMAGE_SUFFIXES,
    find_file,
    find_files,
    keep_present,
    parse_place,
    walk,
)
from data_pipeline.adapters.source_tables import (
    OLDEST_CHILD_MONTHS,
    ages_in_months,
    read_table,
    table_columns,
)
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_SEX = {"true": "M", "false": "F", "m": "M", "f": "F", "male": "M", "female": "F"}
# The three tables name the same things differently: split, id, bone age, sex.
_TABLES = (
    ("train", "id", "boneage", "male"),
    ("validation", "Image ID", "Bone Age (months)", "male"),
    ("test", "Case ID", "?Bone Age (months)", "Sex"),
)


def read_rsna_bone_age(place: str) -> Records:
    """Reads `PATH`: images, and tables of training, validation and test, known by their columns.

    `age_months` is the skeletal age that readers gave, not the age since birth.

    Raises:
      DataError: no table or no image is there.
    """
    root, _ = parse_place("rsna_bone_age", place)
    find_file("rsna_bone_age", root, "*.csv")
    by_role: dict[tuple[str, str], str] = {}
    for folder, names in walk(root):
        role = _role(os.path.relpath(folder, root))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                by_role[role, stem] = f"{folder}{os.sep}{name}"
    parts, paths = [], []
    for path in sorted(find_files(root, "*.csv")):
        header = table_columns("rsna_bone_age", path)
        for split, identifier, age, sex in _TABLES:
            if identifier not in header:
                continue
            table = read_table("rsna_bone_age", path, (identifier, age, sex))
            ids = table[identifier]
            # Splits may use the same numbers for different patients.
            found = [by_role.get((split, i)) or by_role.get(("", i)) for i in ids]
            ages = ages_in_months(
                "rsna_bone_age", table[age.removeprefix("?")], 1, OLDEST_CHILD_MONTHS
            )
            records = Records.create(
                [at or "" for at in found],
                source=f"rsna_bone_age:{root}",
                patient_id=[f"rsna-{split}-{image}" for image in ids],
                age_months=[months if months > 0 else math.nan for months in ages],
                sex=[_SEX.get(text.lower(), "") for text in table[sex]],
                split=[split] * len(ids),
            )
            parts.append(records)
            paths += found
    if not parts:
        raise DataError(f"rsna_bone_age: no table with the columns id, boneage, male in {root}")
    return Records.concatenate(parts).take(keep_present("rsna_bone_age", paths))


def _role(folder: str) -> str:
    folder = folder.lower()
    for role in ("train", "valid", "test"):
        if role in folder:
            return "validation" if role == "valid" else role
    return ""
