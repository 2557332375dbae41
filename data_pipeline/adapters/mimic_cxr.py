"""MIMIC-CXR-JPG: chest images of adults, without age and sex."""

from __future__ import annotations

import os

from data_pipeline.adapters.place import find_file, keep_present, on_disk, parse_place
from data_pipeline.adapters.source_tables import read_table
from data_pipeline.manifest import Records

_SPLITS = {"train": "train", "validate": "validation", "test": "test"}


def read_mimic_cxr(place: str) -> Records:
    """Reads `PATH`: `mimic-cxr-2.0.0-metadata.csv`, `-split.csv` (or `.gz`) and `files/p10/...`.

    Images that are not on disk are left out.

    Raises:
      DataError: a table or every image is missing.
    """
    root, _ = parse_place("mimic_cxr", place)
    metadata_path = find_file("mimic_cxr", root, "mimic-cxr-*-metadata.csv*")
    metadata = read_table(
        "mimic_cxr", metadata_path, ("dicom_id", "subject_id", "study_id", "?ViewPosition")
    )
    splits = read_table(
        "mimic_cxr",
        find_file("mimic_cxr", root, "mimic-cxr-*-split.csv*"),
        ("dicom_id", "split"),
    )
    split_of = dict(zip(splits["dicom_id"], splits["split"], strict=True))
    folder = metadata_path.parent
    files = os.path.join(folder / "files" if (folder / "files").is_dir() else folder, "")
    rows = zip(metadata["dicom_id"], metadata["subject_id"], metadata["study_id"], strict=True)
    paths = [f"{files}p{person[:2]}/p{person}/s{study}/{name}.jpg" for name, person, study in rows]
    records = Records.create(
        paths,
        source=f"mimic_cxr:{root}",
        patient_id=[f"mimic-{subject}" for subject in metadata["subject_id"]],
        view=metadata["ViewPosition"],
        split=[_SPLITS.get(split_of.get(image, ""), "") for image in metadata["dicom_id"]],
    )
    return records.take(keep_present("mimic_cxr", on_disk(paths)))
