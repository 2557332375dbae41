"""VinDr-CXR: 18,000 chest images of adults; three readers marked each training image."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

from data_pipeline.adapters.place import (
    IMAGE_SUFFIXES,
    find_file,
    find_files,
    image_index,
    keep_present,
    parse_place,
)
from data_pipeline.adapters.source_tables import number, read_boxes, read_table, table_columns
from data_pipeline.cells import join_findings
from data_pipeline.manifest import Box, Records

_NORMAL = "No finding"
_READER = ("rad_id", "rad_ID")
# Tables of a split, the most complete first.
_TABLES = {
    "train": ("image_labels_train.csv", "annotations_train.csv", "train.csv"),
    "test": ("image_labels_test.csv", "annotations_test.csv"),
}
# Image -> reader -> the findings that this reader marked.
_Marks = dict[str, dict[str, set[str]]]


def read_vindr_cxr(place: str) -> Records:
    """Reads `PATH`: tables as on PhysioNet (`annotations/`) or Kaggle (`train.csv`), and images.

    Images lie in `train/` and `test/`. The label joins the findings that more than half of an
    image's readers marked; it is `No finding` if more than half marked none. Findings that fewer
    marked are `uncertain`. Images without marks are unlabelled, those that are not on disk left
    out.

    Raises:
      DataError: the tables or every image is missing.
    """
    root, _ = parse_place("vindr_cxr", place)
    find_file("vindr_cxr", root, *_TABLES["train"], *_TABLES["test"])
    marks: dict[str, _Marks] = {}
    boxes: dict[str, list[Box]] = {}
    for split, names in _TABLES.items():
        tables = find_files(root, *names)
        marks[split] = _read_marks(tables[0]) if tables else {}
        for table in tables:
            if "x_min" in table_columns("vindr_cxr", table):
                boxes |= read_boxes("vindr_cxr", table)
                break
    found: dict[tuple[str, str], str] = {}
    for name, path in image_index(root, IMAGE_SUFFIXES).items():
        found[_split_of(path), os.path.splitext(name)[0]] = path
    listed = [(split, image) for split, images in marks.items() for image in images]
    # Images may lie outside of train/ and test/; then the table gives the split.
    paths = [found.get(key) or found.get(("", key[1])) for key in listed]
    used = set(paths)
    rest = [key for key, path in found.items() if path not in used]
    agreed = [_agreed(marks[split][image]) for split, image in listed] + [("", ())] * len(rest)
    records = Records.create(
        [path or "" for path in paths] + [found[key] for key in rest],
        source=f"vindr_cxr:{root}",
        label=[label for label, _ in agreed],
        uncertain=[uncertain for _, uncertain in agreed],
        split=[split for split, _ in (*listed, *rest)],
        boxes=[tuple(boxes.get(image, ())) for _, image in (*listed, *rest)],
    )
    return records.take(keep_present("vindr_cxr", [path or None for path in records.image_path]))


def _split_of(path: str) -> str:
    folder = os.path.basename(os.path.dirname(path))
    return folder if folder in _TABLES else ""


def _read_marks(path: Path) -> _Marks:
    """Reads a table with a row for each mark, or with a column for each finding."""
    marks: _Marks = defaultdict(lambda: defaultdict(set))
    header = table_columns("vindr_cxr", path)
    rad = next((name for name in _READER if name in header), "?rad_id")
    findings = [name for name in header if name and name not in ("image_id", *_READER)]
    if "class_name" in header:
        table = read_table("vindr_cxr", path, ("image_id", "class_name", rad))
        rows = zip(table["image_id"], table[rad.removeprefix("?")], strict=True)
        for (image, reader), name in zip(rows, table["class_name"], strict=True):
            marks[image][reader].add(name)
        return marks
    table = read_table("vindr_cxr", path, ("image_id", rad, *findings))
    for i, (image, reader) in enumerate(
        zip(table["image_id"], table[rad.removeprefix("?")], strict=True)
    ):
        marks[image][reader].update(name for name in findings if number(table[name][i]) == 1)
    return marks


def _agreed(readers: dict[str, set[str]]) -> tuple[str, tuple[str, ...]]:
    """Findings of more than half of the readers as a label, and findings of fewer readers."""
    votes = Counter(name for names in readers.values() for name in names - {_NORMAL})
    agreed = [name for name, count in votes.items() if 2 * count > len(readers)]
    normal = sum(names == {_NORMAL} for names in readers.values())
    if not agreed and 2 * normal > len(readers):
        agreed = [_NORMAL]
    return join_findings(agreed), tuple(sorted(set(votes) - set(agreed)))
