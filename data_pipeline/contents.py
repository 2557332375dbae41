"""Files with the same content under different names."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)

_MAX_BYTES = 2 * 2**30
_MAX_SECONDS = 20.0


def rows_of_equal_keys(pairs: Iterable[tuple[object, int]]) -> list[list[int]]:
    """Groups of rows with the same key."""
    found: dict[object, list[int]] = {}
    for key, row in pairs:
        found.setdefault(key, []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]


def equal_files(
    paths: Sequence[str],
    sides: Sequence[str] | None = None,
    *,
    max_bytes: int = _MAX_BYTES,
    max_seconds: float = _MAX_SECONDS,
) -> list[list[int]]:
    """Groups of rows whose files have the same content. Only files of equal size are read.

    Args:
      paths: the files, of which each is compared once. Relative ones, such as the addresses of
        phantom images, are passed over.
      sides: side of each file; only groups with several sides are returned. None = all groups.
      max_bytes, max_seconds: limits; files beyond them are not compared, which is logged.
    """
    deadline = time.monotonic() + max_seconds
    side_of = dict(zip(paths, sides or [""] * len(paths), strict=True))
    first = {path: row for row, path in reversed(list(enumerate(paths)))}
    by_size: dict[int, list[str]] = {}
    late = False
    for path in filter(os.path.isabs, first):
        late = time.monotonic() > deadline
        if late:
            break
        try:
            by_size.setdefault(os.stat(path).st_size, []).append(path)
        except OSError:
            continue  # Reading it will say why.
    alike = [
        (size, path)
        for size, group in by_size.items()
        if len(group) > 1 and (sides is None or len({side_of[path] for path in group}) > 1)
        for path in group
    ]
    digests: list[tuple[bytes, int]] = []
    read = 0
    for size, path in alike:
        late = late or read > max_bytes or time.monotonic() > deadline
        if late:
            break
        try:
            content = Path(path).read_bytes()
        except OSError:
            continue
        digests.append((hashlib.blake2b(content, digest_size=16).digest(), first[path]))
        read += size
    if late:
        _log.warning(
            "repeated images were looked for among %d of %d files of equal size; "
            "configs/check_data.py compares all",
            len(digests),
            len(alike),
        )
    groups = rows_of_equal_keys(digests)
    if sides is None:
        return groups
    return [rows for rows in groups if len({sides[row] for row in rows}) > 1]
