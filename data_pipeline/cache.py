"""Cache of decoded images: ArrayRecord shards, one folder for each preprocessing.

    CACHE/<fingerprint of the preprocessing>/
      preprocessing.json           what the images were decoded with
      shard-00000.array_record     images, one a record, raw bytes
      shard-00000.keys.npy         for each record: hash of the path, size and time of the file

A shard is used once its keys exist, which are written last. Therefore an interrupted preparation
can resume, several machines can fill the same folder, and training can read at the same time: a
reader uses the shards that were finished when it was opened.

An image is decoded from its file if it is missing here, if that file has changed since (size or
modification time), or if its shard is damaged; the log names the first of each kind. ArrayRecord
checks a 64-bit hash of every record that it reads. `cache_writing` writes shards.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipeline import remote
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UserError
from data_pipeline.files import user_cache

_log = logging.getLogger(__name__)
DESCRIPTION = "preprocessing.json"
_READER_OPTIONS = "readahead_buffer_size:0,index_storage_option:in_memory"
KEYS = np.dtype(
    [("key", np.uint64), ("size", np.int64), ("modified_ns", np.int64), ("written_ns", np.int64)]
)
_NO_FILE = -1  # Size of an image without a file, such as a phantom image: never outdated.
_NOT_RECORDED = -2  # In caches of earlier versions.


def path_keys(paths: Iterable[str]) -> np.ndarray:
    """Hashes of paths, uint64 `[n]`: eight bytes instead of a path for each of millions."""
    digests = b"".join(
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()
        for path in paths
    )
    return np.frombuffer(digests, np.uint64)


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds of a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _NO_FILE, 0
    return status.st_size, status.st_mtime_ns


def cache_folder(directory: str | os.PathLike[str], preprocessing: Preprocessing) -> Path:
    """The folder of a preprocessing in a cache."""
    return Path(directory, preprocessing.fingerprint())


def read_description(path: Path) -> dict[str, Any]:
    """The contents of `preprocessing.json`."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["dtype"] not in ("uint8", "uint16"):
            raise ValueError(found["dtype"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged; delete the folder {path.parent} and run configs/prepare.py again"
        ) from None
    return found


def read_keys(folder: Path, seen: set[str]) -> list[tuple[Path, np.ndarray]]:
    """Finished shards that are not in `seen`, which grows: their files, and an array of `KEYS`."""
    found = []
    for path in sorted(folder.glob("shard-*.keys.npy")):
        records = path.with_name(path.name.replace(".keys.npy", ".array_record"))
        if path.name in seen or not records.is_file():
            continue
        seen.add(path.name)
        try:
            keys = np.load(path)
        except Exception:  # A damaged header makes NumPy's parser raise almost anything.
            keys = None
        if keys is not None and keys.dtype == np.uint64:  # Of earlier versions.
            plain, keys = keys, np.zeros(len(keys), KEYS)
            keys["key"], keys["size"] = plain, _NOT_RECORDED
        if keys is None or keys.dtype != KEYS:
            _log.warning("%s is damaged: its images are decoded from their files", path)
            continue
        found.append((records, keys))
    return found


def _latest(keys: np.ndarray) -> np.ndarray:
    """Rows of the last written record of each key, sorted by key."""
    order = np.lexsort((keys["written_ns"], keys["key"]))
    sorted_keys = keys["key"][order]
    last = np.ones(len(order), bool)
    last[:-1] = sorted_keys[1:] != sorted_keys[:-1]
    return order[last].astype(np.uint32)


def to_decode(folder: Path, paths: np.ndarray, seen: set[str]) -> np.ndarray:
    """The paths that a cache lacks, or with changed files; `seen` as in `read_keys`."""
    keys = np.concatenate([np.empty(0, KEYS), *(keys for _, keys in read_keys(folder, seen))])
    keys = keys[_latest(keys)]
    if not len(keys):
        return paths
    wanted = path_keys(paths)
    at = np.minimum(np.searchsorted(keys["key"], wanted), len(keys) - 1)
    wrong = keys["key"][at] != wanted
    for i in np.flatnonzero(~wrong):
        wrong[i] = _is_outdated(keys[at[i]], paths[i])
    found: np.ndarray = paths[wrong]
    return found


def _is_outdated(key: np.void, path: str) -> bool:
    """Whether a file has changed since its image was cached. A deleted file counts as unchanged."""
    if key["size"] < 0:
        return False
    size, modified_ns = file_stamp(path)
    return size != _NO_FILE and (size, modified_ns) != (key["size"], key["modified_ns"])


class Cache:
    """Random access to decoded images, from any number of threads. Made by `find_cache`."""

    def __init__(self, folder: Path, preprocessing: Preprocessing, dtype: str):
        shards = read_keys(folder, set())
        self._paths = [str(path) for path, _ in shards]
        self._starts = np.cumsum([0, *(len(keys) for _, keys in shards)])
        keys = np.concatenate([np.empty(0, KEYS), *(keys for _, keys in shards)])
        self._rows = _latest(keys)
        self._keys = keys["key"][self._rows]
        self._stamps = keys
        # The file of an image is looked at once: whether it was, and whether the image is of use.
        self._checked, self._usable = np.zeros(len(keys), bool), np.ones(len(keys), bool)
        self._side = preprocessing.image_size
        self._dtype = np.dtype(dtype)
        self._readers: list[ArrayRecordReader | None] = [None] * len(shards)
        self._lock = threading.Lock()
        self._said: set[str] = set()
        if (keys["size"] == _NOT_RECORDED).any():
            _log.info(
                "%s was prepared before sizes and times of files were recorded: images that have "
                "changed since are not noticed",
                folder,
            )

    def __len__(self) -> int:
        return len(self._keys)

    def _warn_once(self, kind: str, message: str, *args: object) -> None:
        with self._lock:
            if kind not in self._said:
                self._said.add(kind)
                _log.warning(message, *args)

    def lookup(self, image_path: str) -> int | None:
        """The row of an image, or None if it is missing or outdated; the log names the first."""
        row = int(self._rows_of([image_path])[0])
        return None if row < 0 else row

    def _rows_of(self, image_paths: Sequence[str]) -> np.ndarray:
        """Rows of images, int64 `[n]`; -1 for images to decode from their files."""
        keys = path_keys(image_paths)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        rows = np.where(self._keys[at] == keys, self._rows[at].astype(np.int64), -1)
        if rows.min(initial=0) < 0:
            self._warn_once(
                "missing",
                "not in the cache: %s; such images are decoded from their files; prepare again to "
                "add them",
                image_paths[int(rows.argmin())],
            )
        for i in np.flatnonzero((rows >= 0) & ~self._checked[rows]).tolist():
            if _is_outdated(self._stamps[rows[i]], image_paths[i]):
                self._usable[rows[i]] = False
                self._warn_once(
                    "changed",
                    "changed since it was prepared: %s; such images are decoded from their files; "
                    "prepare again to update them",
                    image_paths[i],
                )
            self._checked[rows[i]] = True
        return np.where(self._usable[rows], rows, -1)

    def read(self, row: int, dtype: type = np.uint8) -> np.ndarray | None:
        """The image of a row, `[S, S]`, uint8 or uint16 at full range; None in a damaged shard."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        records = self._records(shard, [row - int(self._starts[shard])])
        return None if records is None else self._image(records[0], dtype)

    def get(self, image_path: str) -> np.ndarray | None:
        """The image of a path, uint8 `[S, S]`; None where it must be decoded from its file."""
        row = self.lookup(image_path)
        return None if row is None else self.read(row)

    def read_into(self, image_paths: Sequence[str], images: np.ndarray) -> np.ndarray:
        """Reads several images at once, which is faster than one by one.

        Args:
          image_paths: n paths.
          images: uint8 `[n, S, S]`, filled where an image is here.

        Returns:
          Boolean `[n]`: the image was filled in.
        """
        rows = self._rows_of(image_paths)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards[rows >= 0]):
            here = np.flatnonzero((shards == shard) & (rows >= 0))
            records = self._records(int(shard), (rows[here] - self._starts[shard]).tolist())
            if records is None:
                rows[here] = -1
                continue
            for i, record in zip(here, records, strict=True):
                images[i] = self._image(record, np.uint8)
        return rows >= 0

    def _records(self, shard: int, positions: list[int]) -> list[bytes] | None:
        """Records of a shard; None if it is damaged, which excludes it from now on."""
        try:
            records: list[bytes] = self._reader(shard).read(positions)
            return records
        except (RuntimeError, ValueError, IndexError, OSError):
            start, end = self._starts[shard], self._starts[shard + 1]
            self._usable[start:end] = False
            self._warn_once(
                self._paths[shard],
                "%s is damaged: its %d images are decoded from their files; delete it with its "
                ".keys.npy and prepare again",
                self._paths[shard],
                end - start,
            )
            return None

    def _image(self, record: bytes, dtype: type) -> np.ndarray:
        image = np.frombuffer(record, self._dtype).reshape(self._side, self._side)
        if self._dtype == dtype:
            return image
        if dtype == np.uint8:
            return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return image.astype(np.uint16) * np.uint16(257)

    def _reader(self, shard: int) -> ArrayRecordReader:
        reader = self._readers[shard]
        if reader is None:
            with self._lock:
                reader = self._readers[shard]
                if reader is None:
                    reader = ArrayRecordReader(self._paths[shard], _READER_OPTIONS)
                    expected = self._starts[shard + 1] - self._starts[shard]
                    if reader.num_records() != expected:
                        raise ValueError("a shard and its keys have different lengths")
                    self._readers[shard] = reader
        return reader


def find_cache(directory: str | os.PathLike[str], preprocessing: Preprocessing) -> Cache | None:
    """The cache of a preprocessing, or None with the reason in the log.

    A cache in an object store is copied to a folder of this machine first.
    """
    place = directory
    if remote.is_remote(str(place)):
        place = _copy_remote(str(directory), preprocessing)
    cache, reason = open_cache(place, preprocessing)
    if cache is None:
        reason = reason.replace(str(place), str(directory))
        _log_once(logging.WARNING, f"cache not used, images are decoded: {reason}")
    else:
        _log_once(logging.INFO, f"cache {directory}: {len(cache):,} images")
    return cache


@functools.cache
def _log_once(level: int, text: str) -> None:
    """A run opens the cache for every part of the data."""
    _log.log(level, "%s", text)


def _copy_remote(address: str, preprocessing: Preprocessing) -> Path:
    """The local copy of a cache in an object store."""
    digest = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    folder = user_cache() / f"decoded-{digest}"
    own = f"{preprocessing.fingerprint()}/"

    def is_wanted(name: str) -> bool:
        finished = name.endswith((".keys.npy", ".array_record")) and "/." not in name
        return name.endswith(f"/{DESCRIPTION}") or (name.startswith(own) and finished)

    try:
        remote.copy_folder(address, folder, is_wanted)
    except OSError as error:
        raise DataError(f"the cache {address} cannot be copied to {folder} ({error})") from None
    return folder


def open_cache(
    directory: str | os.PathLike[str], preprocessing: Preprocessing
) -> tuple[Cache | None, str]:
    """The cache of a preprocessing and an empty string, or None and why there is none.

    Raises:
      UserError: the description of the cache is damaged.
    """
    directory = Path(directory).expanduser()
    folder = cache_folder(directory, preprocessing)
    if (folder / DESCRIPTION).is_file():
        cache = Cache(folder, preprocessing, str(read_description(folder / DESCRIPTION)["dtype"]))
        if len(cache):
            return cache, ""
        return None, f"{folder} holds no images yet; run configs/prepare.py"
    if not directory.is_dir():
        return None, f"{directory} does not exist; configs/prepare.py makes one"
    wanted = preprocessing.to_dict()
    differences: set[str] = set()
    for path in sorted(directory.glob(f"*/{DESCRIPTION}")):
        found = read_description(path)
        differences.update(
            f"{name} is {found.get(name)!r} there and {value!r} here"
            for name, value in wanted.items()
            if found.get(name) != value
        )
    if not differences:
        return None, f"{directory} holds no decoded images; configs/prepare.py makes them"
    return None, f"{directory} was prepared differently: {'; '.join(sorted(differences))}"
