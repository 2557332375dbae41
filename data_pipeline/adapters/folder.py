"""Any folder of radiographs: one class a subfolder, or unlabelled."""

from __future__ import annotations

import os

import numpy as np

from data_pipeline.adapters.headers import header_columns
from data_pipeline.adapters.place import IMAGE_SUFFIXES, parse_place, visible, walk
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_PICTURES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".dcm", ".dicom"))
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def read_folder(place: str) -> Records:
    """Reads `PATH[:labels=none][:headers=no]`.

    A first level whose folders are all called train, val or test is the split. The next level is
    the class; images lie at any depth below it. Images beside those folders have no class.
    `labels=none` takes the folder as unlabelled whatever its subfolders are called. Age, sex, view
    and patient of DICOM films come from their headers, which `headers=no` leaves unread.

    Raises:
      DataError: the folder does not exist or holds no image.
    """
    root, options = parse_place("folder", place, labels="folders", headers="yes")
    if options["labels"] not in ("folders", "none"):
        raise DataError(
            f"folder:{place}: labels is {options['labels']!r}; expected folders or none"
        )
    if not root.is_dir():
        raise DataError(f"folder:{place}: {root} is a file; name a folder, or use manifest:{root}")
    paths, labels, splits = [], [], []

    def take(folder: str, files: list[str], label: str, split: str) -> None:
        for name in files:
            if _is_film(folder, name):
                paths.append(os.path.join(folder, name))
                labels.append(label)
                splits.append(split)

    def take_classes(folder: str, split: str) -> None:
        classes, files = visible(folder)
        take(folder, files, "", split)
        for name in classes:
            label = name if options["labels"] == "folders" else ""
            for below, names in walk(os.path.join(folder, name)):
                take(below, names, label, split)

    folders, _ = visible(root)
    if folders and all(name.lower() in _SPLIT_FOLDERS for name in folders):
        for name in folders:
            take_classes(os.path.join(root, name), _SPLIT_FOLDERS[name.lower()])
    else:
        take_classes(str(root), "")
    if not paths:
        raise DataError(
            f"folder:{place}: no image found below {root} (looked for {' '.join(IMAGE_SUFFIXES)})"
        )
    records = Records.create(paths, source=f"folder:{place}", label=labels, split=splits)
    dicom = np.array([not path.lower().endswith(_PICTURES) for path in paths])
    if options["headers"] == "no" or not dicom.any():
        return records
    columns = [records.age_months, records.sex, records.view, records.patient_id]
    found = header_columns("folder", root, records.image_path[dicom])
    for column, values in zip(columns, found, strict=True):
        column[dicom] = values
    return records


def _is_film(folder: str, name: str) -> bool:
    """By the suffix; files without one, which archives write as IM0001 or 1.2.840…, by content."""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    without_suffix = "." not in name or name.replace(".", "").isdigit()
    if not without_suffix or name.upper() == "DICOMDIR":
        return False
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
