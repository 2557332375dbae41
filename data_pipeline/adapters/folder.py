"""A folder of radiographs: one class a subfolder, or unlabelled; or one image."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data_pipeline.adapters.headers import header_columns
from data_pipeline.adapters.place import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    is_workdir,
    parse_place,
    visible,
    walk,
)
from data_pipeline.cells import SPLIT_NAMES
from data_pipeline.decode import looks_like_dicom
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)
# Suffixes that are never opened to check for DICOM: there may be one such file for every image.
_NO_IMAGES = (
    *(".txt", ".csv", ".json", ".xml", ".md", ".html", ".pdf", ".xlsx", ".npy", ".npz", ".zip"),
    *(".gz", ".bmp", ".webp", ".gif", ".jp2", ".bak", ".tmp", ".part", ".orig"),
)
_SUFFIXES_NAMED = 8


def read_folder(place: str) -> Records:
    """Reads `PATH[:labels=none][:headers=no]`, a folder or one image.

    If the folders of the first level are called train, val or test, they are the split, and the
    next level is the class. Otherwise the first level is the class. Images lie at any depth.
    `labels=none` reads any folder as unlabelled. Age, sex, view and patient of DICOM images come
    from their headers; `headers=no` leaves these unread. A file is an image by its suffix; files of
    unknown suffix are images if they are DICOM. Workdirs of runs in the folder are left out.

    Raises:
      DataError: the folder does not exist, holds no image, or some of its subfolders with images
        are called like splits and others are not, or classes consist of splits or seem to be some.
    """
    root, options = parse_place("folder", place, labels="folders", headers="yes")
    if options["labels"] not in ("folders", "none"):
        raise DataError(
            f"folder:{place}: labels is {options['labels']!r}; expected folders or none"
        )
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    ignored: Counter[str] = Counter()

    def take(folder: str, files: list[str], label: str, split: str) -> None:
        for name in files:
            if _is_image(folder, name):
                paths.append(os.path.join(folder, name))
                labels.append(label)
                splits.append(split)
            else:
                ignored[_kind(name)] += 1

    def take_classes(folder: str, split: str) -> None:
        classes, files = visible(folder)
        if is_workdir(folder, files):
            _log.info("%s is also the workdir of a run; its figures are left out", folder)
            classes = [name for name in classes if name not in ("figures", "checkpoints")]
        take(folder, files, "", split)
        for name in classes:
            label = ""
            if options["labels"] == "folders":
                label = _printable(name)
                _refuse_splits_within(place, os.path.join(folder, name))
            for below, names in walk(os.path.join(folder, name), (root,)):
                take(below, names, label, split)

    if not root.is_dir():
        if not _is_image(str(root.parent), root.name):
            raise DataError(
                f"folder:{place}: {root} is neither a folder nor an image; a CSV file is named "
                f"manifest:{root}"
            )
        take(str(root.parent), [root.name], "", "")
        return _with_headers(root, paths, labels, splits, options["headers"])
    folders, beside = visible(root)
    roles = [name for name in folders if name.lower() in SPLIT_NAMES]
    if roles:
        for name in folders:
            if name not in roles and _has_images(os.path.join(root, name), root):
                raise DataError(
                    f"folder:{place}: {', '.join(roles)} would be splits, but {name} beside them "
                    "is none and has images too; move or rename one or the other, or name each "
                    f"folder by itself (config.data.train=folder:{root / roles[0]})"
                )
        ignored["images beside the splits"] = sum(_is_image(str(root), name) for name in beside)
        for name in roles:
            take_classes(os.path.join(root, name), SPLIT_NAMES[name.lower()])
    else:
        if options["labels"] == "folders":
            _refuse_splits_as_classes(place, folders)
        take_classes(str(root), "")
    ignored = +ignored  # Without zeros.
    others = ", ".join(f"{count:,} {kind}" for kind, count in ignored.most_common(_SUFFIXES_NAMED))
    if not paths:
        raise DataError(
            f"folder:{place}: no image found below {root} (looked for {' '.join(IMAGE_SUFFIXES)} "
            f"and DICOM of any other name; there are {others or 'no files'})"
        )
    if ignored:
        _log.info("folder:%s: %d files left out: %s", place, ignored.total(), others)
    return _with_headers(root, paths, labels, splits, options["headers"])


def _with_headers(
    root: Path, paths: list[str], labels: list[str], splits: list[str], headers: str
) -> Records:
    records = Records.create(paths, source=f"folder:{root}", label=labels, split=splits)
    dicom = np.array([not path.lower().endswith(PICTURE_SUFFIXES) for path in paths])
    if headers == "no" or not dicom.any():
        return records
    names = ("age_months", "sex", "view", "patient_id")
    columns = {name: getattr(records, name).copy() for name in names}
    found = header_columns("folder", root, records.image_path[dicom].tolist())
    for name, values in zip(names, found, strict=True):
        columns[name][dicom] = values
    return records.replace(**columns)


def _refuse_splits_as_classes(place: str, folders: list[str]) -> None:
    """Refuses classes such as `1.Training` and `2.Validation`."""
    named: dict[str, str] = {}
    for name in folders:
        for word in re.findall("[a-z]+", name.lower()):
            if word in SPLIT_NAMES:
                named.setdefault(SPLIT_NAMES[word], name)
    if len(named) > 1:
        raise DataError(
            f"folder:{place}: {' and '.join(named.values())} would be classes; rename them to "
            f"{' and '.join(named)} if they are splits, or add :labels=none"
        )


def _refuse_splits_within(place: str, folder: str) -> None:
    """Refuses a class that holds splits: the data set is that folder, one level deeper."""
    roles = [name for name in visible(folder)[0] if name.lower() in SPLIT_NAMES]
    if len(roles) > 1:
        raise DataError(
            f"folder:{place}: {os.path.basename(folder)} would be a class, but it holds the splits "
            f"{', '.join(roles)}; name it by itself (config.data.train=folder:{folder}), or move "
            "the splits above the classes"
        )


def _is_image(folder: str, name: str) -> bool:
    """By suffix; by content for an unknown suffix or none, such as IM0001 or 1.2.840…"""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    if name.lower().endswith(_NO_IMAGES) or name.upper() == "DICOMDIR":
        return False
    return looks_like_dicom(os.path.join(folder, name))


def _has_images(folder: str, root: Path) -> bool:
    return any(_is_image(below, name) for below, names in walk(folder, (root,)) for name in names)


def _kind(name: str) -> str:
    """The suffix of a file, for a message."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix[1:] and not suffix[1:].isdecimal() else "without suffix"


def _printable(name: str) -> str:
    """The name of a folder as UTF-8 text, which is written to many files as a label."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
