"""Atomic writes: a file is replaced as a whole, or stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    An error or an interruption leaves the old file, and no temporary one. Several processes may
    write the same path at once; the last one wins.

    Args:
      path: the file to replace.
      mode: `"w"` (UTF-8 text) or `"wb"`.
      **options: of `open`, such as `newline=""`.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    temporary = f"{os.fspath(path)}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Writes indented JSON, atomically."""
    with replaced(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
