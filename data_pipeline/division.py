"""Splits by patient, stratified by condition: training, validation and test.

The split of a source depends on the images that it lists, the fractions and the seed, and not on
other sources. Therefore stage one, on adults and infants, and stage two, on infants alone, have the
same test patients.
"""

from __future__ import annotations

import hashlib
import logging
import os

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.labels import count_findings, rarest_findings
from data_pipeline.records import SPLITS, Records
from data_pipeline.splits import FEW_IMAGES, Split, check_disjoint, named

_log = logging.getLogger(__name__)
# From the most to the least protected: if images of a patient disagree, the first applies.
_PRECEDENCE = ("test", "validation", "train")


def _portable_names(records: Records) -> list[str]:
    """Names of patients that do not depend on the folder of the data."""
    place = records.source[0].partition(":")[2] if len(records) else ""
    root = os.path.dirname(place)
    return [
        f"patient:{patient}" if patient else f"image:{path.removeprefix(place).removeprefix(root)}"
        for patient, path in zip(records.patient_id, records.image_path, strict=True)
    ]


def _digest(seed: int, key: str) -> bytes:
    # Names of files need not be UTF-8.
    text = f"{seed}:{key}".encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=8).digest()


def split_by_patient(
    records: Records,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Records:
    """Fills the `split` column, patient by patient.

    The split of a source is kept; only the roles that it lacks are cut from its training patients.
    Within a source, patients are stratified by their rarest condition and ordered by a hash of
    their id.

    Raises:
      DataError: a source's own split has a patient on two sides.
    """
    keys = records.patient
    role: dict[str, str] = {}
    for source in dict.fromkeys(records.source):
        rows = np.flatnonzero(records.source == source)
        for key, where in _split_source(
            records.take(rows), keys[rows], validation_fraction, test_fraction, seed
        ).items():
            before = role.get(key, where)
            role[key] = min(before, where, key=_PRECEDENCE.index)
    return records.replace(split=np.array([role[key] for key in keys], dtype=object))


def _split_source(
    records: Records,
    keys: np.ndarray,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, str]:
    name_of = dict(zip(keys, _portable_names(records), strict=True))
    given: dict[str, str] = {}
    label_of: dict[str, str] = {}
    known = set(keys[records.has_label | records.has_age])
    rarest_of = rarest_findings(records.label)
    frequency: dict[str, int] = dict(count_findings(records.label))
    frequency[""] = len(records) + 1  # A known condition always precedes an unknown one.
    for key, split, label in zip(keys, records.split, rarest_of, strict=True):
        if given.setdefault(key, split) != split:
            raise DataError(
                f"{records.source[0]}: {named(key)} is in {given[key] or 'no split'!r} and in "
                f"{split or 'no split'!r}; all images of a patient must be in one split"
            )
        rarest = label_of.setdefault(key, label)
        if (frequency[label], label) < (frequency[rarest], rarest):
            label_of[key] = label
    roles_given = set(given.values()) - {""}
    if roles_given and "" in given.values():
        _log.warning(
            "%s: %d images have no split, unlike the others; they count as training images",
            records.source[0],
            (records.split == "").sum(),
        )
    strata: dict[str, list[str]] = {}
    role = {}
    for key, split in given.items():
        role[key] = split or "train"
        if role[key] == "train":
            strata.setdefault(label_of[key], []).append(key)
    for members in strata.values():
        members.sort(key=lambda key: _digest(seed, name_of[key]))
    if "test" not in roles_given:
        # Patients without a label or an age cannot be used for testing. (How well stage one
        # rebuilds them can be validated.)
        testable = {label: [k for k in members if k in known] for label, members in strata.items()}
        _take(testable, role, "test", test_fraction, seed)
    if "validation" not in roles_given:
        # How well stage one rebuilds images is then validated on the others.
        spared = _too_few_to_validate(records, keys, role, validation_fraction)
        strata = {label: [k for k in m if k not in spared] for label, m in strata.items()}
        _take(strata, role, "validation", validation_fraction, seed)
    return role


def _too_few_to_validate(
    records: Records, keys: np.ndarray, role: dict[str, str], fraction: float
) -> set[str]:
    """The training patients with an answer, if a source has few of them among many without.

    A validation part would then hold too few answers to choose a checkpoint by; they are better
    learned from. An answer is a condition, or an age where a source has no conditions.
    """
    answered = records.has_label if records.has_label.any() else records.has_age
    training = np.array([role[key] == "train" for key in keys])
    patients = set(keys[training & answered])
    partly = len(patients) < len(set(keys[training]))
    few = fraction * (training & answered).sum() < FEW_IMAGES
    return patients if partly and few else set()


def _take(
    strata: dict[str, list[str]], role: dict[str, str], name: str, fraction: float, seed: int
) -> None:
    """Moves `fraction` of the patients of every stratum from training to `name`.

    `fraction` is of all patients at hand. What rounding leaves over goes to the strata with the
    largest remainders, so that the total is right too; a stratum of two or more patients gives
    at least one to testing and keeps at least one for training.
    """
    if fraction <= 0:
        return
    totals = {label: len(members) for label, members in strata.items()}
    free = {label: [k for k in strata[label] if role[k] == "train"] for label in strata}
    exact = {label: fraction * totals[label] for label in strata}
    count = {label: int(exact[label]) for label in strata}
    spare = round(sum(exact.values())) - sum(count.values())
    by_remainder = sorted(
        strata, key=lambda label: (count[label] - exact[label], _digest(seed, label))
    )
    for label in by_remainder[:spare]:
        count[label] += 1
    for label, members in free.items():
        n = max(count[label], 1 if label else 0)
        for key in members[: min(n, len(members) - 1)]:
            role[key] = name


def divide(
    train: Records,
    validation: Records | None = None,
    test: Records | None = None,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Split:
    """Divides records by role and checks that no patient is on two sides.

    `validation` and `test`, where given, are used whole, or, where such a source carries a split
    of its own, the part for that role. Otherwise the role is cut from `train`. Images
    that `train` assigns to a role that is also given are left out.

    Raises:
      DataError: a patient is on two sides, or nothing is left to train on.
    """
    assigned = split_by_patient(
        train,
        validation_fraction=0.0 if validation is not None else validation_fraction,
        test_fraction=0.0 if test is not None else test_fraction,
        seed=seed,
    )
    parts = {name: assigned.take(assigned.split == name) for name in SPLITS}
    for name, given in (("validation", validation), ("test", test)):
        if given is not None:
            if len(parts[name]):
                _log.warning(
                    "%d images that data.train assigns to %s are left out: data.%s is given",
                    len(parts[name]),
                    name,
                    name,
                )
            own = given.split == name
            part = given.take(own) if own.any() else given
            parts[name] = part.replace(split=np.full(len(part), name, dtype=object))
    if not len(parts["train"]):
        raise DataError("no image is left to train on: every row belongs to validation or test")
    split = Split(**parts)
    check_disjoint(split)
    return split


def keep_labels(records: Records, fraction: float, seed: int, draw: int = 0) -> Records:
    """Keeps the labels and ages of a fraction of the patients; the rest keep their images.

    Stratified by finding, with at least one patient each; patients with a known age and no label
    form a separate stratum. Smaller fractions are subsets of larger ones of the same `draw`.
    """
    if fraction >= 1:
        return records
    keys = records.patient
    names = np.empty(len(records), dtype=object)
    for source in dict.fromkeys(records.source):
        rows = np.flatnonzero(records.source == source)
        names[rows] = _portable_names(records.take(rows))
    name_of = dict(zip(keys, names, strict=True))
    strata: dict[str, set[str]] = {}
    for key, label, aged in zip(keys, records.label, records.has_age, strict=True):
        for name in label.split("|") if label or aged else ():
            strata.setdefault(name, set()).add(key)
    kept: set[str] = set()
    what = f"label{draw or ''}"
    for members in strata.values():
        ordered = sorted(members, key=lambda key: (_digest(seed, f"{what}:{name_of[key]}"), key))
        kept.update(ordered[: max(1, round(fraction * len(ordered)))])
    keep = np.array([key in kept for key in keys])
    uncertain = [names if k else () for names, k in zip(records.uncertain, keep, strict=True)]
    return records.replace(
        uncertain=np.fromiter(uncertain, dtype=object, count=len(uncertain)),
        label=np.where(keep, records.label, ""),
        age_months=np.where(keep, records.age_months, np.float32(np.nan)),
    )
