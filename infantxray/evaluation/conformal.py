"""Conformal prediction: sets of conditions and intervals of age with a chosen coverage.

Split conformal prediction (Papadopoulos et al., ECML 2002; Angelopoulos and Bates, Found Trends
Mach Learn 2023;16:494): a threshold on validation images makes sets that contain the truth in at
least the chosen share of images, if validation and test patients come from the same population.
The share is an average over both: with few validation patients, one run may be below it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from infantxray.evaluation.estimates import Metric, proportion
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.evaluation.subgroups import age_bands

_INFINITE = float("inf")


@dataclasses.dataclass(frozen=True)
class ConformalSets:
    """Thresholds of prediction sets, fitted on validation images.

    Attributes:
      method: `lac` (least ambiguous sets: Sadinle, Lei and Wasserman, J Am Stat Assoc 2019;114:223)
        or `aps` (adaptive sets: Romano, Sesia and Candes, NeurIPS 2020, without randomisation).
      coverage: the share of images whose set contains the truth.
      thresholds: thresholds of the nonconformity of each class, `[K]`. A threshold is infinite if
        there are too few validation images; the class is then in every set.
      by_class: the coverage holds for each class (Mondrian) rather than on average.
    """

    method: str
    coverage: float
    thresholds: tuple[float, ...]
    by_class: bool


def _quantile(scores: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score; infinite where there are too few."""
    # The small term absorbs rounding: 0.9 * (9 + 1) must be 9.
    k = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(np.partition(scores, k - 1)[k - 1]) if k <= len(scores) else _INFINITE


def nonconformity(probabilities: np.ndarray, method: str) -> np.ndarray:
    """How unusual each class would be as the truth, `[N, K]`.

    1 - p for `lac`; for `aps` the sum of the probabilities that are at least as large.

    Raises:
      ValueError: the method is unknown.
    """
    probabilities = probabilities.astype(np.float64)
    if method == "lac":
        return 1 - probabilities
    if method != "aps":
        raise ValueError(f"conformal method {method!r}: give lac or aps")
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1)
    result = np.empty_like(probabilities)
    np.put_along_axis(result, order, sums, 1)
    return result


def fit_sets(
    probabilities: np.ndarray,
    label: np.ndarray,
    *,
    coverage: float = 0.9,
    method: str = "lac",
    by_class: bool = False,
) -> ConformalSets:
    """Thresholds of prediction sets from validation images.

    For a finding of several, pass the stack of 1 - p and p, `[N, 2]`.

    Args:
      probabilities: `[N, K]`, calibrated as those of the test images will be.
      label: int `[N]`, -1 = unknown (left out).
      coverage: target coverage, within (0, 1).
      method: `lac` for the smallest sets, `aps` for sets that are larger on hard images.
      by_class: a threshold for each class.

    Raises:
      ValueError: the method is unknown, or the coverage is not within (0, 1).
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be within (0, 1), got {coverage}")
    known, classes = label >= 0, probabilities.shape[1]
    label = label[known]
    scores = nonconformity(probabilities[known], method)[np.arange(len(label)), label]
    if by_class:
        thresholds = [_quantile(scores[label == k], coverage) for k in range(classes)]
    else:
        thresholds = [_quantile(scores, coverage)] * classes
    return ConformalSets(method, coverage, tuple(thresholds), by_class)


def predict_sets(
    sets: ConformalSets, probabilities: np.ndarray, *, at_least_one: bool = True
) -> np.ndarray:
    """Which classes each image's set contains, bool `[N, K]`.

    Args:
      sets: result of `fit_sets`.
      probabilities: `[N, K]`.
      at_least_one: add the most probable class to an empty set; coverage can only rise.
    """
    # A threshold is one of the scores: the small term absorbs rounding.
    inside = nonconformity(probabilities, sets.method) <= np.asarray(sets.thresholds) + 1e-12
    if at_least_one:
        inside[np.arange(len(inside)), probabilities.argmax(1)] |= ~inside.any(1)
    return inside


def set_coverage(
    inside: np.ndarray,
    label: np.ndarray,
    patient: np.ndarray,
    classes: tuple[str, ...],
    age_months: np.ndarray,
) -> dict[str, Any]:
    """Coverage and size of prediction sets on test images, by class and age band.

    Args:
      inside: bool `[N, K]`.
      label: int `[N]`, -1 = unknown (left out).
      patient: one key a person, `[N]`.
      classes: names, K.
      age_months: `[N]`, NaN = unknown.

    Returns:
      `all` and, where there are images, `class` and `age_band` by name: each with `n`, `coverage`
      (a `Metric`), `mean_size` and `single`, the share of sets with one class.
    """
    known = label >= 0
    inside, label, patient = inside[known], label[known], patient[known]
    hit = inside[np.arange(len(label)), label]
    sizes = inside.sum(1)
    bands = age_bands(age_months[known])
    return {
        "all": _row(hit, sizes, patient),
        "class": {
            name: _row(hit[label == k], sizes[label == k], patient[label == k])
            for k, name in enumerate(classes)
            if (label == k).any()
        },
        "age_band": {
            name: _row(hit[bands == name], sizes[bands == name], patient[bands == name])
            for name in _bands_present(bands)
        },
    }


def abstention_curve(
    probabilities: np.ndarray,
    label: np.ndarray,
    patient: np.ndarray,
    shares: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
) -> list[dict[str, Any]]:
    """Accuracy if the least certain images are left to a reader.

    Args:
      probabilities: `[N, K]`.
      label: int `[N]`, -1 = unknown (left out).
      patient: one key a person, `[N]`.
      shares: of the images that are answered, those of the largest probabilities.

    Returns:
      Rows with `answered` (the share), `n` images, `confidence` (the lowest probability among
      them) and `accuracy` (a `Metric`).
    """
    known = np.flatnonzero(label >= 0)
    confidence = probabilities.max(1)
    order = known[np.argsort(-confidence[known], kind="stable")]
    right = probabilities.argmax(1) == label
    rows = []
    for share in shares:
        kept = order[: int(np.ceil(share * len(order)))]
        rows.append(
            {
                "answered": share,
                "n": len(kept),
                "confidence": float(confidence[kept[-1]]) if len(kept) else float("nan"),
                "accuracy": proportion(right[kept], patient[kept]),
            }
        )
    return rows


def _bands_present(bands: np.ndarray) -> list[str]:
    """The bands that occur, youngest first, without the unknown."""
    present = set(bands)
    return [name for name, _, _ in AGE_BANDS if name in present]


def _row(hit: np.ndarray, sizes: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(hit),
        "coverage": proportion(hit, patient),
        "mean_size": float(sizes.mean()) if len(hit) else float("nan"),
        "single": float((sizes == 1).mean()) if len(hit) else float("nan"),
    }


def fit_age_interval(
    predicted: np.ndarray,
    age_months: np.ndarray,
    *,
    coverage: float = 0.9,
    difficulty: np.ndarray | None = None,
) -> float | None:
    """Half-width in months of age intervals with a chosen coverage, from validation images.

    Args:
      predicted: `[N]` in months.
      age_months: `[N]`, NaN = unknown (left out).
      coverage: target coverage, within (0, 1).
      difficulty: `[N]`, positive, such as an expected error; the half-width is then a factor of it
        (normalised scores: Papadopoulos et al., J Artif Intell Res 2011;40:815).

    Returns:
      The half-width, or factor; None where validation images are too few for this coverage.
    """
    error = np.abs(np.asarray(predicted, np.float64) - age_months)
    if difficulty is not None:
        error = error / difficulty
    width = _quantile(error[np.isfinite(error)], coverage)
    return width if np.isfinite(width) else None


def age_interval(
    predicted: np.ndarray, width: float, difficulty: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits in months, each `[N]`; no age is below 0."""
    half = width * np.asarray(difficulty)
    return np.maximum(predicted - half, 0.0), np.maximum(predicted + half, 0.0)


def age_interval_coverage(
    low: np.ndarray, high: np.ndarray, age_months: np.ndarray, patient: np.ndarray
) -> dict[str, Metric]:
    """Coverage of age intervals on test images: `all`, and by age band."""
    known = np.isfinite(age_months) & np.isfinite(low)
    hit = (low <= age_months) & (age_months <= high)
    bands = age_bands(age_months)
    return {"all": proportion(hit[known], patient[known])} | {
        name: proportion(hit[known & (bands == name)], patient[known & (bands == name)])
        for name in _bands_present(bands[known])
    }
