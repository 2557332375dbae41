"""Kermany's chest images of children aged one to five (Guangzhou)."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import defaultdict

from data_pipeline.adapters.place import IMAGE_SUFFIXES, natural_key, parse_place
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_PERSON = re.compile(r"(person\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)", re.IGNORECASE)


def read_kermany(place: str) -> Records:
    """Reads `PATH[:classes=2]`: `{train,val,test}/{NORMAL,PNEUMONIA}`.

    `classes=3` divides pneumonia into `BACTERIA` and `VIRUS`, as the file names do. The patient is
    taken from the file name; its numbers count from one again in every folder and aetiology. Byte
    for byte repeats are listed once, in the most protected split that holds one.

    Raises:
      DataError: the folders are not there, or `classes` is neither 2 nor 3.
    """
    root, options = parse_place("kermany", place, classes=2)
    if options["classes"] not in (2, 3):
        raise DataError(f"kermany:{place}: classes is {options['classes']}; expected 2 or 3")
    source = f"kermany:{root}"
    root = root / "chest_xray" if (root / "chest_xray" / "train").is_dir() else root
    rows, sizes = [], []
    for folder, split in sorted(_SPLITS.items(), key=lambda item: item[1] == "train"):
        for label in ("NORMAL", "PNEUMONIA"):
            at = root / folder / label
            if not at.is_dir():
                continue
            with os.scandir(at) as entries:
                images = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]
            for image in sorted(images, key=lambda entry: natural_key(entry.name)):
                rows.append((image.path, *_person(image.name, folder, label, options), split))
                sizes.append(image.stat().st_size)
    if not rows:
        raise DataError(f"kermany: no train/NORMAL and train/PNEUMONIA in {root}")
    repeats = _repeats([row[0] for row in rows], sizes)
    if repeats:
        _log.info("kermany: %d byte-for-byte repeats left out", len(repeats))
    paths, patients, labels, splits = zip(
        *(row for i, row in enumerate(rows) if i not in repeats), strict=True
    )
    return Records.create(paths, source=source, patient_id=patients, label=labels, split=splits)


def _person(name: str, folder: str, label: str, options: dict) -> tuple[str, str]:
    match = _PERSON.match(name)
    kind = (match[2] or "").lower() if match else ""
    person = (match[1] or match[3]).lower() if match else os.path.splitext(name)[0]
    if kind and options["classes"] == 3:
        label = kind.upper()
    return "-".join(filter(None, ("kermany", folder, person, kind))), label


def _repeats(paths: list[str], sizes: list[int]) -> set[int]:
    """Indices of files equal to an earlier one. Only files of equal size are read."""
    by_size = defaultdict(list)
    for i, size in enumerate(sizes):
        by_size[size].append(i)
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
