"""Ids, names of files, labels and cells of a manifest that may mean something else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipeline.cells import (
    NOBODY,
    by_image,
    in_short,
    in_words,
    joined_otherwise,
    rewritten,
    spelled_apart,
)
from data_pipeline.records import Records

_log = logging.getLogger(__name__)

_NO_LABEL = frozenset({"none", "unknown"})  # Or a condition of that name.


def doubtful_spellings(records: Records) -> Iterator[tuple[str, np.ndarray]]:
    """Finds patient ids, then labels, that may be one name in several spellings.

    Also patient ids and names of files that a spreadsheet has rewritten (`1.23457E+11`, `12-Mar`),
    ids of several people, and labels that join others by another sign than a bar.

    Yields:
      A message, and the rows of the images concerned.
    """
    ids = records.patient_name
    for what, names in (("patient ids", ids), ("labels", records.label.tolist())):
        groups = spelled_apart(set(names))
        if groups:
            doubtful = {name for group in groups for name in group}
            rows = np.flatnonzero([name in doubtful for name in names])
            groups = by_image(groups, names, records.image_path)
            message = f"{what} that differ only in spelling are treated as different"
            yield f"{message}: {in_words(groups)}; correct them if they are the same", rows
    files = [os.path.basename(path) for path in records.image_path]
    for what, names in (("patient ids", records.patient_id.tolist()), ("names of files", files)):
        found = rewritten(names)
        if found:
            yield f"{what}: {in_short(found)}", np.flatnonzero(np.isin(names, found))
    sexes: dict[str, set[str]] = {}
    for name, sex in zip(ids, records.sex, strict=True):
        if name and sex:
            sexes.setdefault(name, set()).add(sex)
    both = sorted(name for name, known in sexes.items() if len(known) > 1)
    if both:
        message = f"{len(both):,} patient ids have images of both sexes, such as {both[0]!r}"
        rows = np.flatnonzero(np.isin(np.array(ids, str), both))
        yield f"{message} ({ids.count(both[0]):,} images): several people may share an id", rows
    found = joined_otherwise(records.label.tolist())
    if found:
        message = f"labels that seem to join several: {', '.join(map(repr, found[:3]))}"
        rows = np.flatnonzero(np.isin(records.label.astype(str), found))
        yield f"{message}; write a bar between them (a|b) if they are several findings", rows


def log_doubtful_cells(
    path: str, columns: Mapping[str, list[str]], emptied: Mapping[str, int]
) -> None:
    """Warns of values of a manifest that may have another meaning.

    Args:
      path: the manifest.
      columns: its cells, by column.
      emptied: by column, how many cells with a word such as NA were taken as empty.
    """
    if emptied:
        _log.warning(
            "%s: a dash or a word such as nan, NA or null is taken as empty: %s",
            path,
            ", ".join(f"{name} in {count:,} rows" for name, count in sorted(emptied.items())),
        )
    for name, words, counts_as in (
        ("label", _NO_LABEL, "a condition"),
        ("patient_id", NOBODY, "one patient"),
    ):
        values = columns.get(name, [])
        for value in sorted(value for value in set(values) if value.casefold() in words):
            _log.warning(
                "%s: %s is %r in %d rows, and counts as %s; leave it empty where it is not known",
                path,
                name,
                value,
                values.count(value),
                counts_as,
            )
