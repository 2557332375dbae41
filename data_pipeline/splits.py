"""The split of a run: training, validation and test, its file, and checks for leaks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline import tables
from data_pipeline.cells import by_image, in_words, spelled_apart
from data_pipeline.contents import equal_files
from data_pipeline.errors import DataError
from data_pipeline.files import replaced
from data_pipeline.labels import carries
from data_pipeline.manifest import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SPLITS,
    Box,
    Records,
)

_log = logging.getLogger(__name__)
# With fewer validation images than this the metric that chooses a checkpoint is mostly chance: on a
# dozen images an AUC of 1 is reached long before training has converged.
FEW_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Split:
    """Records divided by role. Any of the three may be empty."""

    train: Records
    validation: Records
    test: Records

    def __getitem__(self, role: str) -> Records:
        return getattr(self, role)


def named(key: str) -> str:
    """A patient or image, in words, by a key of `Records.patient`."""
    kind, _, name = key.partition(":")
    return f"patient {name!r}" if kind == "patient" else f"image {name!r}"


def check_disjoint(split: Split) -> None:
    """Raises `DataError` if a patient, or an image file, is in two of the roles.

    A file is known by its folder's real name. Links to single files are not followed; check_data
    compares the contents.
    """
    seen: dict[str, str] = {}
    for name in SPLITS:
        # In order, so that the same data always gives the same message.
        for key in sorted(_identities(split[name])):
            if key in seen:
                advice = (
                    "all images of a patient must be in one split (if ids of different sources are "
                    "different people, set config.data.patient_ids=source)"
                )
                if not key.startswith("patient:"):
                    advice = _listed_by(key.partition(":")[2], split)
                raise DataError(f"{named(key)} is in {seen[key]} and in {name}; {advice}")
            seen[key] = name


def _listed_by(path: str, split: Split) -> str:
    """What to do about an image file that is in two splits."""
    sources = {
        source
        for name in SPLITS
        for real, source in zip(
            _real_paths(split[name].image_path), split[name].source, strict=True
        )
        if real == path
    }
    if len(sources) == 1:
        return f"{sources.pop()} lists it more than once: keep one row"
    return f"it is listed by {' and by '.join(sorted(sources))}: name each image in one source"


def check_classes(split: Split, classes: Sequence[str]) -> None:
    """Raises `DataError` if a class has one patient, which cannot be in training and test."""
    records = Records.concatenate([split[name] for name in SPLITS])
    keys = records.patient
    alone = {}
    for label in classes:
        patients = set(keys[carries(records.label, label)])
        if len(patients) == 1:
            alone[label] = patients.pop()
    if alone:
        label, patient = next(iter(alone.items()))
        more = f" (likewise {', '.join(map(repr, list(alone)[1:]))})" if len(alone) > 1 else ""
        raise DataError(
            f"the class {label!r} has one patient ({named(patient)}), who cannot be both "
            f"trained on and tested{more}; add patients, or list the other classes in "
            "config.data.classes"
        )


# Runs of earlier versions lack the last two and the file columns.
_SPLIT_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "source", "uncertain", "boxes")
_FILE_COLUMNS = ("file_size", "file_modified")


def write_split(path: str | os.PathLike[str], split: Split) -> None:
    """Writes `split.csv`, with everything known of each image, and its checksum beside it.

    `file_size` (bytes) and `file_modified` (seconds since 1970) show later whether an image was
    replaced. The checksum file is in the format of `sha256sum`.
    """
    rows = []
    for name in SPLITS:
        records = split[name]
        columns = {c: getattr(records, c) for c in _SPLIT_COLUMNS}
        columns["split"] = [name] * len(records)
        columns["age_months"] = ["" if a != a else f"{a:.9g}" for a in records.age_months]
        for column in ("uncertain", "boxes"):
            columns[column] = [json.dumps(v) if v else "" for v in columns[column]]
        stamps = [_file_stamp(image_path) for image_path in records.image_path]
        listed = zip(*columns.values(), strict=True)
        rows += [(*row, *stamp) for row, stamp in zip(listed, stamps, strict=True)]
    tables.write_csv(path, (*_SPLIT_COLUMNS, *_FILE_COLUMNS), rows)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with replaced(f"{os.fspath(path)}.sha256") as checksum:
        checksum.write(f"{digest}  {os.path.basename(path)}\n")


def _file_stamp(path: str) -> tuple[str, str]:
    """Size and time of a file as text; empty for a phantom image or a missing file."""
    try:
        status = os.stat(path)
    except OSError:
        return "", ""
    return str(status.st_size), f"{status.st_mtime:.6f}"


def _read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: that folder is not the workdir of a run") from None
    checksum = f"{os.fspath(path)}.sha256"
    if os.path.exists(checksum):  # Earlier versions wrote none.
        with open(checksum, encoding="utf-8", errors="replace") as file:
            expected = file.read().split(" ")[0]
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(
                f"{path} is not the file that the run wrote: it was cut short or changed (its "
                f"checksum differs from {os.path.basename(checksum)}); restore it from a copy"
            )
    if not content.endswith(b"\n"):
        raise DataError(f"{path} ends within a line: it was cut short; restore it from a copy")
    text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    rows = [
        {name: tables.restore(cell or "") for name, cell in row.items() if name}
        for row in csv.DictReader(text)
    ]
    missing = sorted({"image_path", "split", "source"} - set(rows[0] if rows else ()))
    if missing or not all(row["split"] in SPLITS for row in rows):
        raise DataError(f"{path} is damaged: not the list of images that a run writes")
    return rows


def read_split(path: str | os.PathLike[str]) -> Split:
    """Reads what `write_split` wrote. `patient` is resolved as for ids shared between sources.

    Raises:
      DataError: the file does not exist, or is not what was written.
    """
    rows = _read_rows(path)
    columns: dict[str, list[Any]] = {
        name: [row.get(name) or "" for row in rows] for name in _SPLIT_COLUMNS
    }
    columns["age_months"] = [float(age or "nan") for age in columns["age_months"]]
    columns["uncertain"] = [tuple(json.loads(v or "[]")) for v in columns["uncertain"]]
    columns["boxes"] = [tuple(Box(*box) for box in json.loads(v or "[]")) for v in columns["boxes"]]
    source = np.array(columns.pop("source"), dtype=object)
    records = Records.create(**columns, source="").replace(source=source)
    return Split(**{name: records.take(records.split == name) for name in SPLITS})


class ChangedData(DataError):
    """The data of a run is not what it began with."""


def check_unchanged(
    path: str | os.PathLike[str], split: Split, *, labels: bool = True, order: bool = True
) -> None:
    """Checks that the present data is that of a run.

    Args:
      path: `split.csv` of the run.
      split: the present data.
      labels: compare labels and ages too.
      order: compare the order of the images too, on which a resumed run depends.

    Raises:
      ChangedData: images, splits, files, or what else is compared, differ.
    """

    def rows(split: Split) -> set[tuple[str, ...]]:
        return {
            (name, path, *((label, "" if age != age else f"{age:.9g}") if labels else ()))
            for name in SPLITS
            for path, label, age in zip(
                split[name].image_path, split[name].label, split[name].age_months, strict=True
            )
        }

    before = read_split(path)
    different = rows(before) ^ rows(split)
    if different:
        images = sorted({row[1] for row in different})
        raise ChangedData(
            f"the data is not what this run began with: {len(images)} images are new, missing, or "
            f"have another label, age or split, such as {images[0]}; choose another --workdir, or "
            "delete that folder to start again"
        )
    same = (list(before[name].image_path) == list(split[name].image_path) for name in SPLITS)
    if order and not all(same):
        raise ChangedData(
            "the images come in another order than when this run began, so it cannot be resumed; "
            "restore the order of the manifest, choose another --workdir, or delete that folder to "
            "start again"
        )
    _check_files_unchanged(path)


def _check_files_unchanged(path: str | os.PathLike[str]) -> None:
    """Raises `ChangedData` if image files have another size than when the run began.

    Files of the same size with a later time are logged: they may be copies of the same content.
    """
    replaced_files, touched = [], []
    for row in _read_rows(path):
        if not row.get("file_size"):
            continue
        size, modified = _file_stamp(row["image_path"])
        if size and size != row["file_size"]:
            replaced_files.append(row["image_path"])
        elif modified and modified != row["file_modified"]:
            touched.append(row["image_path"])
    if replaced_files:
        raise ChangedData(
            f"{len(replaced_files):,} image files were replaced since this run began, such as "
            f"{replaced_files[0]}; choose another --workdir, or delete that folder to start again"
        )
    if touched:
        _log.warning(
            "%s image files were modified since this run began, such as %s; they have the same "
            "size and are read as they are now",
            f"{len(touched):,}",
            touched[0],
        )


def check_unseen(
    split_csv: str | os.PathLike[str],
    records: Records,
    patient_ids: str,
    what: str,
    role: str = "train",
) -> None:
    """Raises `DataError` if an earlier run used patients or images that are to be scored.

    Args:
      split_csv: of the earlier run.
      records: images to be scored, with patients resolved by `patient_ids`.
      patient_ids: see `Records.with_patients`.
      what: begins the message, such as "stage one was trained on".
      role: of the patients in the earlier run: `"train"` or `"validation"`.
    """
    if not len(records):
        return
    seen = read_split(split_csv)[role].with_patients(patient_ids)
    used = _identities(seen)
    scored = _identities(records)
    leaked = sorted(scored & used)
    if leaked:
        advice = ""
        if leaked[0].startswith("patient:"):
            advice = (
                " (if ids of different sources are different people, set "
                "config.data.patient_ids=source)"
            )
        raise DataError(
            f"{what} {len(leaked)} of these patients or images, such as {named(leaked[0])}; use "
            f"the same manifests, data.split_seed and fractions throughout{advice}"
        )
    _warn_of_copies(seen.image_path.tolist(), records.image_path.tolist(), what)
    here, there = records.patient_name, seen.patient_name
    ids, known = set(here) - {""}, set(there) - {""}
    alike = [
        group
        for group in spelled_apart(ids | known)
        if not ids.isdisjoint(group) and not known.isdisjoint(group)
    ]
    if alike:
        paths = [*records.image_path, *seen.image_path]
        alike = by_image(alike, [*here, *there], paths)
        _log.warning(
            "%s patients whose ids differ from some of these only in spelling: %s; correct the ids "
            "if they are the same people",
            what,
            in_words(alike),
        )


def _warn_of_copies(used: list[str], scored: list[str], what: str) -> None:
    """Warns of scored images that are copies of images that an earlier run used."""
    paths = used + scored
    groups = equal_files(paths, ["used"] * len(used) + ["scored"] * len(scored))
    copies = [row for rows in groups for row in rows if row >= len(used)]
    if copies:
        _log.warning(
            "%s copies of %d of these images under other names, such as %s: the scores will be too "
            "good",
            what,
            len(copies),
            paths[copies[0]],
        )


def _identities(records: Records) -> set[str]:
    """Keys of the patients and of the image files."""
    files = {f"image:{path}" for path in _real_paths(records.image_path)}
    return set(records.patient) | files


def _real_paths(paths: Iterable[str]) -> Iterator[str]:
    """Paths without symbolic links among their folders, each of which is looked at once."""
    real = {"": ""}

    def resolve(folder: str) -> str:
        if folder not in real:
            above, _, name = folder.rpartition("/")
            here = f"{resolve(above)}/{name}"
            real[folder] = os.path.realpath(here) if os.path.islink(here) else here
        return real[folder]

    for path in paths:
        folder, _, name = path.rpartition("/")
        yield f"{resolve(folder)}/{name}" if path.startswith("/") else path
