"""Age, sex, view and patient of DICOM films, for layouts that keep them in the headers alone."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import DECODER_VERSION, Header, Refused

_log = logging.getLogger(__name__)
_THREADS = 16  # Reading waits for the disk, above all for one on a network.
_REMEMBER_FROM = 2000  # Films; fewer are read again faster than a cache is managed.
_MAX_FILMS_A_PATIENT = 50
_FIELDS = ("age_months", "sex", "view", "patient_key")


def header_columns(
    name: str, root: Path, paths: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ages in months, sexes, views and patient keys of DICOM files, unknown where unreadable.

    Reads the beginning of every file, with a progress bar where that takes long, and remembers
    the result of large sets in `$XDG_CACHE_HOME/infantxray`: these four values, of which the
    patient is a one-way hash, and no other text of the headers.

    Args:
      name: the adapter, for messages.
      root: the data set's folder, which the memory is kept for.
      paths: the files.
    """
    key = hashlib.sha256(f"{DECODER_VERSION}\0{root}\0{len(paths)}".encode())
    for path in paths:
        key.update(path.encode(errors="surrogateescape"))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    memory = Path(base, "infantxray", f"headers-{key.hexdigest()[:24]}.npz")
    if memory.is_file():
        _log.info("%s: DICOM headers from %s; delete it if the films have changed", name, memory)
        with np.load(memory) as stored:
            columns = [stored[field] for field in _FIELDS]
    else:
        columns = _read_columns(name, paths)
        if len(paths) >= _REMEMBER_FROM:
            _remember(memory, columns)
    ages, *texts = columns
    sexes, views, patients = (text.astype(str).astype(object) for text in texts)
    return ages.astype(np.float32), sexes, views, _without_placeholders(name, patients)


def _without_placeholders(name: str, patients: np.ndarray) -> np.ndarray:
    """Empties the identifier that de-identification gave to everyone."""
    counts = Counter(patients[patients != ""].tolist())
    for patient, count in counts.items():
        if count > _MAX_FILMS_A_PATIENT and count > len(patients) // 10:
            _log.warning(
                "%s: %d films carry the same PatientID, taken for a placeholder: these films count "
                "as a patient each, and whether a split is by patient cannot be known",
                name,
                count,
            )
            patients = np.where(patients == patient, "", patients)
    return patients


def _read_columns(name: str, paths: Sequence[str]) -> list[np.ndarray]:
    with ThreadPoolExecutor(_THREADS) as pool:
        progress = tqdm(
            pool.map(_read, paths, chunksize=64),
            total=len(paths),
            desc=f"{name}: DICOM headers",
            disable=len(paths) < _REMEMBER_FROM,
        )
        headers = list(progress)
    return [np.array([getattr(header, field) for header in headers]) for field in _FIELDS]


def _read(path: str) -> Header:
    try:
        return read_header(path)
    except (Refused, OSError):
        return Header()  # Reading the film will say what is wrong with it.


def _remember(memory: Path, columns: list[np.ndarray]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=memory.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **dict(zip(_FIELDS, columns, strict=True)))
        os.replace(file.name, memory)
    except OSError as error:
        _log.warning("DICOM headers could not be remembered in %s (%s)", memory, error.strerror)
