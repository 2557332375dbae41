"""Files of small copies of public data sets, and their records as a table."""

import math
from pathlib import Path

import numpy as np


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write(path: Path, text: str) -> Path:
    return touch(path, text.encode())


def table(records, *columns):
    """Rows by file name: `{name: (column, ...)}`."""
    names = [Path(path).name for path in records.image_path]
    values = [getattr(records, column) for column in columns]
    rows = {
        name: tuple(
            None if isinstance(v, float | np.floating) and math.isnan(v) else v for v in row
        )
        for name, *row in zip(names, *values, strict=True)
    }
    assert len(rows) == len(names)
    return rows
