"""From `config.data` to records, splits and readers of images."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator

import numpy as np

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, ImageSource
from data_pipeline.manifest import SPLITS, Records, in_words, spelled_apart
from data_pipeline.phantom import CLASSES as PHANTOM_CLASSES
from data_pipeline.sources import open_sources
from data_pipeline.splits import (
    Split,
    check_classes,
    check_unchanged,
    divide,
    keep_labels,
    patient_keys,
    write_split,
)

_log = logging.getLogger(__name__)


def preprocessing(settings) -> Preprocessing:
    """That of `config.data`."""
    return Preprocessing(
        image_size=settings.image_size,
        resize=settings.resize,
        trim_borders=settings.trim_borders,
    )


def divide_sources(settings) -> Split:
    """Opens and divides the data of `config.data`."""

    def open_role(spec: str) -> Records:
        records = open_sources(spec)
        if settings.given_splits == "ignore":
            records = records.replace(split=np.full(len(records), "", dtype=object))
        return records

    return divide(
        open_role(settings.train),
        open_role(settings.validation) if settings.validation else None,
        open_role(settings.test) if settings.test else None,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
        patient_ids=settings.patient_ids,
    )


def open_split(settings, folder: str) -> Split:
    """`divide_sources` with `data.label_fraction` applied, logged, and recorded in `split.csv`.

    Raises:
      DataError: the folder holds a run that began with other images, labels or places.
    """
    split = divide_sources(settings)
    train = keep_labels(
        split.train,
        settings.label_fraction,
        settings.split_seed,
        settings.patient_ids,
        settings.label_seed,
    )
    split = dataclasses.replace(split, train=train)
    for name in SPLITS:
        _log.info("%-10s %s", name, describe(split[name], settings.patient_ids))
    everyone = Records.concatenate([split[name] for name in SPLITS])
    for message, _ in doubtful_spellings(everyone, settings.patient_ids):
        _log.warning(message)
    path = os.path.join(folder, "split.csv")
    if os.path.exists(path):
        check_unchanged(path, split)
    else:
        write_split(path, split)
    return split


def describe(records: Records, patient_ids: str) -> str:
    """One line: images, patients, and what is unknown."""
    patients = len(set(patient_keys(records, patient_ids)))
    text = f"{len(records):,} images of {patients:,} patients"
    for what, known in (("label", records.has_label), ("age", records.has_age)):
        missing = int((~known).sum())
        if missing:
            text += f", {missing:,} without {what}"
    anonymous = int((records.patient_id == "").sum())
    if anonymous:
        text += (
            f" ({anonymous:,} images without a patient id count as a patient each: whether the "
            "split is by patient cannot be known)"
        )
    return text


def doubtful_spellings(records: Records, patient_ids: str) -> Iterator[tuple[str, np.ndarray]]:
    """Patient ids, then labels, that differ by capitals, blanks or Unicode form alone.

    Each with a message and the images concerned.
    """
    keys = patient_keys(records, patient_ids)
    ids = [
        key.removeprefix("patient:") if patient else ""
        for key, patient in zip(keys, records.patient_id, strict=True)
    ]
    for what, names in (("patient ids", ids), ("labels", records.label.tolist())):
        groups = spelled_apart(set(names))
        if groups:
            doubtful = {name for group in groups for name in group}
            rows = np.flatnonzero([name in doubtful for name in names])
            message = f"{what} that differ by capitals or blanks alone count as different ones"
            yield f"{message}: {in_words(groups)}; correct them if they are not", rows


def find_classes(settings, train: Records) -> tuple[str, ...]:
    """`data.classes`, or the labels found in the training data.

    The phantom's conditions come in the paper's order, others in alphabetical order.

    Raises:
      DataError: a class has no training image, or there is only one class.
    """
    found = set(train.label[train.has_label].tolist())
    if settings.classes:
        classes = tuple(settings.classes)
        if len(classes) == 1 and classes[0] not in found:
            classes = tuple(name.strip() for name in classes[0].split(","))
        if len(set(classes)) < len(classes):
            raise DataError(f"config.data.classes names a class twice: {', '.join(classes)}")
        for name in classes:
            if name not in found:
                raise DataError(
                    f"config.data.classes names {name!r}, which no training image carries; labels "
                    f"found: {', '.join(sorted(found)) or 'none'}"
                )
        ignored = sorted(found - set(classes))
        if ignored:
            _log.info("labels not in config.data.classes, taken as unknown: %s", ", ".join(ignored))
    elif found and found <= set(PHANTOM_CLASSES):
        classes = tuple(name for name in PHANTOM_CLASSES if name in found)
    else:
        classes = tuple(sorted(found))
    if len(classes) == 1:
        raise DataError(
            f"all labelled training images are {classes[0]!r}: there is nothing to tell apart"
        )
    return classes


def check_split(settings, split: Split, classes: tuple[str, ...]) -> None:
    """Raises `DataError` where `split` leaves a condition untrained, or nothing to test on."""
    check_classes(split, classes, settings.patient_ids)
    check_tested(split)
    _check_conditions(settings, split, classes)


def check_tested(split: Split) -> None:
    """Raises `DataError` where no image is left for testing."""
    if not len(split.test):
        raise DataError("no image is left for test; raise config.data.test_fraction")


def _check_conditions(settings, split: Split, classes: tuple[str, ...]) -> None:
    """Raises `DataError` where a scored image has a condition that no training image has."""
    for role in ("validation", "test"):
        found = set(split[role].label[split[role].has_label])
        unknown = sorted(found - set(classes))
        # Whoever names the classes leaves the others out on purpose.
        if unknown and classes and not settings.classes:
            raise DataError(
                f"images for {role} have a condition that no training image has: "
                f"{', '.join(map(repr, unknown))} (training images have {', '.join(classes)}); "
                "correct the spelling, or list the classes in config.data.classes to leave the "
                "others out"
            )
        missing = [name for name in classes if name not in found]
        if missing and found:
            _log.warning("no image for %s has: %s", role, ", ".join(missing))


def image_source(
    settings,
    records: Records,
    classes: tuple[str, ...],
    how: Preprocessing,
    *,
    training: bool,
    bad_files: BadFiles,
) -> ImageSource:
    """A reader of `records` with the policies of `config.data`."""
    return ImageSource(
        records,
        classes,
        how,
        on_error=settings.on_error,
        substitute=training,
        cache=settings.cache,
        memory_mb=settings.get("memory_mb", 0),
        bad_files=bad_files,
    )


def age_statistics(records: Records) -> tuple[float, float]:
    """Mean and standard deviation of the known ages, months.

    Raises:
      DataError: fewer than two ages are known, or all are equal.
    """
    ages = records.age_months[records.has_age].astype(np.float64)
    if len(ages) < 2 or ages.std() == 0:
        raise DataError(
            f"{len(ages)} training images have a known age{' (all equal)' if len(ages) else ''}, "
            "too few to learn it from; set config.age_head=False"
        )
    return float(ages.mean()), float(ages.std())
