"""Object stores: manifests, images and caches at `gs://` and `s3://` addresses, through fsspec."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.extras import install_line

_log = logging.getLogger(__name__)

# Protocols of fsspec, and the extra that installs what each needs.
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "memory": ""}
_ADDRESS = re.compile(rf"({'|'.join(_EXTRAS)})://")


def is_remote(path: str) -> bool:
    """Whether a path is the address of an object, such as `gs://bucket/manifest.csv`."""
    return "://" in path and bool(_ADDRESS.match(path))


def normpath(path: str) -> str:
    """`os.path.normpath`, which leaves the two slashes of an address as they are."""
    if not is_remote(path):
        return os.path.normpath(path)
    protocol, _, rest = path.partition("://")
    return f"{protocol}://{posixpath.normpath(rest)}"


def open_binary(path: str) -> io.BufferedReader:
    """A file or an object, for reading.

    Raises:
      DataError, OSError: see `read`.
    """
    return io.BufferedReader(io.BytesIO(read(path))) if is_remote(path) else open(path, "rb")


def read(path: str, limit: int | None = None) -> bytes:
    """Reads an object in one request, or its first `limit` bytes.

    Raises:
      DataError: the package for this kind of store is not installed.
      OSError: there is no such object, or the store cannot be reached.
    """
    store, name = _open_store(path)
    with _as_os_error():
        content: Any = store.cat_file(name, start=None if limit is None else 0, end=limit)
    return bytes(content)


def copy_folder(address: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Copies objects below an address to a local folder. Objects that are there are not repeated.

    Each file appears in full or not at all, `*.json` and `*.npy` after the others. If several
    processes of a machine copy, one does and the others wait.

    Args:
      address: such as `s3://bucket/decoded`.
      folder: the copy.
      wanted: path relative to the address -> whether to copy the object.

    Raises:
      DataError: the package for this kind of store is not installed.
      OSError: the store cannot be reached, or the folder not be written to.
    """
    store, root = _open_store(address)
    with _as_os_error():
        found = store.find(root, detail=True)
    sizes = {posixpath.relpath(path, root): info["size"] for path, info in found.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [
            name
            for name, size in sizes.items()
            if wanted(name) and not _has_size(folder / name, size)
        ]
        if not missing:
            return
        total = sum(sizes[name] for name in missing)
        _log.info("copying %s to %s: %s files, %.2f GB", address, folder, len(missing), total / 1e9)
        missing.sort(key=lambda name: (name.endswith((".json", ".npy")), name))
        with tqdm(total=total, unit="B", unit_scale=True, desc="copying", leave=False) as bar:
            for name in missing:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.part")
                with _as_os_error():
                    store.get_file(posixpath.join(root, name), str(temporary))
                os.replace(temporary, path)
                bar.update(sizes[name])


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _open_store(path: str) -> tuple[Any, str]:
    """The store of an address, and the name within it."""
    protocol = path.partition("://")[0]
    if protocol in ("gs", "gcs"):
        # Otherwise gcsfs asks for the kind of bucket at every object, and warns each time that the
        # credentials do not allow it. Only zonal buckets need this: set the variable to "true".
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        # It logs each failure with a traceback, and then raises it.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        import fsspec.core

        store, name = fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = _EXTRAS[protocol] or "gcs"
        raise DataError(
            f"{path} needs a package that is not installed: {install_line(extra)} ({error})"
        ) from None
    return store, name


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """The libraries of the stores raise various errors."""
    try:
        yield
    except FileNotFoundError as error:  # Most stores give the name alone, some a sentence.
        told = str(error) if " " in str(error) else "there is no such object"
        raise FileNotFoundError(told) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
