"""Labels of images: label maps, several findings an image, and rows that describe one image."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipeline.cells import composed, join_findings
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

NORMAL_NAMES = ("normal", "no finding", "no findings")
# What policies for the uncertain findings of training images there are.
UNCERTAIN = ("ignore", "positive", "negative")
_NAMED = 5


def names_in(labels: Iterable[str]) -> set[str]:
    """The findings that some labels name."""
    return {name for label in set(labels) for name in label.split("|")} - {""}


def carries(labels: np.ndarray, name: str) -> np.ndarray:
    """Whether each label `[N]` is or contains the finding, bool `[N]`."""
    return np.array([name == label or name in label.split("|") for label in labels], dtype=bool)


def count_findings(labels: Iterable[str]) -> Counter[str]:
    """How many labels name each finding."""
    counts: Counter[str] = Counter()
    for label, number in Counter(labels).items():
        for name in filter(None, dict.fromkeys(label.split("|"))):
            counts[name] += number
    return counts


def rarest_findings(labels: np.ndarray) -> np.ndarray:
    """The rarest finding that each label names, `[N]`; a label of one finding stays as it is."""
    counts = count_findings(labels)
    rarest = {
        label: min(label.split("|"), key=lambda name: (counts[name], name)) for label in set(labels)
    }
    return np.array([rarest[label] for label in labels], dtype=object)


@dataclasses.dataclass(frozen=True)
class FindingNames:
    """Names of findings, if an image may have several.

    Attributes:
      classes: names of the K findings that are learned.
      normal: names of an image without any finding, compared without regard to capitals.
      others: further findings that the data labels but that are not learned. Any other name comes
        from data labelled in another way: for an image with such a name, the other findings are
        unknown.
    """

    classes: tuple[str, ...]
    normal: tuple[str, ...] = NORMAL_NAMES
    others: frozenset[str] = frozenset()

    def is_normal(self, name: str) -> bool:
        return name.casefold() in {normal.casefold() for normal in self.normal}

    def foreign(self, labels: Iterable[str]) -> dict[str, int]:
        """Names that are neither a class, nor known otherwise, with their number of images."""
        known = {*self.classes, *self.others}
        counts = count_findings(labels)
        return {n: c for n, c in sorted(counts.items()) if n not in known and not self.is_normal(n)}

    def matrix(self, records: Records) -> np.ndarray:
        """Findings of each image, float32 `[N, K]`: 1 present, 0 absent, NaN unknown.

        An image without a label is unknown throughout. One with a label has the findings that it
        names, is unknown for those that are `uncertain`, and has none of the others.
        """
        cells: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
        index = {name: k for k, name in enumerate(self.classes)}
        found = np.empty((len(records), len(self.classes)), np.float32)
        for i, key in enumerate(zip(records.label, records.uncertain, strict=True)):
            if key not in cells:
                label, uncertain = key
                row = np.zeros(len(index), np.float32)
                if not label or self.foreign((label,)):
                    row[:] = np.nan
                for names, value in ((uncertain, np.nan), (label.split("|"), 1.0)):
                    for name in names:
                        if name in index:
                            row[index[name]] = value
                cells[key] = row
            found[i] = cells[key]
        return found


def resolve_uncertain(records: Records, policy: str) -> Records:
    """Applies a policy to uncertain findings.

    Args:
      records: the images.
      policy: `"ignore"` leaves them unknown, `"positive"` counts them as present (CheXpert's
        U-Ones), `"negative"` as absent (U-Zeros; Irvin et al., AAAI 2019). An image for which the
        source affirms nothing, not even that it is normal, then stays unlabelled.
    """
    if policy == "ignore":
        return records
    labels = records.label.tolist()
    if policy == "positive":
        pairs = zip(labels, records.uncertain, strict=True)
        labels = [join_findings([*label.split("|"), *names]) for label, names in pairs]
    return records.replace(label=_objects(labels), uncertain=_objects([()] * len(records)))


def _objects(values: Sequence[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def parse_label_map(text: str) -> dict[str, str]:
    """`"normal=No Finding|no finding,mass=Mass"` -> `{"No Finding": "normal", ...}`.

    Args:
      text: entries `new=old|old`, separated by commas; or the path of a text file with an entry a
        line (for names with a comma). An empty `new` removes the name: the image is then treated as
        if it did not have this label.

    Raises:
      DataError: the file cannot be read, an entry has another form, or a name is mapped twice.
    """
    path = os.path.expanduser(text.strip())
    entries = text.split(",")
    if text.strip() and (os.path.isfile(path) or "=" not in text):
        try:
            with open(path, encoding="utf-8-sig") as file:
                entries = [line for line in file.read().splitlines() if not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise DataError(
                f"config.data.label_map={text} cannot be read ({why}); name a file with a line "
                "new=old|old for each label, or write these entries themselves, separated by commas"
            ) from None
    found: dict[str, str] = {}
    for entry in filter(None, map(str.strip, map(composed, entries))):
        new, equals, old = entry.partition("=")
        names = [name.strip() for name in old.split("|") if name.strip()]
        if not equals or not names or "|" in new:
            raise DataError(
                f"config.data.label_map: {entry!r} is not of the form new=old|old, such as "
                "normal=No Finding|no finding"
            )
        for name in names:
            if found.setdefault(name, new.strip()) != new.strip():
                raise DataError(
                    f"config.data.label_map maps {name!r} to {found[name]!r} and to {new.strip()!r}"
                )
    return found


def map_labels(records: Records, mapping: dict[str, str]) -> tuple[Records, list[str]]:
    """Renames findings, those that are uncertain and those of boxes too.

    Returns:
      The records, and notes on what was mapped, what stayed, and which entries fit no label.
    """
    if not mapping:
        return records, []
    counts = count_findings(records.label)

    def renamed(names: Iterable[str]) -> str:
        return join_findings(mapping.get(name, name) for name in names)

    label = {text: renamed(text.split("|")) for text in set(records.label)}
    columns: dict[str, list[Any]] = {
        "label": [label[text] for text in records.label],
        "uncertain": [
            tuple(filter(None, renamed(names).split("|"))) if names else names
            for names in records.uncertain
        ],
        "boxes": [
            tuple(box._replace(label=renamed(box.label.split("|"))) for box in boxes)
            for boxes in records.boxes
        ],
    }
    uncertain = names_in("|".join(names) for names in records.uncertain)
    mapped = [f"{n} → {mapping[n] or 'nothing'} ({c:,})" for n, c in counts.items() if n in mapping]
    same = [f"{n} ({c:,})" for n, c in sorted(counts.items()) if n not in mapping]
    useless = sorted(set(mapping) - set(counts) - uncertain)
    notes = [f"labels mapped: {', '.join(sorted(mapped)) or 'none'}"]
    if same:
        notes.append(f"labels as they are: {', '.join(same)}")
    if useless:
        notes.append(f"labels of config.data.label_map that no image has: {', '.join(useless)}")
    arrays = {name: _objects(values) for name, values in columns.items()}
    return records.replace(**arrays), notes


def merge_rows(records: Records, normal: Sequence[str] = NORMAL_NAMES) -> Records:
    """One row an image, where a table has one row a finding.

    The labels, uncertain findings and boxes of its rows are joined. A finding that one row affirms
    and another calls uncertain is affirmed.

    Raises:
      DataError: rows of an image name different patients, ages, sexes or splits, or one says that
        it is normal and another names a finding.
    """
    rows_of: dict[str, list[int]] = {}
    for i, path in enumerate(records.image_path):
        rows_of.setdefault(path, []).append(i)
    if len(rows_of) == len(records):
        return records
    names = FindingNames((), tuple(normal))
    columns = {name: getattr(records, name).copy() for name in ("label", "uncertain", "boxes")}
    contradictions = []
    for path, rows in rows_of.items():
        if len(rows) == 1:
            continue
        for column in ("patient_id", "age_months", "sex", "split"):
            values = {str(v) for v in getattr(records, column)[rows]}
            if len(values) > 1:
                raise DataError(
                    f"rows of {path} differ in {column}: {', '.join(sorted(values))}; they must be "
                    "the same in all rows of an image"
                )
        found = names_in(records.label[rows])
        if len({names.is_normal(name) for name in found}) > 1:
            contradictions.append(f"{path} ({', '.join(sorted(found))})")
        unsure = {name for row in rows for name in records.uncertain[row]} - found
        columns["label"][rows[0]] = join_findings(found)
        columns["uncertain"][rows[0]] = tuple(sorted(unsure))
        columns["boxes"][rows[0]] = tuple(box for row in rows for box in records.boxes[row])
    if contradictions:
        raise DataError(
            f"rows of {len(contradictions):,} images contradict each other: "
            f"{'; '.join(contradictions[:_NAMED])}; correct them"
        )
    _log.info(
        "%s rows describe %s images: rows of an image are joined",
        f"{len(records):,}",
        f"{len(rows_of):,}",
    )
    first = np.array([rows[0] for rows in rows_of.values()])
    return records.replace(**columns).take(first)


def check_rows_agree(records: Records) -> None:
    """Raises `DataError` where rows of one image have different labels."""
    labelled = records.take(records.has_label)
    label_of: dict[str, str] = {}
    images = set()
    for path, label in zip(labelled.image_path, labelled.label, strict=True):
        if label_of.setdefault(path, label) != label:
            images.add(path)
    if images:
        path = min(images)
        raise DataError(
            f"{len(images):,} images are in several rows with different labels, such as {path}; "
            "where an image may have several findings, set config.labels=multi"
        )
