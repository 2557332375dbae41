"""Calibration of the probabilities of one outcome: slope, intercept and smoothed curve.

Van Calster et al., BMC Med 2019;17:230. Intervals are over patients.
"""

from __future__ import annotations

import dataclasses
import itertools
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
    few,
)
from infantxray.evaluation.intervals import patient_draws

_NAN = float("nan")
_GROUPS = 512  # Bins of equal size for the smoothed curve; up to this many scores are exact.
# Of the rarer outcome: fewer make three knots, and a band that is too narrow.
_SMOOTH_PATIENTS = 50
_SMALLEST = 1e-7  # Probabilities are clipped to this before a logit: float32 reaches 0 and 1.


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
      seed: seed of the bootstrap.

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
