"""Images decoded once and kept as ArrayRecord, one folder a preprocessing.

    CACHE/<fingerprint of the preprocessing>/
      preprocessing.json           what the images were decoded with
      shard-00000.array_record     images, one a record, raw bytes
      shard-00000.keys.npy         hashes of their paths, in the same order

A shard counts only once its keys are there, which is the last thing to be written: an interrupted
preparation goes on where it stopped, and several machines may fill the same folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage, UserError

_log = logging.getLogger(__name__)
_DESCRIPTION = "preprocessing.json"
# One record a group: random access reads nothing else. Radiographs shrink by an eighth only.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def path_keys(paths: Sequence[str]) -> np.ndarray:
    """Hashes of paths, uint64 `[n]`: eight bytes instead of a path for each of millions."""
    digests = b"".join(
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()
        for path in paths
    )
    return np.frombuffer(digests, np.uint64)


def cache_folder(directory: str | os.PathLike, preprocessing: Preprocessing) -> Path:
    """Where the images of this preprocessing lie in a cache."""
    return Path(directory, preprocessing.fingerprint())


def create_folder(
    directory: str | os.PathLike, preprocessing: Preprocessing, dtype: type = np.uint8
) -> Path:
    """Makes the folder of a preprocessing, or checks that it holds the same kind of images.

    Raises:
      UserError: it holds images of another depth.
    """
    folder = cache_folder(directory, preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    description = {**preprocessing.to_dict(), "dtype": np.dtype(dtype).name}
    path = folder / _DESCRIPTION
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != description:
            raise UserError(
                f"{folder} holds images as {found.get('dtype')}, not {description['dtype']}; choose "
                "another folder"
            )
    else:
        temporary = folder / f".{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    return folder


def write_shard(
    folder: str | os.PathLike, paths: Sequence[str], preprocessing: Preprocessing, dtype: str
) -> tuple[int, list[tuple[str, str]]]:
    """Decodes images into a new shard.

    Args:
      folder: made by `create_folder`.
      paths: which images.
      preprocessing: how.
      dtype: `"uint8"` or `"uint16"`.

    Returns:
      How many images were written, and `(path, reason)` of those that could not be read.
    """
    name = f"shard-{uuid.uuid4().hex[:16]}"
    records = Path(folder, f"{name}.array_record")
    unfinished = Path(folder, f".{name}.array_record")
    writer = ArrayRecordWriter(str(unfinished), _WRITER_OPTIONS)
    written, bad = [], []
    try:
        for path in paths:
            try:
                image = load_image(path, preprocessing, np.dtype(dtype).type)
            except UnreadableImage as error:
                bad.append((error.path, error.reason))
                continue
            writer.write(image.tobytes())
            written.append(path)
    finally:
        writer.close()  # An unclosed file cannot be read, nor be left behind open.
    if not written:
        unfinished.unlink()
        return 0, bad
    os.replace(unfinished, records)
    keys = Path(folder, f".{name}.keys.npy")
    np.save(keys, path_keys(written))
    os.replace(keys, Path(folder, f"{name}.keys.npy"))
    return len(written), bad


def _shards(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """Finished shards with the keys of their images."""
    return [
        (keys.with_name(keys.name.replace(".keys.npy", ".array_record")), np.load(keys))
        for keys in sorted(folder.glob("shard-*.keys.npy"))
    ]


def cached_keys(folder: Path) -> np.ndarray:
    """Keys of all images in a folder, sorted."""
    parts = [keys for _, keys in _shards(folder)]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


class Cache:
    """Random access to decoded images, from any number of threads. Made by `find_cache`."""

    def __init__(self, folder: Path, preprocessing: Preprocessing, dtype: str):
        shards = _shards(folder)
        self._paths = [str(path) for path, _ in shards]
        self._starts = np.cumsum([0, *(len(keys) for _, keys in shards)])
        keys = np.concatenate([keys for _, keys in shards] or [np.empty(0, np.uint64)])
        order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._keys, self._rows = keys[order], order
        self._side = preprocessing.image_size
        self._dtype = np.dtype(dtype)
        self._readers: list[ArrayRecordReader | None] = [None] * len(shards)
        self._lock = threading.Lock()
        self._missed = False

    def __len__(self) -> int:
        return len(self._keys)

    def lookup(self, image_path: str) -> int | None:
        """The row of an image, or None if it is not here, which is logged the first time."""
        row = int(self._rows_of([image_path])[0])
        return None if row < 0 else row

    def _rows_of(self, image_paths: Sequence[str]) -> np.ndarray:
        """Rows of images, int64 `[n]`, -1 for those that are not here."""
        keys = path_keys(image_paths)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        rows = np.where(self._keys[at] == keys, self._rows[at].astype(np.int64), -1)
        if not self._missed and rows.min(initial=0) < 0:
            self._missed = True
            _log.warning(
                "not in the cache: %s; such images are decoded from their files, prepare again to "
                "add them",
                image_paths[int(np.argmin(rows))],
            )
        return rows

    def missing(self, image_paths: Sequence[str]) -> int:
        """How many of the images are not here."""
        return int((~np.isin(path_keys(image_paths), self._keys)).sum())

    def read(self, row: int, dtype: type = np.uint8) -> np.ndarray:
        """The image of a row, `[S, S]`, uint8 or uint16 at full range."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        record = self._reader(shard).read([row - int(self._starts[shard])])[0]
        return self._image(record, dtype)

    def read_into(self, image_paths: Sequence[str], images: np.ndarray) -> np.ndarray:
        """Reads several images at once, which is faster than one by one.

        Args:
          image_paths: which, n of them.
          images: uint8 `[n, S, S]`, which is filled where an image is here.

        Returns:
          Boolean `[n]`: the image is here.
        """
        rows = self._rows_of(image_paths)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards[rows >= 0]):
            here = np.flatnonzero((shards == shard) & (rows >= 0))
            records = self._reader(shard).read((rows[here] - self._starts[shard]).tolist())
            for i, record in zip(here, records, strict=True):
                images[i] = self._image(record, np.uint8)
        return rows >= 0

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
                    reader = ArrayRecordReader(
                        self._paths[shard], "readahead_buffer_size:0,index_storage_option:in_memory"
                    )
                    self._readers[shard] = reader
        return reader


def find_cache(directory: str | os.PathLike, preprocessing: Preprocessing) -> Cache | None:
    """The cache of a preprocessing, or None with the reason in the log."""
    cache, reason = open_cache(directory, preprocessing)
    if cache is None:
        _log.warning("cache not used: %s", reason)
    else:
        _log.info("cache %s: %s images", directory, f"{len(cache):,}")
    return cache


def open_cache(
    directory: str | os.PathLike, preprocessing: Preprocessing
) -> tuple[Cache | None, str]:
    """The cache of a preprocessing and an empty string, or None and why there is none."""
    directory = Path(directory).expanduser()
    folder = cache_folder(directory, preprocessing)
    if (folder / _DESCRIPTION).is_file():
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        cache = Cache(folder, preprocessing, description["dtype"])
        if len(cache):
            return cache, ""
        return None, f"{folder} holds no images yet; run configs/prepare.py"
    if not directory.is_dir():
        return None, f"{directory} does not exist; configs/prepare.py makes one"
    wanted = preprocessing.to_dict()
    differences = set()
    for path in sorted(directory.glob(f"*/{_DESCRIPTION}")):
        found = json.loads(path.read_text(encoding="utf-8"))
        differences.update(
            f"{name} is {found.get(name)!r} there and {value!r} here"
            for name, value in wanted.items()
            if found.get(name) != value
        )
    if not differences:
        return None, f"{directory} holds no decoded images; configs/prepare.py makes them"
    return None, f"{directory} was prepared differently: {'; '.join(sorted(differences))}"
