"""What the adapters share: the place with its options, folders, and CSV tables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError

_OPTION = re.compile(r"[a-z_]+=[^:]*")
_DIGITS = re.compile(r"(\d+)")


def parse_place(name: str, place: str, **defaults) -> tuple[Path, dict]:
    """Splits `/path[:key=value...]` into an existing path and its options.

    Args:
      name: the adapter, for messages.
      place: what stands after `name:` in the data set's name.
      **defaults: the options that the adapter knows; a value is read as its default's type.

    Raises:
      DataError: the path does not exist, an option is unknown or its value has the wrong type.
    """
    options = dict(defaults)
    parts = place.split(":")
    # From the right, because a path may hold colons too.
    while len(parts) > 1 and _OPTION.fullmatch(parts[-1]):
        key, value = parts.pop().split("=", 1)
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise DataError(f"{name}:{place}: unknown option {key!r}; known options: {known}")
        try:
            options[key] = type(defaults[key])(value)
        except ValueError:
            kind = "a number" if isinstance(defaults[key], int | float) else "text"
            raise DataError(f"{name}:{place}: {key} is {value!r}; expected {kind}") from None
    path = Path(":".join(parts)).expanduser()
    if not path.exists():
        raise DataError(f"{name}:{place}: {path} does not exist")
    return path.absolute(), options


def natural_key(text: str) -> list:
    """Sorts `film2` before `film10`."""
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(text)]


def visible(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Names of the subfolders and of the files of a folder, hidden ones left out, natural order."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith((".", "__MACOSX")):
                # The directory entry knows its kind: no stat a file.
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """Every folder at and below `folder` with its files, top down, natural order."""
    folders, files = visible(folder)
    yield str(folder), files
    for name in folders:
        yield from walk(os.path.join(folder, name))
