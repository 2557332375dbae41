"""VinDr-CXR: chest images of adults, each marked by several readers."""

from __future__ import annotations

import os
from collections import Counter, defaultdict

from data_pipeline.adapters.place import (
    IMAGE_SUFFIXES,
    find_file,
    image_index,
    keep_present,
    parse_place,
    read_table,
)
from data_pipeline.manifest import Records

_NORMAL = "No finding"
_ROLES = {"train": "train", "test": "test"}


def read_vindr_cxr(place: str) -> Records:
    """Reads `PATH`: `train.csv` with a row a mark, images in `train/` and `test/`.

    An image is labelled with the only class that more than half of its readers marked, with
    `No finding` if none was, and not at all if several were. Images without marks are unlabelled.

    Raises:
      DataError: the table or every image is missing.
    """
    root, _ = parse_place("vindr_cxr", place)
    path = find_file("vindr_cxr", root, "train.csv", "annotations_train.csv")
    table = read_table("vindr_cxr", path, ("image_id", "class_name", "rad_id"))
    marks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    columns = (table["image_id"], table["class_name"], table["rad_id"])
    for image, name, reader in zip(*columns, strict=True):
        marks[image][reader].add(name)
    images = image_index(path.parent, IMAGE_SUFFIXES)
    found = {os.path.splitext(name)[0]: at for name, at in images.items()}
    names = [*marks, *(name for name in found if name not in marks)]
    present = keep_present("vindr_cxr", [found.get(name) for name in names])
    folders = [os.path.basename(os.path.dirname(found.get(name, ""))) for name in names]
    records = Records.create(
        [found.get(name, "") for name in names],
        source=f"vindr_cxr:{root}",
        label=[_label(marks[name]) if name in marks else "" for name in names],
        split=[_ROLES.get(folder, "") for folder in folders],
    )
    return records.take(present)


def _label(readers: dict[str, set[str]]) -> str:
    votes = Counter(name for names in readers.values() for name in names - {_NORMAL})
    agreed = [name for name, count in votes.items() if 2 * count > len(readers)]
    if not agreed:
        # One reader alone saw something: neither that nor normal is agreed on.
        normal = sum(names == {_NORMAL} for names in readers.values())
        return _NORMAL if 2 * normal > len(readers) else ""
    return agreed[0] if len(agreed) == 1 else ""
