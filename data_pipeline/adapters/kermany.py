"""Kermany: chest images of children aged one to five from Guangzhou, with pneumonia or normal."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence

from data_pipeline.adapters.place import IMAGE_SUFFIXES, parse_place, visible
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# person1_bacteria_1.jpeg, IM-0115-0001.jpeg and NORMAL2-IM-0503-0001-0001.jpeg of Kaggle's copy.
_PERSON = re.compile(
    r"(?:(person\d+)_(bacteria|virus)_\d+|((?:NORMAL2-)?IM-\d+)(?:-\d+){1,2})\.\w+", re.IGNORECASE
)
# BACTERIA-1008087-0001.jpeg of the third version on Mendeley: the patient is the middle number.
_ORIGINAL = re.compile(r"(BACTERIA|VIRUS|NORMAL)-(\d+)-\d+\.\w+", re.IGNORECASE)
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class _Image:
    folder: str
    name: str
    path: str
    label: str


def read_kermany(place: str) -> Records:
    """Reads `PATH[:classes=2]`: `{train,val,test}/{NORMAL,PNEUMONIA}`, or a folder above them.

    `classes=3` divides pneumonia into `BACTERIA` and `VIRUS`, as the file names do. The patient
    comes from the file name. Its numbers restart in every split and aetiology of Kaggle's copy. In
    the original they are taken as global, unless two splits use one name for different images.
    Byte-for-byte duplicates are listed once: in test, else in validation, else in training.

    Raises:
      DataError: the folders are not there, a file is named otherwise, or `classes` is neither 2
        nor 3.
    """
    root, options = parse_place("kermany", place, classes=2)
    if options["classes"] not in (2, 3):
        raise DataError(f"kermany:{place}: classes is {options['classes']}; expected 2 or 3")
    source = f"kermany:{root}"
    for inner in ("CellData", "chest_xray"):
        root = root / inner if (root / inner).is_dir() else root
    images = []
    for folder in sorted(_SPLITS, key=lambda folder: folder == "train"):
        for label in ("NORMAL", "PNEUMONIA"):
            at = root / folder / label
            if at.is_dir():
                for name in visible(at)[1]:
                    if name.lower().endswith(IMAGE_SUFFIXES):
                        images.append(_Image(folder, name, str(at / name), label))
    if not images:
        raise DataError(f"kermany: no train/NORMAL and train/PNEUMONIA in {root}")
    unknown = [i.path for i in images if not (_PERSON.match(i.name) or _ORIGINAL.match(i.name))]
    if unknown:
        raise DataError(
            f"kermany: {len(unknown):,} of {len(images):,} files are not named as in either "
            "release, so their patients are not known, such as "
            f"{', '.join(unknown[:_NAMED])}; use a manifest, or folder:{root}"
        )
    odd = [i.path for i in images if _contradicts(i)]
    if odd:
        _log.warning(
            "kermany: %d files are named like another class than that of their folder, such as %s",
            len(odd),
            ", ".join(odd[:_NAMED]),
        )
    repeats = _repeats([image.path for image in images])
    if repeats:
        _log.info("kermany: %d byte-for-byte duplicates left out", len(repeats))
    images = [image for i, image in enumerate(images) if i not in repeats]
    people = _people(images)
    if options["classes"] == 3:
        labels = [_aetiology(image) or image.label for image in images]
    else:
        labels = [image.label for image in images]
    return Records.create(
        [image.path for image in images],
        source=source,
        patient_id=people,
        label=labels,
        split=[_SPLITS[image.folder] for image in images],
    )


def _aetiology(image: _Image) -> str:
    match = _ORIGINAL.match(image.name)
    if match:
        return match[1].upper()
    match = _PERSON.match(image.name)
    return (match[2] or "").upper() if match else ""


def _contradicts(image: _Image) -> bool:
    named = _aetiology(image) or "NORMAL"
    return (named == "NORMAL") != (image.label == "NORMAL")


def _people(images: Sequence[_Image]) -> list[str]:
    folders_of = defaultdict(set)
    for image in images:
        folders_of[image.name].add(image.folder)
    restart = any(len(folders) > 1 for folders in folders_of.values())
    people = []
    for image in images:
        parts = ["kermany"]
        if original := _ORIGINAL.match(image.name):
            parts += [image.folder] * restart + [original[2].lstrip("0") or "0"]
        elif person := _PERSON.match(image.name):
            name, kind = person[1] or person[3], person[2] or ""
            parts += [image.folder, name.lower(), kind.lower()]
        people.append("-".join(filter(None, parts)))
    return people


def _repeats(paths: list[str]) -> set[int]:
    """Indices of files equal to an earlier one. Only files of equal size are read."""
    by_size = defaultdict(list)
    for i, path in enumerate(paths):
        by_size[os.path.getsize(path)].append(i)
    repeats: set[int] = set()
    for same in by_size.values():
        seen = set()
        for i in same if len(same) > 1 else ():
            with open(paths[i], "rb") as file:
                digest = hashlib.file_digest(file, "blake2b").digest()
            if digest in seen:
                repeats.add(i)
            seen.add(digest)
    return repeats
