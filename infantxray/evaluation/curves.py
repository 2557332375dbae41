"""Precision-recall area, Brier score, net benefit and risk-coverage curve.

Metrics and curves of a binary outcome that reporting guidelines ask for beside the ROC curve (Van
Calster et al., Lancet Digit Health 2025;7:100916). Intervals are over patients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from infantxray.evaluation.estimates import (
    Linearised,
    Metric,
    Scores,
    difference,
    inner,
    patient_interval,
    patient_share,
)
from infantxray.evaluation.roc import _same_images

_NAN = float("nan")


def _lines(order: np.ndarray, score: np.ndarray) -> np.ndarray:
    """For sorted scores, the position of the last image of each tie, `[N]`."""
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    return np.repeat(last, np.diff(last, prepend=-1))


def average_precision(scores: Scores) -> Metric:
    """Area under the precision-recall curve: the mean precision at the positive images.

    AP = sum_k (R_k - R_(k-1)) P_k, as in scikit-learn. The interval is symmetric on the logit scale
    (Boyd, Eng and Page, ECML 2013), with the variance from the influence of each image. The
    baseline is the prevalence: `proportion(scores.positive, scores.patient)`.
    """
    if not scores.positive.any():
        return Metric(_NAN, note="no positive image")
    linear = _average_precision(scores)
    if scores.missing():
        return Metric(linear.value, note=scores.missing())
    if scores.sides()[0] < 2:
        return Metric(linear.value, note="one patient of the outcome: no interval")
    return linear.metric(scores.patient, (0.0, 1.0))


def _average_precision(scores: Scores) -> Linearised:
    order = np.argsort(-scores.score, kind="stable")
    last = _lines(order, scores.score)
    positive = scores.positive[order].astype(np.float64)
    named = last + 1.0
    precision = np.cumsum(positive)[last] / named
    total = positive.sum()
    value = float((positive * precision).sum() / total)
    # An image of score s changes the precision at every positive image of at most that score: sums
    # from the lowest score up.
    first = np.searchsorted(last, last, "left")
    shares = np.cumsum((positive / named)[::-1])[::-1][first]
    losses = np.cumsum((positive * precision / named)[::-1])[::-1][first]
    influence = np.empty(len(order))
    influence[order] = (positive * (precision - value + shares) - losses) / total
    groups = scores.sides()[0]
    return Linearised(value, influence * np.sqrt(groups / max(groups - 1, 1)), scores.note())


def decision_curve(
    scores: Scores, thresholds: Sequence[float], baseline: Scores | None = None
) -> list[dict[str, Any]]:
    """Decision curve: net benefit over threshold probabilities.

    TP / N - FP / N * t / (1 - t), of acting on probabilities of at least t (Vickers and Elkin, Med
    Decis Making 2006;26:565). Its interval comes from those of the two shares (MOVER).

    Args:
      scores: probabilities of the outcome.
      thresholds: within (0, 1).
      baseline: probabilities of another model for the same images.

    Returns:
      One row a threshold: `threshold`, `model`, `all` (metrics; acting on none is 0), `over_all`
      (the paired difference to acting on all), and with a baseline `baseline` and `over_baseline`.
      No rows without images of known outcome.

    Raises:
      ValueError: a threshold is not within (0, 1), or the baseline is of other images.
    """
    if not all(0 < t < 1 for t in thresholds):
        raise ValueError("thresholds of a decision curve must be within (0, 1)")
    if not len(scores):
        return []
    if baseline is not None:
        _same_images([scores, baseline])
    sizes = np.bincount(scores.patient)
    cases = np.bincount(scores.patient[scores.positive], minlength=len(sizes))
    counts = {"model": _called_positive(scores, thresholds)}
    if baseline is not None:
        counts["baseline"] = _called_positive(baseline, thresholds)
    groups, note, rows = int(np.count_nonzero(sizes)), scores.note(), []
    for k, t in enumerate(thresholds):
        odds = t / (1 - t)
        here = {name: (true[k], false[k]) for name, (true, false) in counts.items()}
        here["all"] = cases, sizes - cases
        row: dict[str, Any] = {"threshold": float(t)}
        for name, (true, false) in here.items():
            row[name] = _net_benefit(true, false, sizes, odds, note)
            if name != "model":
                gain = here["model"][0] - true - odds * (here["model"][1] - false)
                value = float(gain.sum()) / len(scores)
                sums = (gain - value * sizes) / len(scores) * np.sqrt(groups / max(groups - 1, 1))
                row[f"over_{name}"] = patient_interval(value, sums, groups, note=note)
        # The interval over acting on all is that of the two shares that are not acted on, missed
        # and spared images: it covers with few positive images too.
        true, false = here["model"]
        less = _net_benefit(cases - true, sizes - cases - false, sizes, odds, note)
        row["over_all"] = dataclasses.replace(row["over_all"], low=-less.high, high=-less.low)
        rows.append(row)
    return rows


def _called_positive(scores: Scores, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """True and false positive images of each patient at each threshold, each `[T, P]`."""
    order = np.argsort(thresholds)
    reached = np.searchsorted(np.asarray(thresholds)[order], scores.score, "right")
    shape = len(thresholds) + 1, int(scores.patient.max()) + 1
    place = np.argsort(order)
    counts = []
    for side in (scores.positive, ~scores.positive):
        cells = reached[side] * shape[1] + scores.patient[side]
        table = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        counts.append(np.cumsum(table[:0:-1], axis=0)[::-1][place])
    return counts[0], counts[1]


def _net_benefit(
    true: np.ndarray, false: np.ndarray, sizes: np.ndarray, odds: float, note: str
) -> Metric:
    shares = [patient_share(hits, sizes) for hits in (true, false)]
    residuals = [hits - m.value * sizes for hits, m in zip((true, false), shares, strict=True)]
    scale = np.sqrt(inner(residuals[0], residuals[0]) * inner(residuals[1], residuals[1]))
    correlation = inner(residuals[0], residuals[1]) / scale if scale else 0.0
    return dataclasses.replace(difference(shares[0], shares[1], odds, correlation), note=note)


def brier(scores: Scores) -> Metric:
    """Mean squared difference of probability and outcome, 0 to 1."""
    if not len(scores):
        return Metric(_NAN, note="no image of known outcome")
    error = (scores.score - scores.positive) ** 2
    linear = Linearised.mean(error, scores.patient, scores.note())
    return linear.metric(scores.patient, (0.0, 1.0))


def brier_decomposition(scores: Scores, num_bins: int | None = None) -> dict[str, float]:
    """Murphy's decomposition: reliability - resolution + uncertainty + within_bin = Brier score.

    Murphy, J Appl Meteorol 1973;12:595. Over distinct probabilities `within_bin` is 0; over
    equally wide bins it is what these hide (Stephenson et al., Weather Forecast 2008;23:752).

    Args:
      scores: probabilities of the outcome.
      num_bins: None: distinct probabilities.

    Returns:
      `brier`, `reliability` (0 is best), `resolution` (more is better), `uncertainty`,
      `within_bin`, and `skill`, 1 - brier / uncertainty; NaN where not defined.
    """
    names = ("brier", "reliability", "resolution", "uncertainty", "within_bin", "skill")
    if not len(scores):
        return dict.fromkeys(names, _NAN)
    key = scores.score
    if num_bins is not None:
        key = np.minimum((key * num_bins).astype(int), num_bins - 1)
    _, index, count = np.unique(key, return_inverse=True, return_counts=True)
    stated = np.bincount(index, scores.score) / count
    seen = np.bincount(index, scores.positive) / count
    prevalence = float(scores.positive.mean())
    share = count / len(scores)
    total = float(((scores.score - scores.positive) ** 2).mean())
    reliability = float((share * (stated - seen) ** 2).sum())
    resolution = float((share * (seen - prevalence) ** 2).sum())
    uncertainty = prevalence * (1 - prevalence)
    within = total - reliability + resolution - uncertainty
    skill = 1 - total / uncertainty if uncertainty else _NAN
    values = (total, reliability, resolution, uncertainty, within, skill)
    return dict(zip(names, values, strict=True))


def outcome_distribution(scores: Scores, num_bins: int = 20) -> dict[str, Any]:
    """Distribution of the probabilities of positive and of negative images.

    Returns:
      `edges` `[num_bins + 1]`, and for `positive` and `negative` images `n`, `counts` a bin and
      `quantiles` at 5, 25, 50, 75 and 95 % (empty without images).
    """
    result: dict[str, Any] = {"edges": np.linspace(0, 1, num_bins + 1).tolist()}
    for name, side in (("positive", scores.positive), ("negative", ~scores.positive)):
        values = scores.score[side]
        counts, _ = np.histogram(values, result["edges"])
        quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]) if len(values) else values
        result[name] = {
            "n": len(values),
            "counts": counts.tolist(),
            "quantiles": quantiles.tolist(),
        }
    return result


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Risk-coverage curve: the error that remains when the least confident images are left out.

    El-Yaniv and Wiener, J Mach Learn Res 2010;11:1605; Geifman et al., ICLR 2019. Tied images are
    taken in random order, so that each has the mean error of the tie.

    Args:
      confidence: `[N]`, such as the largest probability.
      wrong: `[N]`, bool or any loss.

    Returns:
      `coverage` and `risk` at 100 points at most; `area`, the mean risk over all coverages; and
      `excess_area`, what a perfect ordering would save. NaN without images.
    """
    n = len(confidence)
    if not n:
        return {"coverage": [], "risk": [], "area": _NAN, "excess_area": _NAN}
    order = np.argsort(-confidence, kind="stable")
    _, index, count = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    loss = (np.bincount(index, wrong[order]) / count)[index]
    kept = np.arange(1, n + 1)
    risk = np.cumsum(loss) / kept
    best = np.cumsum(np.sort(wrong.astype(np.float64))) / kept
    rows = np.unique(np.linspace(0, n - 1, min(n, 100)).astype(int))
    return {
        "coverage": (kept[rows] / n).tolist(),
        "risk": risk[rows].tolist(),
        "area": float(risk.mean()),
        "excess_area": float(risk.mean() - best.mean()),
    }
