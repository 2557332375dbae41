"""Ids, names of files, labels and cells of a manifest that may mean something else."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

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


def doubtful_spellings(
    records: Records, normal: Collection[str] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """Finds patient ids, then labels, that may be one name in several spellings.

    Also patient ids and names of files that a spreadsheet has rewritten (`1.23457E+11`, `12-Mar`),
    ids of several people, labels that join others by another sign than a bar, and images that are
    labelled both normal and with a finding.

    Args:
      records: the images.
      normal: labels that mean no finding, where an image may have several findings.

    Yields:
      A message, and the rows of the images concerned.
    """
    ids = records.patient_name
    findings = _findings(records)
    for what, each in (("patient ids", [(name,) for name in ids]), ("labels", findings)):
        groups = spelled_apart({name for row in each for name in row})
        if groups:
            rows = _rows_with(each, {name for group in groups for name in group})
            if each is not findings:
                groups = by_image(groups, ids, records.image_path)
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
    found = joined_otherwise({name for names in findings for name in names})
    if found:
        message = f"labels that seem to join several: {', '.join(map(repr, found[:3]))}"
        rows = _rows_with(findings, set(found))
        yield f"{message}; write a bar between them (a|b) if they are several findings", rows
    no_finding = {name.casefold() for name in normal}
    both_ways = {
        label
        for label in set(records.label.tolist())
        if len({name.casefold() in no_finding for name in label.split("|")}) > 1
    }
    if both_ways and no_finding:
        rows = np.flatnonzero([label in both_ways for label in records.label])
        yield (
            f"{len(rows):,} images are labelled both normal and with a finding, such as "
            f"{min(both_ways)!r} ({records.image_path[rows[0]]}); they count as having the finding",
            rows,
        )


def _findings(records: Records) -> list[tuple[str, ...]]:
    """The findings that each image is labelled with, the uncertain ones too."""
    names = {label: tuple(label.split("|")) for label in set(records.label.tolist())}
    pairs = zip(records.label, records.uncertain, strict=True)
    return [names[label] + uncertain for label, uncertain in pairs]


def _rows_with(findings: Sequence[tuple[str, ...]], wanted: set[str]) -> np.ndarray:
    return np.flatnonzero([not wanted.isdisjoint(names) for names in findings])


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
