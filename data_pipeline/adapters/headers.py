"""DICOM headers of a data set: age, sex, view and patient of every image, cached for large sets."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data_pipeline.cells import NOBODY
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.dicom_file import parse_dicom
from data_pipeline.decode.radiograph import DECODER_VERSION, Header, Refused
from data_pipeline.files import user_cache

_log = logging.getLogger(__name__)
_THREADS = 16  # Reading waits for the disk, most of all on a network.
_REMEMBER_FROM = 2000  # Images; fewer are read quickly.
_FIELDS = ("age_months", "sex", "view", "patient_key", "patient_alike")
_REMEMBERED = (*_FIELDS, "placeholder")
_BIRTH_DATE = 0x00100030
_HEADER_READ_BYTES, _HEADER_INFLATED_BYTES = 2**18, 2**22
_T = TypeVar("_T")


def header_columns(
    name: str, root: Path, paths: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ages in months, sexes, views and patient ids of DICOM files; unknown where unreadable.

    Reads the beginning of every file, with a progress bar for large sets, and stores their result
    in `$XDG_CACHE_HOME/infantxray`: these values, with one-way hashes for the patient, and no other
    text of the headers. A placeholder that stands for several patients comes back empty.

    Args:
      name: the adapter, for messages.
      root: the folder of the data set, part of the cache key.
      paths: the files.
    """
    kind = f"{DECODER_VERSION} {' '.join(_REMEMBERED)}\0{root}\0{len(paths)}"
    key = hashlib.sha256(kind.encode(errors="surrogateescape"))
    for path in paths:
        key.update(path.encode(errors="surrogateescape"))
        if len(paths) >= _REMEMBER_FROM:  # A file that was replaced has another size or time.
            key.update(_stamp(path))
    memory = user_cache() / f"headers-{key.hexdigest()[:24]}.npz"
    if memory.is_file():
        _log.info("%s: DICOM headers from %s", name, memory)
        with np.load(memory) as stored:
            columns = [stored[field] for field in _REMEMBERED]
    else:
        columns = _read_columns(name, paths)
        if len(paths) >= _REMEMBER_FROM:
            _remember(memory, columns)
    ages, *texts, placeholder = columns
    sexes, views, patients, alike = (text.astype(str).astype(object) for text in texts)
    if placeholder.any():
        _log.warning(
            "%s: %d images carry a PatientID that is a placeholder (a word such as ANONYMOUS, or "
            "one with several birth dates or sexes): each image counts as a patient, and whether "
            "a split is by patient cannot be known",
            name,
            placeholder.sum(),
        )
    ids = [
        f"dicom:{key}:{spelling}" if key and not nobody else ""
        for key, spelling, nobody in zip(patients, alike, placeholder, strict=True)
    ]
    return ages.astype(np.float32), sexes, views, np.array(ids, object)


def _stamp(path: str) -> bytes:
    """Size and time of a file; empty where it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return b""
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _read_columns(name: str, paths: Sequence[str]) -> list[np.ndarray]:
    headers = _map(_read, paths, f"{name}: DICOM headers")
    columns = [np.array([getattr(header, field) for header in headers]) for field in _FIELDS]
    _, sexes, _, patients, _ = columns
    return [*columns, _placeholders(name, paths, sexes, patients)]


def _placeholders(
    name: str, paths: Sequence[str], sexes: np.ndarray, patients: np.ndarray
) -> np.ndarray:
    """Boolean `[n]`: the identifier is a placeholder word, or belongs to several people.

    Any other identifier counts, however many images have it: a patient in two splits would be worse
    than two patients treated as one.
    """
    rows_of = defaultdict(list)
    for row, patient in enumerate(patients):
        if patient:
            rows_of[patient].append(row)
    nobody = _keys_of_nobody()
    shared = [row for rows in rows_of.values() if len(rows) > 1 for row in rows]
    births = _map(_birth_date, [paths[row] for row in shared], f"{name}: births")
    birth = dict(zip(shared, births, strict=True))
    placeholder = np.zeros(len(paths), bool)
    for patient, rows in rows_of.items():
        sexes_here = {sexes[row] for row in rows} - {""}
        births_here = {birth.get(row, "") for row in rows} - {""}
        placeholder[rows] = patient in nobody or len(sexes_here) > 1 or len(births_here) > 1
    return placeholder


def _keys_of_nobody() -> set[str]:
    """`Header.patient_key` of all placeholder words."""
    words = [*NOBODY, *("0" * n for n in range(1, 65)), *("x" * n for n in range(2, 17))]
    spelled = {spell(word) for word in words for spell in (str.lower, str.upper, str.capitalize)}
    return {
        hashlib.blake2b(word.encode(), digest_size=8, person=b"infantxray").hexdigest()
        for word in spelled
    }


def _map(function: Callable[[str], _T], paths: Sequence[str], description: str) -> list[_T]:
    with ThreadPoolExecutor(_THREADS) as pool:
        progress = tqdm(
            pool.map(function, paths, chunksize=64),
            total=len(paths),
            desc=description,
            disable=len(paths) < _REMEMBER_FROM,
        )
        return list(progress)


def _read(path: str) -> Header:
    try:
        return read_header(path)
    except (Refused, OSError):
        return Header()  # Reading the image will report the error.


def _birth_date(path: str) -> str:
    """Eight digits as in the header, or empty; used for comparison only."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_READ_BYTES)
        dicom = parse_dicom(head, {_BIRTH_DATE}, (), _HEADER_INFLATED_BYTES)
    except (Refused, OSError):
        return ""
    date = dicom.text(_BIRTH_DATE).replace(".", "")
    # De-identification writes 1900 or earlier in place of a date.
    return date if len(date) == 8 and date.isdecimal() and date[:4] > "1900" else ""


def _remember(memory: Path, columns: list[np.ndarray]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=memory.parent, suffix=".npz", delete=False) as file:
            stored: dict[str, Any] = dict(zip(_REMEMBERED, columns, strict=True))
            np.savez(file, **stored)
        os.replace(file.name, memory)
    except OSError as error:
        _log.warning("DICOM headers could not be remembered in %s (%s)", memory, error.strerror)
