"""PediCXR (VinDr-PCXR): 9,125 chest images of children under ten, DICOM."""

from __future__ import annotations

from data_pipeline.adapters.headers import header_columns
from data_pipeline.adapters.place import parse_place, read_table, visible
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_NOT_FINDINGS = ("image_id", "rad_ID", "rad_id")


def read_vindr_pcxr(place: str) -> Records:
    """Reads `PATH[:headers=no]`: `image_labels_{train,test}.csv` and `{train,test}/<id>.dicom`.

    Class names are the source's, misspellings included. An image with several findings (about 3 %)
    is not labelled. Ages and sexes come from the DICOM headers; `headers=no` skips reading them.
    There is no patient identifier: whether the official split is by patient cannot be known.

    Raises:
      DataError: no table is there.
    """
    root, options = parse_place("vindr_pcxr", place, headers="yes")
    parts = []
    for split in ("train", "test"):
        path = root / f"image_labels_{split}.csv"
        if path.is_file():
            parts.append(_read_split(root, split, f"vindr_pcxr:{root}"))
    if not parts:
        raise DataError(f"vindr_pcxr: no image_labels_train.csv in {root}")
    records = Records.concatenate(parts)
    if options["headers"] == "no":
        return records
    ages, sexes, views, _ = header_columns("vindr_pcxr", root, records.image_path)
    return records.replace(age_months=ages, sex=sexes, view=views)


def _read_split(root, split: str, source: str) -> Records:
    path = root / f"image_labels_{split}.csv"
    with path.open(encoding="utf-8-sig") as file:
        header = [name.strip() for name in file.readline().split(",")]
    findings = [name for name in header if name and name not in _NOT_FINDINGS]
    table = read_table("vindr_pcxr", path, ("image_id", *findings))
    marked: dict[str, set[str]] = {}
    for i, image in enumerate(table["image_id"]):
        positive = {name for name in findings if table[name][i] in ("1", "1.0")}
        marked.setdefault(image, set()).update(positive)
    suffix = ".dicom"
    if (root / split).is_dir():
        files = visible(root / split)[1]
        suffix = next((f".{name.rpartition('.')[2]}" for name in files if "." in name), suffix)
    return Records.create(
        [str(root / split / f"{image}{suffix}") for image in marked],
        source=source,
        label=[next(iter(names)) if len(names) == 1 else "" for names in marked.values()],
        split=[split] * len(marked),
    )
