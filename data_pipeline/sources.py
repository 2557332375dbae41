"""Data sets by name: `source:place` -> records, through the adapter of each source."""

from __future__ import annotations

import re

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records
from data_pipeline.remote import is_remote

_ENTRY = re.compile(r"(?:\\,|[^,])+")


def parse_sources(spec: str) -> list[tuple[str, str]]:
    r"""`"manifest:/a.csv,phantom:infant"` -> `[("manifest", "/a.csv"), ("phantom", "infant")]`.

    A comma that belongs to a path is written `\,`.

    Raises:
      DataError: an entry has no colon, no place, or names a source that does not exist, or an
        address without a manifest.
    """
    pairs: list[tuple[str, str]] = []
    for written in _ENTRY.findall(spec):
        entry = written.replace("\\,", ",").strip()
        if not entry:
            continue
        name, colon, place = entry.partition(":")
        if is_remote(entry) or (name != "manifest" and is_remote(place)):
            raise DataError(
                f"{entry} is in an object store, where images are found through a manifest: write "
                "manifest:ADDRESS of a CSV file with their addresses"
            )
        if not colon or not place:
            advice = r"; write a comma in a path as \," if pairs else ""
            raise DataError(
                f"{entry!r} is not of the form source:place, such as manifest:/data/images.csv or "
                f"folder:/data/images{advice}"
            )
        if name not in ADAPTERS:
            raise DataError(f"unknown source {name!r}; there are {', '.join(sorted(ADAPTERS))}")
        pairs.append((name, place))
    return pairs


def open_sources(spec: str) -> Records:
    """All records of a comma-separated list of sources, in order. Reads lists, not images.

    Raises:
      DataError: see `parse_sources`; or a source cannot be opened or is empty.
    """
    parts = []
    for name, place in parse_sources(spec):
        records = ADAPTERS[name](place)
        if not len(records):
            raise DataError(f"{name}:{place} holds no images")
        parts.append(records)
    if not parts:
        raise DataError("no data named; set config.data.train, such as manifest:/data/images.csv")
    return Records.concatenate(parts)
