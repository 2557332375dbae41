"""Conditions of a data set: which are learned, and whether each part has images of them."""

from __future__ import annotations

import logging

import numpy as np

from data_pipeline.cells import composed
from data_pipeline.dataset import DataSettings
from data_pipeline.errors import DataError
from data_pipeline.labels import FindingNames, check_rows_agree, count_findings, names_in
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.phantom import CLASSES as PHANTOM_CLASSES
from data_pipeline.splits import Split, check_classes

_log = logging.getLogger(__name__)


def find_classes(settings: DataSettings, train: Records) -> tuple[str, ...]:
    """`settings.classes`, or the labels found in the training data.

    The phantom's conditions come in the paper's order, others in alphabetical order. If an image
    may have several findings, the names for no finding are not classes.

    Raises:
      DataError: a class has no training image; there is only one class; or images have several
        findings, but one condition an image is learned.
    """
    several = train.has_several
    if several.any() and not settings.multi_label:
        names = ", ".join(f"{n} ({c:,})" for n, c in count_findings(train.label[several]).items())
        raise DataError(
            f"{int(several.sum()):,} training images have several findings, such as "
            f"{train.label[several][0]!r}, and one condition an image is learned; set "
            f"config.labels=multi, or leave one label in each row (findings of these images: "
            f"{names})"
        )
    if settings.multi_label:
        normal = FindingNames((), settings.normal).is_normal
        found = {name for name in names_in(train.label) if not normal(name)}
    else:
        check_rows_agree(train)
        found = set(train.label[train.has_label].tolist())
    if settings.classes:
        classes = tuple(composed(str(name)) for name in settings.classes)
        if len(classes) == 1 and classes[0] not in found:
            classes = tuple(name.strip() for name in classes[0].split(","))
        if len(set(classes)) < len(classes):
            raise DataError(f"config.data.classes names a class twice: {', '.join(classes)}")
        joined = [name for name in classes if "|" in name]
        if joined:
            raise DataError(
                f"config.data.classes names {joined[0]!r}; | joins findings, so no class can be "
                "called so"
            )
        for name in classes:
            if name not in found:
                raise DataError(
                    f"config.data.classes names {name!r}, which no training image carries; labels "
                    f"found: {', '.join(sorted(found)) or 'none'}"
                )
        ignored = sorted(found - set(classes))
        if ignored:
            taken = "not learned" if settings.multi_label else "taken as unknown"
            _log.info("labels not in config.data.classes, %s: %s", taken, ", ".join(ignored))
    elif found and found <= set(PHANTOM_CLASSES):
        classes = tuple(name for name in PHANTOM_CLASSES if name in found)
    else:
        classes = tuple(sorted(found))
    if len(classes) == 1 and not settings.multi_label:
        raise DataError(
            f"all labelled training images are {classes[0]!r}; a diagnosis needs two classes"
        )
    return classes


def find_conditions(
    settings: DataSettings, train: Records, *, age_head: bool, best_metric: str
) -> tuple[str, ...]:
    """The conditions that stage two learns; none where only ages are known.

    Raises:
      DataError: there is no label to learn from, and no age to learn instead.
    """
    classes = find_classes(settings, train)
    if not classes and not age_head:
        raise DataError("no training image has a label, and config.age_head is off")
    if not classes and best_metric != "age_mae_months":
        advice = "set config.best_metric=age_mae_months to train on ages alone"
        if not train.has_age.any():
            advice = "nor an age; a manifest gives them in its columns label and age_months"
        raise DataError(
            f"no training image has a label, so config.best_metric={best_metric} cannot be "
            f"computed; {advice}"
        )
    return classes


def finding_names(
    settings: DataSettings, split: Split, classes: tuple[str, ...]
) -> FindingNames | None:
    """The names of findings in labels; None if an image has one condition.

    Args:
      settings: settings of the data.
      split: split of the training run. Findings that its training sources label count as known.
      classes: the learned classes.
    """
    if not settings.multi_label:
        return None
    sources = set(split.train.source.tolist())
    parts = [split[role] for role in SPLITS]
    labels = np.concatenate([part.label[np.isin(part.source, list(sources))] for part in parts])
    others = frozenset(names_in(labels)) - set(classes)
    return FindingNames(classes, settings.normal, others)


def check_split(settings: DataSettings, split: Split, classes: tuple[str, ...]) -> None:
    """Raises `DataError` if a condition cannot be trained, or no image is left for testing."""
    check_classes(split, classes)
    check_tested(split)
    names = finding_names(settings, split, classes)
    for role in ("validation", "test"):
        found = names_in(split[role].label)
        unknown = sorted(found - set(classes))
        if names is not None:
            warn_of_foreign(names, split[role].label, role)
            unknown = []
        # A class that is left out of config.data.classes is left out on purpose.
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


def warn_of_foreign(names: FindingNames, labels: np.ndarray, role: str) -> None:
    """Warns of findings that the training data does not know."""
    foreign = names.foreign(labels)
    if foreign:
        _log.warning(
            "images for %s have findings that the training data does not know: %s. What else these "
            "images do not show is taken as unknown; rename them with config.data.label_map",
            role,
            ", ".join(f"{name} ({count:,})" for name, count in foreign.items()),
        )


def check_tested(split: Split) -> None:
    """Raises `DataError` where no image is left for testing."""
    if not len(split.test):
        raise DataError("no image is left for test; raise config.data.test_fraction")
