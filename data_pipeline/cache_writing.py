"""Writes shards of decoded images; `cache` describes and reads them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipeline.cache import (
    DESCRIPTION,
    KEYS,
    cache_folder,
    file_stamp,
    path_keys,
    read_description,
)
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage, UserError
from data_pipeline.processes import stopping

# One record a group: random access reads nothing else. Radiographs shrink by an eighth only.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_SECONDS_TO_ABANDON = 86_400


def create_folder(
    directory: str | os.PathLike[str], preprocessing: Preprocessing, dtype: type = np.uint8
) -> Path:
    """Makes the folder of a preprocessing, or checks that it holds the same kind of images.

    Raises:
      UserError: it holds images of another depth, or its description is damaged.
    """
    folder = cache_folder(directory, preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    description = {**preprocessing.to_dict(), "dtype": np.dtype(dtype).name}
    path = folder / DESCRIPTION
    if path.is_file():
        found = read_description(path)
        if found != description:
            raise UserError(
                f"{folder} holds images as {found['dtype']}, not {description['dtype']}; choose "
                "another folder"
            )
    else:
        temporary = folder / f".{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    return folder


def write_shard(
    folder: str | os.PathLike[str], paths: Sequence[str], preprocessing: Preprocessing, dtype: str
) -> tuple[int, list[tuple[str, str]]]:
    """Decodes images into a new shard. A worker that is asked to stop writes a shorter one.

    Args:
      folder: made by `create_folder`.
      paths: the images.
      preprocessing: preprocessing of a file to an image.
      dtype: `"uint8"` or `"uint16"`.

    Returns:
      The number of images written, and `(path, reason)` of unreadable images.
    """
    name = f"shard-{uuid.uuid4().hex[:16]}"
    unfinished = Path(folder, f".{_host()}-{name}.array_record")
    with _locked(unfinished):
        stamps, written, bad = _write_records(unfinished, paths, preprocessing, dtype)
        if written:
            keys = np.empty(len(written), KEYS)
            keys["key"] = path_keys(written)
            keys["size"], keys["modified_ns"] = np.array(stamps, np.int64).T
            keys["written_ns"] = time.time_ns()
            temporary = unfinished.with_suffix(".keys.npy")
            with _locked(temporary) as file:
                np.save(file, keys)
                file.flush()
                os.replace(unfinished, Path(folder, f"{name}.array_record"))
                os.replace(temporary, Path(folder, f"{name}.keys.npy"))
    return len(written), bad


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Makes a file that `sweep` leaves alone as long as this process lives, and deletes it."""
    while True:
        with open(path, "wb") as file:
            with contextlib.suppress(OSError):  # A file system without locks.
                fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists():  # Swept between the two lines above.
                continue
            try:
                yield file
            finally:
                path.unlink(missing_ok=True)
            return


def _write_records(
    file: Path, paths: Sequence[str], preprocessing: Preprocessing, dtype: str
) -> tuple[list[tuple[int, int]], list[str], list[tuple[str, str]]]:
    writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)
    stamps: list[tuple[int, int]] = []
    written: list[str] = []
    bad: list[tuple[str, str]] = []
    try:
        for path in paths:
            if stopping():
                break
            stamp = file_stamp(path)  # Before reading: a change meanwhile is noticed later.
            try:
                image = load_image(path, preprocessing, np.dtype(dtype).type)
            except UnreadableImage as error:
                bad.append((error.path, error.reason))
                continue
            writer.write(image.tobytes())
            stamps.append(stamp)
            written.append(path)
    finally:
        writer.close()  # An unclosed writer aborts the process.
    return stamps, written, bad


def _host() -> str:
    """Eight hexadecimal digits for this machine."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def sweep(folder: Path) -> int:
    """Deletes the unfinished shards of writers that are gone; returns how many.

    A writer on this machine holds a lock as long as it lives. A file of another machine is deleted
    when nobody has written to it for a day.
    """
    swept = 0
    for path in folder.glob(".*-shard-*"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if path.name.startswith(f".{_host()}-"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif time.time() - path.stat().st_mtime < _SECONDS_TO_ABANDON:
                continue
            path.unlink()
            swept += 1
    for path in folder.glob(".shard-*"):  # Of earlier versions.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_ABANDON:
                path.unlink()
                swept += 1
    return swept
