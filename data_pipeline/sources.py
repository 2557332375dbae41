"""`source:place` names -> records, through the adapter of each source."""

from __future__ import annotations

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records


def parse_sources(spec: str) -> list[tuple[str, str]]:
    """`"manifest:/a.csv,phantom:infant"` -> `[("manifest", "/a.csv"), ("phantom", "infant")]`.

    Raises:
      DataError: an entry has no colon, no place, or names a source that does not exist.
    """
    pairs = []
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        name, colon, place = entry.partition(":")
        if not colon or not place:
            raise DataError(
                f"{entry!r} is not of the form source:place, such as manifest:/data/films.csv or "
                "folder:/data/films"
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
        raise DataError("no data named; set config.data.train, such as manifest:/data/films.csv")
    return Records.concatenate(parts)
