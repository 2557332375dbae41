"""Folders and options of public data sets: what the adapters share."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.records import Records

_log = logging.getLogger(__name__)

_OPTION = re.compile(r"[a-z_]+=[^:]*")
DICOM_SUFFIXES = (".dcm", ".dicom")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff")
IMAGE_SUFFIXES = PICTURE_SUFFIXES + DICOM_SUFFIXES
_DIGITS = re.compile(r"(\d+)")
# Of macOS, Synology and Windows: thumbnails, resource forks and deleted files.
_HIDDEN = (".", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "~$")
_OF_RUNS = {"model.json", "preprocessing.json", "metrics.json"}
_THREADS = 16  # Listing folders waits for the disk.


def parse_place(name: str, place: str, **defaults: Any) -> tuple[Path, dict[str, Any]]:
    """Splits `/path[:key=value...]` into an absolute path, which exists, and options.

    Records name this path, without the options, as their source, so that the split of a data set
    does not depend on the spelling of its path.

    Args:
      name: the adapter, for messages.
      place: the part after `name:`.
      **defaults: the options that the adapter knows; a value has the type of its default.

    Raises:
      DataError: the path does not exist, an option is unknown or its value has the wrong type.
    """
    options = dict(defaults)
    parts = [place] if os.path.exists(os.path.expanduser(place)) else place.split(":")
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
    # One name for a file, as in manifests: leaks are found by comparing names.
    path = os.path.abspath(os.path.expanduser(":".join(parts)))
    if not os.path.exists(path):
        raise DataError(f"{name}:{place}: {path} does not exist")
    return Path(path), options


def natural_key(text: str) -> list[str | int]:
    """Sorts `image2` before `image10`."""
    # Every second part is a match. str.isdigit accepts digits that int does not (²).
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(text))]


def visible(
    folder: str | os.PathLike[str], above: tuple[str | os.PathLike[str], ...] = ()
) -> tuple[list[str], list[str]]:
    """Names of the subfolders and of the files of a folder, without hidden ones, in natural order.

    Links back to the folder, to a parent of it or to one of `above` are left out too. A broken link
    counts as a file.

    Raises:
      DataError: the folder, or a link in it, cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_HIDDEN):
                    continue
                # The directory entry knows its kind, which saves a stat for every file.
                if not _is_folder(entry):
                    files.append(entry.name)
                elif not entry.is_symlink() or not _leads_back(entry.path, (*above, folder)):
                    folders.append(entry.name)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror}); correct its "
            "permissions or where it links to, or move it elsewhere"
        ) from None
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _leads_back(link: str, folders: tuple[str | os.PathLike[str], ...]) -> bool:
    target = os.path.realpath(link)
    inside = (os.path.realpath(folder) for folder in folders)
    return any(os.path.commonpath((target, path)) == target for path in inside)


def walk(
    folder: str | os.PathLike[str],
    above: tuple[str | os.PathLike[str], ...] = (),
    _followed: set[str] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Yields `folder` and every folder below it with its files, top down, in natural order.

    Links back to `above` (the parents) are not followed, and no target is followed twice, so that
    folders that link to each other end. Workdirs of runs below `folder` are left out.

    Raises:
      DataError: a folder cannot be read.
    """
    followed: set[str] = set() if _followed is None else _followed
    folders, files = visible(folder, above)
    if above and is_workdir(folder, files):
        _log.info("%s is the workdir of a run; left out", folder)
        return
    yield str(folder), files
    for name in folders:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            target = os.path.realpath(path)
            if target in followed:
                continue
            followed.add(target)
        yield from walk(path, (*above, folder), followed)


def is_workdir(folder: str | os.PathLike[str], files: Sequence[str]) -> bool:
    """Whether a folder with these files is the workdir of a run: its images are figures."""
    if "config.json" not in files:
        return False
    if not _OF_RUNS.isdisjoint(files):
        return True
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"task", "data"} <= config.keys()


def image_index(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """File name -> path of every image at any depth; the first of equal names."""
    index: dict[str, str] = {}
    for parent, names in walk(folder):
        for name in names:
            if name.lower().endswith(suffixes):
                index.setdefault(name, f"{parent}{os.sep}{name}")
    return index


def on_disk(paths: Sequence[str]) -> list[str | None]:
    """The paths, with None for files that do not exist. Lists every folder once."""
    folders = list(dict.fromkeys(os.path.dirname(path) for path in paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = dict(zip(folders, pool.map(_listed, folders, chunksize=64), strict=True))
    return [
        path if name in listed[folder] else None
        for path in paths
        for folder, name in [os.path.split(path)]
    ]


def _listed(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):  # A null byte.
        return frozenset()


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Files in `folder` and its subfolders that match a pattern, without hidden ones.

    They come in the order of the patterns, those in `folder` itself first.
    """
    found = [
        path
        for pattern in patterns
        for prefix in ("", "*/")
        for path in sorted(folder.glob(prefix + pattern))
        if not any(part.startswith(_HIDDEN) for part in path.relative_to(folder).parts)
    ]
    return list(dict.fromkeys(found))


def find_file(name: str, folder: Path, *patterns: str) -> Path:
    """The first of `find_files`.

    Raises:
      DataError: there is none.
    """
    found = find_files(folder, *patterns)
    if not found:
        raise DataError(f"{name}: no {' or '.join(patterns)} in {folder}")
    return found[0]


def keep_present(name: str, paths: Sequence[str | None]) -> np.ndarray:
    """Boolean `[n]`: listed images that exist (not None). Logs how many do not.

    Raises:
      DataError: none exists.
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
    """Records without patients known to be younger. Logs how many are left out."""
    young = records.age_months < min_age_months  # False for unknown ages (NaN).
    if young.any():
        _log.info(
            "%s: %d images of patients under %g months left out (min_age_months)",
            name,
            young.sum(),
            min_age_months,
        )
    return records.take(~young)
