"""Area under the ROC curve: DeLong's variance, interval and paired test, and partial areas.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837, computed from midranks (Sun and Xu, IEEE
Signal Process Lett 2014;21:1389), and extended to patients with several images (Obuchowski,
Biometrics 1997;53:567).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from infantxray.evaluation.estimates import (
    TOO_FEW_PATIENTS,
    Linearised,
    Metric,
    Scores,
    count_patients,
    few,
    t_interval,
)

_NAN = float("nan")


def _placements(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Share of the images of the other outcome on the right side of each image, `[N]`."""
    ranks = rankdata(score)
    result = np.empty(len(score))
    for side, sign in ((positive, 1.0), (~positive, -1.0)):
        others = len(score) - side.sum()
        share = (ranks[side] - rankdata(score[side])) / others
        result[side] = share if sign > 0 else 1 - share
    return result


def _same_images(scores: Sequence[Scores]) -> None:
    for other in scores[1:]:
        if not (
            np.array_equal(scores[0].positive, other.positive)
            and np.array_equal(scores[0].patient, other.patient)
        ):
            raise ValueError("paired comparisons need the same images with the same outcomes")


def delong(scores: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray, float]:
    """Areas under the ROC curves of M models on the same images, and their covariance.

    With one image a patient this is DeLong's estimate. With several it is Obuchowski's: placements
    are summed within patients, and outcomes of one patient may be correlated.

    Args:
      scores: scores of M models; both outcomes must occur.

    Returns:
      Areas `[M]`; covariance `[M, M]`, NaN with fewer than two patients of an outcome; and
      Satterthwaite's degrees of freedom of the first area's variance (as Brunner and Munzel,
      Biom J 2000;42:17).

    Raises:
      ValueError: the models were not tested on the same images, or an outcome is missing.
    """
    _same_images(scores)
    first = scores[0]
    if first.missing():
        raise ValueError(first.missing())
    sides = first.positive, ~first.positive
    shares = np.stack([_placements(s.positive, s.score) for s in scores])
    areas = shares[:, first.positive].mean(1)
    groups = first.sides()
    if min(groups) < 2:
        return areas, np.full((len(scores),) * 2, _NAN), _NAN
    # Sums over a patient's images, a side at a time: [M, P].
    sums = [
        np.stack(
            [
                np.bincount(
                    first.patient[side], (share[side] - area) / side.sum(), first.num_patients
                )
                for share, area in zip(shares, areas, strict=True)
            ]
        )
        for side in sides
    ]
    parts = [g / (g - 1) * s @ s.T for g, s in zip(groups, sums, strict=True)]
    everyone = count_patients(first.patient)
    cross = everyone / (everyone - 1) * sums[0] @ sums[1].T
    covariance = parts[0] + parts[1] + cross + cross.T
    spread = sum(p[0, 0] ** 2 / (g - 1) for p, g in zip(parts, groups, strict=True))
    degrees = (parts[0][0, 0] + parts[1][0, 0]) ** 2 / spread if spread > 0 else _NAN
    return areas, covariance, float(degrees)


def auc(scores: Scores) -> Metric:
    """Area under the ROC curve with its interval over patients.

    The interval is DeLong's, symmetric on the logit scale, with a t quantile. Newcombe's fifth
    method (Stat Med 2006;25:559), which assumes exponential scores, replaces it where the variance
    cannot be estimated: at an area of 0 or 1, and with one patient of an outcome.
    """
    if scores.missing():
        return Metric(_NAN, note=scores.missing())
    areas, covariance, degrees = delong([scores])
    area, variance = float(areas[0]), float(covariance[0, 0])
    if variance > 1e-24 and 0 < area < 1:
        return t_interval(area, np.sqrt(variance), degrees, (0.0, 1.0), scores.note())
    low, high = _newcombe(area, *scores.sides())
    why = "no variance to estimate: Newcombe's interval, which assumes exponential scores"
    return Metric(area, low, high, note="; ".join(filter(None, (why, scores.note()))))


def _newcombe(area: float, num_positive: int, num_negative: int) -> tuple[float, float]:
    """Newcombe's fifth method: where the distance to the estimate is 1.96 standard errors."""
    half = (num_positive + num_negative) / 2 - 1
    z = float(ndtri(0.975))

    def distance(truth: float) -> float:
        spread = 1 + half * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        error = np.sqrt(truth * (1 - truth) * spread / (num_positive * num_negative))
        return float(abs(truth - area) - z * error)

    near = 1e-9  # At an area of 1 the distance is 0 there too.
    low = brentq(distance, 1e-12, area - near) if area > 1e-6 else 0.0
    high = brentq(distance, area + near, 1 - 1e-12) if area < 1 - 1e-6 else 1.0
    return float(low), float(high)


def auc_linearised(scores: Scores) -> Linearised:
    """The area as a linearised metric, for differences between groups and for macro means.

    The variance of an outcome that one patient has cannot be estimated. The largest possible for a
    share, 1/4, takes its place.
    """
    share = _placements(scores.positive, scores.score)
    area = float(share[scores.positive].mean())
    influence = np.empty(len(scores))
    for side, groups in zip((scores.positive, ~scores.positive), scores.sides(), strict=True):
        if groups == 1:
            influence[side] = np.copysign(0.5, area - 0.5) / side.sum()
        else:
            factor = np.sqrt(groups / (groups - 1))
            influence[side] = factor * (share[side] - area) / side.sum()
    return Linearised(area, influence, scores.note())


def auc_difference(first: Scores, second: Scores) -> Metric:
    """Difference of two models' areas on the same images, with DeLong's interval and test.

    Raises:
      ValueError: the models were not tested on the same images.
    """
    _same_images([first, second])
    if first.missing():
        return Metric(_NAN, note=first.missing())
    areas, covariance, _ = delong([first, second])
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if not np.isfinite(variance):
        return Metric(value, note="one patient of an outcome: no interval")
    if variance <= 1e-24:
        if abs(value) < 1e-12:  # Both models rank alike.
            return Metric(value, value, value, 0.0, 1.0, first.note())
        return Metric(value, note="no variation between patients: no interval")
    error, z = np.sqrt(variance), float(ndtri(0.975))
    p = float(2 * ndtr(-abs(value) / error))
    return Metric(value, value - z * error, value + z * error, float(error), p, first.note())


def partial_auc(
    scores: Scores, *, max_fpr: float | None = None, min_sensitivity: float | None = None
) -> Metric:
    """Partial area under the ROC curve, standardised to 0.5 for chance and 1 for perfect.

    McClish, Med Decis Making 1989;9:190. Over false positive rates up to `max_fpr`, or over
    sensitivities from `min_sensitivity`. The interval takes into account that the threshold at
    the end of the range is estimated (Wang and Chang, Stat Sin 2011;21:895).

    Raises:
      ValueError: not exactly one limit is given, or it is not within (0, 1).
    """
    if (max_fpr is None) == (min_sensitivity is None):
        raise ValueError("give max_fpr or min_sensitivity")
    limit = max_fpr if max_fpr is not None else 1 - (min_sensitivity or 0.0)
    if not 0 < limit < 1:
        raise ValueError(f"the range of a partial area must be within (0, 1), got {limit}")
    if scores.missing():
        return Metric(_NAN, note=scores.missing())
    if max_fpr is None:
        # The ROC curve of the negated outcome and score: a miss is a false alarm.
        scores = Scores(~scores.positive, -scores.score, scores.patient, scores.num_patients)
    positive, score = scores.positive, scores.score
    # The curve rises by 1 / m at the placement of each positive image among the negatives, and as
    # a line where these tie. The gain is the area that this adds within the range, times m.
    negatives, positives = np.sort(score[~positive]), np.sort(score[positive])
    m, n = len(positives), len(negatives)
    above = (n - np.searchsorted(negatives, positives, "right")) / n
    here = (n - np.searchsorted(negatives, positives, "left")) / n
    tied = here - above
    width = np.clip(limit - above, 0, tied)
    gain = width**2 / np.where(tied > 0, 2 * tied, 1) + np.clip(limit - here, 0, None)
    area = float(gain.mean())
    lowest = limit**2 / 2
    value = (1 + (area - lowest) / (limit - lowest)) / 2
    influence = np.zeros(len(score))
    groups = scores.sides()
    order = np.argsort(score[positive], kind="stable")
    mine = np.empty(m)
    mine[order] = (gain - area) / m
    influence[positive] = mine * np.sqrt(groups[0] / max(groups[0] - 1, 1))
    # Sensitivity at each negative's score, beyond that at the end of the range.
    threshold = negatives[n - min(int(np.ceil(limit * n)), n)]
    at = _sensitivity(positives, score[~positive])
    end = float(_sensitivity(positives, np.array([threshold]))[0])
    inside = score[~positive] >= threshold
    beyond = np.where(inside, at - end, 0.0)
    influence[~positive] = (beyond - beyond.mean()) / n * np.sqrt(groups[1] / max(groups[1] - 1, 1))
    floor = (1 - lowest / (limit - lowest)) / 2
    # The patients within the range carry the interval.
    carriers = min(groups[0], count_patients(scores.patient[~positive][inside]))
    if carriers < TOO_FEW_PATIENTS:
        return Metric(value, note=f"{carriers} patients within the range: no interval")
    note = few(carriers, "patients within the range")
    linear = Linearised(value, influence / (2 * (limit - lowest)), note)
    return linear.metric(scores.patient, (floor, 1.0))


def _sensitivity(positives: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the sorted positive scores above each threshold, ties half."""
    left = np.searchsorted(positives, thresholds, "left")
    right = np.searchsorted(positives, thresholds, "right")
    return 1 - (left + right) / 2 / len(positives)


def auc_by_kind(inside: np.ndarray, outside: dict[str, np.ndarray]) -> dict[str, Metric]:
    """The area under the ROC curve of a score for each kind of outlier against ordinary images.

    Args:
      inside: `[N]`, of ordinary images.
      outside: `{kind: [M]}`.
    """
    return {
        kind: auc(Scores.of(np.repeat([0, 1], [len(inside), len(s)]), np.append(inside, s)))
        for kind, s in outside.items()
    }
