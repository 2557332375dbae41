"""Object stores: manifests and images at `gs://` and `s3://` addresses, read through fsspec."""

from __future__ import annotations

import io
import os
import posixpath
import re
from typing import Any

from data_pipeline.errors import DataError

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
    protocol = path.partition("://")[0]
    try:
        import fsspec.core

        store, name = fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = _EXTRAS[protocol] or "gcs"
        raise DataError(
            f'{path} needs a package that is not installed: pip install "infantxray[{extra}]" '
            f"({error})"
        ) from None
    try:
        content: Any = store.cat_file(name, start=None if limit is None else 0, end=limit)
    except OSError:
        raise
    except Exception as error:  # The libraries of the stores raise various errors.
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    return bytes(content)
