"""What the adapters share: the place with its options, folders, and CSV tables."""

from __future__ import annotations

import csv
import gzip
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

ADULT_MONTHS = 18 * 12.0
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_OPTION = re.compile(r"[a-z_]+=[^:]*")
DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff")
IMAGE_SUFFIXES = PICTURE_SUFFIXES + DICOM_SUFFIXES
_DIGITS = re.compile(r"(\d+)")


def parse_place(name: str, place: str, **defaults) -> tuple[Path, dict]:
    """Splits `/path[:key=value...]` into an existing path, absolute, and its options.

    Records name this path as their source, without the options: however a data set is spelled, its
    patients keep their places in the split.

    Args:
      name: the adapter, for messages.
      place: what stands after `name:` in the data set's name.
      **defaults: the options that the adapter knows; a value is read as its default's type.

    Raises:
      DataError: the path does not exist, an option is unknown or its value has the wrong type.
    """
    options = dict(defaults)
    parts = place.split(":")
    # From the right, because a path may hold colons too.
    while len(parts) > 1 and _OPTION.fullmatch(parts[-1]):
        key, value = parts.pop().split("=", 1)
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise DataError(f"{name}:{place}: unknown option {key!r}; known options: {known}")
        try:
            options[key] = type(defaults[key])(value)
        except ValueError:
            kind = "a number" if isinstance(defaults[key], int | float) else "text"
            raise DataError(f"{name}:{place}: {key} is {value!r}; expected {kind}") from None
    # One name whatever the detour, as in manifests: leaks are found by comparing names.
    path = os.path.abspath(os.path.expanduser(":".join(parts)))
    if not os.path.exists(path):
        raise DataError(f"{name}:{place}: {path} does not exist")
    return Path(path), options


def natural_key(text: str) -> list:
    """Sorts `film2` before `film10`."""
    # Every second part is what the pattern found. str.isdigit knows digits that int does not (²).
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(text))]


def visible(
    folder: str | os.PathLike, above: tuple[str | os.PathLike, ...] = ()
) -> tuple[list[str], list[str]]:
    """Names of the subfolders and of the files of a folder, hidden ones left out, natural order.

    Links back to the folder, to one that holds it or to one of `above` are left out too.

    Raises:
      DataError: the folder, or a link in it, cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                # The directory entry knows its kind: no stat a file.
                if not entry.is_dir():
                    files.append(entry.name)
                elif not entry.is_symlink() or not _leads_back(entry.path, (*above, folder)):
                    folders.append(entry.name)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror}); correct its "
            "permissions or where it links to, or move it elsewhere"
        ) from None
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def _leads_back(link: str, folders: tuple[str | os.PathLike, ...]) -> bool:
    target = os.path.realpath(link)
    inside = (os.path.realpath(folder) for folder in folders)
    return any(os.path.commonpath((target, path)) == target for path in inside)


def walk(
    folder: str | os.PathLike, above: tuple[str | os.PathLike, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Every folder at and below `folder` with its files, top down, natural order.

    `above` are the folders that led here, to which no link leads back.

    Raises:
      DataError: a folder cannot be read.
    """
    folders, files = visible(folder, above)
    yield str(folder), files
    for name in folders:
        yield from walk(os.path.join(folder, name), (*above, folder))


def image_index(folder: str | os.PathLike, suffixes: tuple[str, ...]) -> dict[str, str]:
    """File name -> path of every image at any depth; of equal names the first."""
    index: dict[str, str] = {}
    for parent, names in walk(folder):
        for name in names:
            if name.lower().endswith(suffixes):
                index.setdefault(name, f"{parent}{os.sep}{name}")
    return index


def read_table(name: str, path: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns of a CSV, by name, stripped; gzip is unpacked on the way.

    Columns that are not there come back empty, except those that must be.

    Args:
      name: the adapter, for messages.
      path: the file.
      columns: what to read; a leading `?` marks a column that may be missing.

    Raises:
      DataError: the file cannot be read or lacks a column that it must have.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            wanted = [column.removeprefix("?") for column in columns]
            missing = [c for c in columns if not c.startswith("?") and c not in header]
            if missing:
                raise DataError(
                    f"{name}: {path} has no column {missing[0]!r} (columns found: "
                    f"{', '.join(header[:20]) or 'none'})"
                )
            table: dict[str, list[str]] = {column: [] for column in wanted}
            places = [(table[c].append, header.index(c) if c in header else -1) for c in wanted]
            for row in rows:
                if not row:
                    continue
                for append, at in places:
                    append(row[at].strip() if 0 <= at < len(row) else "")
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise DataError(f"{name}: {path} cannot be read as CSV ({error})") from None
    return table


def find_file(name: str, folder: Path, *patterns: str) -> Path:
    """The first file below `folder` (two levels) that matches one of the patterns.

    Raises:
      DataError: there is none.
    """
    for pattern in patterns:
        for prefix in ("", "*/"):
            found = sorted(folder.glob(prefix + pattern))
            if found:
                return found[0]
    raise DataError(f"{name}: no {' or '.join(patterns)} in {folder}")


def keep_present(name: str, paths: list[str | None]) -> np.ndarray:
    """Boolean `[n]`: listed images that are there (not None); logs how many are not.

    Raises:
      DataError: none is there.
    """
    present = np.array([path is not None for path in paths], bool)
    if not present.any():
        raise DataError(f"{name}: none of the {len(paths):,} images listed was found")
    if not present.all():
        _log.warning(
            "%s: %d of %d images listed are not on disk; left out",
            name,
            (~present).sum(),
            len(paths),
        )
    return present


def leave_out_children(name: str, records: Records, min_age_months: float) -> Records:
    """An adult set without the images known to be of younger patients; logs how many those are."""
    young = records.age_months < min_age_months  # Unknown (NaN) compares as not younger.
    if young.any():
        _log.info(
            "%s: %d images of patients under %g months left out (min_age_months)",
            name,
            young.sum(),
            min_age_months,
        )
    return records.take(~young)


def number(text: str) -> float:
    """A number, or NaN for anything else."""
    try:
        return float(text.replace("_", "x"))  # Python reads 1_5 as 15.
    except ValueError:
        return math.nan
