"""Precision-recall area, calibration curve, Brier score, net benefit and risk-coverage curve.

Metrics and curves of a binary outcome that reporting guidelines ask for beside the ROC curve (Van
Calster et al., Lancet Digit Health 2025;7:100916). Intervals are over patients.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from infantxray.evaluation.estimates import (
    FEW_PATIENTS,
    TOO_FEW_PATIENTS,
    Linearised,
    Metric,
    Scores,
    count_patients,
    difference,
    few,
    inner,
    patient_interval,
    patient_share,
)
from infantxray.evaluation.intervals import patient_draws
from infantxray.evaluation.roc import _same_images

_NAN = float("nan")
_GROUPS = 512  # Bins of equal size for the smoothed curve; up to this many scores are exact.
_SMOOTH_PATIENTS = (
    50  # Of the rarer outcome: fewer make three knots, and a band that is too narrow.
)
_SMALLEST = 1e-7  # Probabilities are clipped to this before a logit: float32 reaches 0 and 1.


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


def _logistic(
    design: np.ndarray,
    share: np.ndarray,
    count: np.ndarray,
    offset: np.ndarray | float = 0.0,
    steps: int = 30,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood of B weighted logistic regressions by Newton's method.

    Args:
      design: `[N, Q]`.
      share: of positive images, `[N]` or `[B, N]`.
      count: weights, `[B, N]`.
      offset: `[N]`.
      steps: at most.

    Returns:
      Coefficients `[B, Q]`, NaN where the likelihood has no maximum, and information `[B, Q, Q]`.
    """
    beta = np.zeros((len(count), design.shape[1]))
    lost = np.zeros(len(beta), bool)
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    for _ in range(steps):
        fitted = expit(beta @ design.T + offset)
        score = (count * (share - fitted)) @ design
        information = ((count * fitted * (1 - fitted)) @ outer).reshape(-1, *[design.shape[1]] * 2)
        lost |= np.linalg.cond(information) > 1e13
        information[lost], score[lost] = np.eye(design.shape[1]), 0.0
        move = np.linalg.solve(information, score[..., None])[..., 0]
        beta += np.clip(move, -4, 4)
        if not (np.abs(move) > 1e-11).any():
            break
    beta[lost | (np.abs(move) > 1e-6).any(1)] = np.nan
    return beta, information


def recalibration(scores: Scores) -> dict[str, Metric]:
    """Calibration slope and intercept by logistic recalibration.

    logit P(outcome) = a + b logit(p): `slope` is b (1 is ideal; below 1, probabilities are too
    extreme). `intercept` is a with b = 1 (0 is ideal; calibration in the large). Cox, Biometrika
    1958;45:562; Van Calster et al., BMC Med 2019;17:230. Standard errors are those of the
    likelihood; with several images a patient, the clustered sandwich.
    """
    names = ("slope", "intercept")
    why = scores.missing()
    if not why and min(scores.sides()) < TOO_FEW_PATIENTS:
        why = f"fewer than {TOO_FEW_PATIENTS} patients of the rarer outcome"
    if why:
        return dict.fromkeys(names, Metric(_NAN, note=why))
    x = logit(np.clip(scores.score, _SMALLEST, 1 - _SMALLEST))
    # Centred: the slope is the same, and the equations are well conditioned.
    both = np.stack([x - x.mean(), np.ones(len(x))], 1)
    return {
        "slope": _coefficient(scores, both, 0.0),
        "intercept": _coefficient(scores, np.ones((len(x), 1)), x),
    }


def _coefficient(scores: Scores, design: np.ndarray, offset: np.ndarray | float) -> Metric:
    """The first coefficient of a logistic regression, with its interval."""
    beta, information = _logistic(design, scores.positive, np.ones((1, len(scores))), offset)
    if not np.isfinite(beta).all():
        return Metric(_NAN, note="the outcomes are separated, or all probabilities are equal")
    inverse = np.linalg.inv(information[0])[0]
    fitted = expit(design @ beta[0] + offset)
    influence = (design @ inverse) * (scores.positive - fitted)
    groups = count_patients(scores.patient)
    factor = np.sqrt(groups / max(groups - 1, 1))
    linear = Linearised(float(beta[0, 0]), influence * factor, scores.note())
    metric = linear.metric(scores.patient)
    if groups == len(scores):
        half = 1.959963984540054 * (error := float(np.sqrt(inverse[0])))
        metric = dataclasses.replace(
            metric, low=linear.value - half, high=linear.value + half, standard_error=error
        )
    # The test is against perfect calibration, not against zero: left to the reader.
    return dataclasses.replace(metric, p=_NAN)


def calibration_curve(
    scores: Scores, *, num_points: int = 50, samples: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Smoothed calibration curve with a pointwise 95 % band from a bootstrap over patients.

    Logistic regression of the outcome on a restricted cubic spline of logit(p), with knots at
    quantiles: four or, below 50 patients of the rarer outcome, three (Harrell, Regression Modeling
    Strategies, 2015; Van Calster et al., J Clin Epidemiol 2016;74:167). Above 512 images, images of
    neighbouring probabilities are pooled into 512 groups.

    Args:
      scores: probabilities of the outcome.
      num_points: of the curve, from the 1st to the 99th percentile of the probabilities.
      samples: bootstrap samples.
      seed: of the bootstrap.

    Returns:
      `predicted`, `observed`, `low`, `high`, each `[num_points]`; `note` where the curve cannot be
      computed (the lists are then empty) or few patients carry it; `ici`, the mean absolute
      distance of curve and probabilities over images (Austin and Steyerberg, Stat Med
      2019;38:4051).
    """
    empty: dict[str, Any] = {"predicted": [], "observed": [], "low": [], "high": [], "ici": _NAN}
    why = scores.missing()
    fewest = min(scores.sides())
    if not why and fewest < FEW_PATIENTS:
        why = f"fewer than {FEW_PATIENTS} patients of the rarer outcome"
    x = logit(np.clip(scores.score, _SMALLEST, 1 - _SMALLEST))
    at = [0.1, 0.5, 0.9] if fewest < _SMOOTH_PATIENTS else [0.05, 0.35, 0.65, 0.95]
    knots = np.unique(np.quantile(x, at)) if not why else np.empty(0)
    if not why and len(knots) < 2:
        why = "nearly all probabilities are equal"
    if why:
        return empty | {"note": why}
    low, high = np.quantile(x, [0.01, 0.99])
    grid = np.linspace(low, high, num_points)
    order = np.argsort(x, kind="stable")
    group = np.empty(len(x), int)
    group[order] = np.arange(len(x)) * min(_GROUPS, len(x)) // len(x)
    size = np.bincount(group)
    centre = np.bincount(group, x) / size
    # Orthonormal columns, so that the coefficients are of one size.
    design, factor = np.linalg.qr(_spline(centre, knots))
    design, factor = design * np.sqrt(len(size)), factor / np.sqrt(len(size))
    points = np.linalg.solve(factor.T, _spline(grid, knots).T).T
    draws = itertools.chain.from_iterable(patient_draws(scores.num_patients, samples, seed))
    count, hits = np.empty((samples + 1, len(size))), np.empty((samples + 1, len(size)))
    everyone = np.ones(scores.num_patients, int)
    for row, weight in enumerate(itertools.chain([everyone], draws)):
        each = weight[scores.patient].astype(np.float64)
        both = np.bincount(2 * group + scores.positive, each, 2 * len(size)).reshape(-1, 2)
        count[row], hits[row] = both.sum(1), both[:, 1]
    beta, _ = _logistic(design, hits / np.maximum(count, 1), count)
    if not np.isfinite(beta[0]).all():
        return empty | {"note": "the outcomes are separated"}
    drawn = beta[1:][np.isfinite(beta[1:]).all(1)]
    low, high = np.quantile(expit(drawn @ points.T), [0.025, 0.975], axis=0)
    fitted = expit(design @ beta[0])
    return {
        "predicted": expit(grid).tolist(),
        "observed": expit(points @ beta[0]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "ici": float((np.abs(fitted - expit(centre)) * size).sum() / len(x)),
        "note": few(fewest, "patients of the rarer outcome", _SMOOTH_PATIENTS),
    }


def _spline(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Restricted cubic spline basis with a constant, `[N, len(knots)]`: linear in the tails."""
    width = (knots[-1] - knots[0]) ** 2
    cubes = np.clip(x[:, None] - knots, 0, None) ** 3 / width
    last = knots[-1] - knots[-2]
    columns = [np.ones(len(x)), x]
    for j in range(len(knots) - 2):
        before, after = (knots[k] - knots[j] for k in (-1, -2))
        columns.append(cubes[:, j] - cubes[:, -2] * before / last + cubes[:, -1] * after / last)
    return np.stack(columns, 1)


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
