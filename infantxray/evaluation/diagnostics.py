"""Diagnostic accuracy of each finding, as metrics and curves that JSON can hold.

One class against the rest: areas under the ROC and precision-recall curves, calibration, Brier
score, net benefit, and accuracy at operating points. A metric is a dictionary with `value`, `low`,
`high` (95 % interval over patients), `p` for differences, and `note`, a caveat.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from infantxray.evaluation import curves, operating_points, recalibration, roc, subgroups
from infantxray.evaluation.estimates import Metric, Scores, proportion
from infantxray.evaluation.operating_points import OperatingPoint, Rule
from infantxray.evaluation.predictions import Predictions

MAX_FPR = 0.2  # Of the partial area: specificities of 80 % and more.
_THRESHOLDS = np.round(np.arange(0.02, 0.99, 0.02), 2)
_CURVE_SAMPLES = 200
_MOST_FINDINGS = 3  # Of which subgroups have a sensitivity: each adds two gaps to correct for.


def to_dict(metric: Metric) -> dict[str, Any]:
    """A metric as plain values; without `p` and `note` where it has none."""
    result: dict[str, Any] = {"value": metric.value, "low": metric.low, "high": metric.high}
    if math.isfinite(metric.p):
        result["p"] = metric.p
    return result | ({"note": metric.note} if metric.note else {})


def findings(
    predictions: Predictions, pixels: Predictions | None = None, *, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Metrics and curves of each finding.

    Args:
      predictions: predictions of test images.
      pixels: predictions of a baseline for the same images.
      seed: seed of the bootstrap of the calibration curves.

    Returns:
      `{finding: {metric: ...}}` and `{finding: {curve: ...}}`; a finding without images of both
      outcomes has no curves.
    """
    metrics: dict[str, dict[str, Any]] = {}
    drawn: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(predictions.classes):
        scores = Scores.of_class(predictions, k)
        floor = _clipped(pixels, k) if pixels is not None else None
        found = {
            "roc_auc": roc.auc(scores),
            "partial_auc": roc.partial_auc(scores, max_fpr=MAX_FPR),
            "average_precision": curves.average_precision(scores),
            "prevalence": proportion(scores.positive, scores.patient),
            "brier": curves.brier(scores),
        } | {f"calibration_{n}": m for n, m in recalibration.recalibration(scores).items()}
        if floor is not None:
            found["roc_auc_over_pixels"] = roc.auc_difference(scores, floor)
        metrics[name] = {key: to_dict(metric) for key, metric in found.items()}
        metrics[name]["n_positive"] = int(scores.positive.sum())
        metrics[name]["brier_parts"] = curves.brier_decomposition(scores, 10)
        if not scores.missing():
            smooth = recalibration.calibration_curve(scores, samples=_CURVE_SAMPLES, seed=seed)
            metrics[name]["ici"] = smooth["ici"]
            rows = curves.decision_curve(scores, _THRESHOLDS.tolist(), floor)
            drawn[name] = {
                "calibration": smooth,
                "net_benefit": [_flat(row) for row in rows],
                "probabilities": curves.outcome_distribution(scores),
            }
    return metrics, drawn


def _clipped(pixels: Predictions, k: int) -> Scores:
    """Scores of a linear model, which may leave [0, 1], as probabilities."""
    scores = Scores.of_class(pixels, k)
    return dataclasses.replace(scores, score=np.clip(scores.score, 0.0, 1.0))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: to_dict(v) if isinstance(v, Metric) else v for key, v in row.items()}


def choose_points(validation: Predictions, rules: Sequence[Rule]) -> list[OperatingPoint]:
    """The threshold of each finding by each rule, on validation images.

    Findings without validation images of both outcomes have none.
    """
    chosen = (
        operating_points.choose(name, Scores.of_class(validation, k), rule)
        for k, name in enumerate(validation.classes)
        for rule in rules
    )
    return [point for point in chosen if point is not None]


def at_points(
    test: Predictions, points: Iterable[OperatingPoint], prevalences: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """Accuracy on test images at thresholds fixed before: a row a point.

    Returns:
      Rows with `finding`, `rule`, `threshold`, `validation` (`sensitivity` and `specificity`
      there), `note`, and the metrics of `operating_points.accuracy_at`.
    """
    rows = []
    for point in points:
        scores = Scores.of_class(test, test.classes.index(point.finding))
        found = operating_points.accuracy_at(point.threshold, scores, prevalences)
        row: dict[str, Any] = {
            "finding": point.finding,
            "rule": point.rule,
            "threshold": point.threshold,
            "validation": {"sensitivity": point.sensitivity, "specificity": point.specificity},
            "note": point.note,
        }
        rows.append(row | {name: to_dict(metric) for name, metric in found.items()})
    return rows


def by_subgroup(
    predictions: Predictions,
    groups: Mapping[str, np.ndarray],
    points: Sequence[OperatingPoint] = (),
) -> dict[str, dict[str, Any]]:
    """Metrics by subgroup and gaps between subgroups, `{column: subgroups.subgroups(...)}`.

    A column that does not divide the images into at least two groups is left out.

    Args:
      predictions: predictions of N test images.
      groups: `{column: [N]}`, group labels, empty where unknown.
      points: the first one of each finding gives a sensitivity and a specificity, where there are
        at most three findings.
    """
    thresholds: dict[str, float] = {}
    for point in points if len(predictions.classes) <= _MOST_FINDINGS else ():
        thresholds.setdefault(point.finding, point.threshold)
    measure = subgroups.measures(predictions, thresholds)
    result = {}
    for column, labels in groups.items():
        if len({label for label in labels if label}) < 2:
            continue
        found = subgroups.subgroups(labels, predictions.patient, measure)
        result[column] = found | {
            "groups": [_flat(row) for row in found["groups"]],
            "gaps": [_flat(row) for row in found["gaps"]],
        }
    return result
