"""PediCXR (VinDr-PCXR): 9,125 chest images of children under ten, DICOM."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipeline.adapters.headers import header_columns
from data_pipeline.adapters.place import (
    IMAGE_SUFFIXES,
    find_file,
    find_files,
    image_index,
    keep_present,
    parse_place,
)
from data_pipeline.adapters.source_tables import read_boxes, read_table, table_columns
from data_pipeline.cells import join_findings
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_NOT_FINDINGS = ("image_id", "rad_ID", "rad_id")


def read_vindr_pcxr(place: str) -> Records:
    """Reads `PATH[:headers=no]`: `image_labels_{train,test}.csv` and `{train,test}/<id>.dicom`.

    Class names are the source's, misspellings included; the label joins an image's findings (about
    3 % have several). Boxes come from `annotations_{train,test}.csv` if it exists, ages and sexes
    from the DICOM headers; `headers=no` skips reading them. Images that are not on disk are left
    out. There is no patient identifier: whether the official split is by patient cannot be known.

    Raises:
      DataError: no table or no image is there.
    """
    root, options = parse_place("vindr_pcxr", place, headers="yes")
    splits = [s for s in ("train", "test") if find_files(root, f"image_labels_{s}.csv")]
    if not splits:
        raise DataError(f"vindr_pcxr: no image_labels_train.csv in {root}")
    records = Records.concatenate(_read_split(root, split) for split in splits)
    records = records.take(
        keep_present("vindr_pcxr", [path or None for path in records.image_path])
    )
    if options["headers"] == "no":
        return records
    ages, sexes, views, _ = header_columns("vindr_pcxr", root, records.image_path.tolist())
    return records.replace(age_months=ages, sex=sexes, view=views)


def _read_split(root: Path, split: str) -> Records:
    """Images of a split; the path of one that is not on disk is empty."""
    path = find_file("vindr_pcxr", root, f"image_labels_{split}.csv")
    header = table_columns("vindr_pcxr", path)
    findings = [name for name in header if name and name not in _NOT_FINDINGS]
    table = read_table("vindr_pcxr", path, ("image_id", *findings))
    marked: dict[str, set[str]] = {}
    for i, image in enumerate(table["image_id"]):
        positive = {name for name in findings if table[name][i] in ("1", "1.0")}
        marked.setdefault(image, set()).update(positive)
    images = image_index(root / split, IMAGE_SUFFIXES) if (root / split).is_dir() else {}
    found = {os.path.splitext(name)[0]: at for name, at in images.items()}
    annotations = find_files(root, f"annotations_{split}.csv")
    boxes = read_boxes("vindr_pcxr", annotations[0]) if annotations else {}
    return Records.create(
        [found.get(image, "") for image in marked],
        source=f"vindr_pcxr:{root}",
        label=[join_findings(names) for names in marked.values()],
        split=[split] * len(marked),
        boxes=[tuple(boxes.get(image, ())) for image in marked],
    )
