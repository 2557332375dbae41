"""What `metrics.json` holds: metrics with intervals, by class and age band, and the blind guess.

A metric that cannot be computed is null, with its reason in `not_computed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infantxray.evaluation.calibration import calibration, findings_calibration
from infantxray.evaluation.intervals import bootstrap
from infantxray.evaluation.metrics import (
    CLASS_METRICS,
    HEADLINES,
    age_groups,
    headline,
    weighted_metrics,
)
from infantxray.evaluation.predictions import THRESHOLD, Predictions


def summarise(
    predictions: Predictions, *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Everything in `metrics.json` but the calibration and the baselines.

    Args:
      predictions: predictions of the test set.
      bootstrap_samples: bootstrap samples for the intervals; 0 leaves them out.
      seed: seed of the resampling.
    """
    metrics = headline(predictions)
    result: dict[str, Any] = {
        "n": len(predictions),
        "n_patients": len(set(predictions.patient.tolist())),
        "n_with_condition": int(predictions.has_condition.sum()),
        "n_with_age": int(np.isfinite(predictions.age_months).sum()),
    }
    result |= metrics
    result["not_computed"] = missing_reasons(predictions)
    if predictions.multi_label:
        result |= _several(predictions)
    elif predictions.classes:
        result |= _classes(predictions)
    result["age_bands"] = by_age_band(predictions)
    if any(not np.isfinite(row[name]) for row in result["age_bands"] for name in HEADLINES):
        result["not_computed"]["age_bands"] = "no label, no second class or no age in some bands"
    if bootstrap_samples:
        intervals = bootstrap(predictions, samples=bootstrap_samples, seed=seed)
        result["ci95"] = {name: list(intervals[name]) for name in HEADLINES}
    return result


def _classes(predictions: Predictions) -> dict[str, Any]:
    known = predictions.label >= 0
    label, k = predictions.label[known], len(predictions.classes)
    outcome = label * k + predictions.probabilities[known].argmax(1)
    confusion = np.bincount(outcome, minlength=k * k).reshape(k, k)  # Rows are the truth.
    table = _by_class(predictions, confusion.sum(1).tolist())
    return {"per_class": table, "confusion_matrix": confusion.tolist()}


def _by_class(predictions: Predictions, cases: Sequence[int]) -> dict[str, dict[str, float]]:
    found = weighted_metrics(predictions)
    return {
        name: {"n": n} | {metric: float(found[f"{metric}/{name}"][0]) for metric in CLASS_METRICS}
        for name, n in zip(predictions.classes, cases, strict=True)
    }


def _several(predictions: Predictions) -> dict[str, Any]:
    """Metrics by finding, where an image may have several, and the share of wholly right images."""
    outcomes = [predictions.outcome(k) for k in range(len(predictions.classes))]
    table = _by_class(predictions, [int(present.sum()) for _, present in outcomes])
    for row, (known, _) in zip(table.values(), outcomes, strict=True):
        row["n_known"] = int(known.sum())
    known = np.stack([known for known, _ in outcomes], 1)
    present = np.stack([present for _, present in outcomes], 1)
    right = (predictions.probabilities >= THRESHOLD) == present
    whole = (right | ~known).all(1)[known.any(1)]
    exact = float(whole.mean()) if len(whole) else float("nan")
    return {"multi_label": True, "per_class": table, "exact_match": exact}


def calibration_of(predictions: Predictions) -> dict[str, Any]:
    """Calibration of the predicted condition, or of all findings where there may be several."""
    if predictions.findings is None:
        return calibration(predictions.probabilities, predictions.label)
    return findings_calibration(predictions.probabilities, predictions.findings)


def by_age_band(predictions: Predictions) -> list[dict[str, Any]]:
    """The headline metrics within each age band that has images; unknown ages are a band too."""
    return [
        {"band": name, "n": int(rows.sum())} | headline(predictions.take(rows))
        for name, rows in age_groups(predictions.age_months)
    ]


def baseline(
    predictions: Predictions,
    train_label: np.ndarray,
    age_mean_months: float | None,
    train_findings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores of a blind guess, which never looks at the image.

    Args:
      predictions: predictions of the test set.
      train_label: int `[M]` of the training images, -1 = unknown.
      age_mean_months: mean age of the training images; None without an age head.
      train_findings: of the training images, `[M, K]`, where an image may have several.

    Returns:
      `majority_class`, the most frequent in training; the `accuracy` of always predicting it; and
      the `age_mae_months` of always predicting the mean age. NaN where one cannot be computed.
      Where an image may have several findings, the accuracy of always giving the answer that is
      more frequent in training for each of them.
    """
    nan = float("nan")
    result: dict[str, Any] = {"majority_class": None, "accuracy": nan, "age_mae_months": nan}
    known, trained = predictions.label[predictions.label >= 0], train_label[train_label >= 0]
    if len(known) and len(trained):
        majority = int(np.bincount(trained).argmax())
        result["majority_class"] = predictions.classes[majority]
        result["accuracy"] = float((known == majority).mean())
    if predictions.findings is not None and train_findings is not None:
        result["accuracy"] = _blind_accuracy(predictions.findings, train_findings)
    ages = predictions.age_months[np.isfinite(predictions.age_months)]
    if age_mean_months is not None and len(ages):
        result["age_mae_months"] = float(np.abs(ages - age_mean_months).mean())
    return result


def _blind_accuracy(findings: np.ndarray, train: np.ndarray) -> float:
    known = np.isfinite(findings)
    if not known.any():
        return float("nan")
    positive, negative = (train == 1).sum(0), (train == 0).sum(0)
    guess = np.broadcast_to(positive > negative, findings.shape)
    return float(((findings == 1) == guess)[known].mean())


def missing_reasons(predictions: Predictions) -> dict[str, str]:
    """Why a headline metric, or a class, has no value: `{name: reason}`."""
    reasons = {}
    if not predictions.classes:
        why = "the model has no condition head"
    elif not predictions.has_condition.any():
        why = "no image has a known label of one of the model's classes"
    elif predictions.multi_label:
        why = ""
        for k, name in enumerate(predictions.classes):
            known, present = predictions.outcome(k)
            if not present.any() or present[known].all():
                what = "present" if not present.any() else "absent"
                reasons[f"per_class.{name}"] = f"no image in which it is known to be {what}"
        if len(reasons) == len(predictions.classes):
            reasons["roc_auc"] = "no finding is present in some images and absent in others"
    else:
        why = ""
        present = np.unique(predictions.label[predictions.label >= 0])
        for k, name in enumerate(predictions.classes):
            if k not in present:
                reasons[f"per_class.{name}"] = "no image of this class"
        if len(present) == 1:
            reasons["roc_auc"] = "images of one class alone"
    if why:
        reasons |= dict.fromkeys(HEADLINES[:-1], why)
    if not np.isfinite(predictions.age_predicted_months).any():
        reasons["age_mae_months"] = "the model has no age head"
    elif not np.isfinite(predictions.age_months).any():
        reasons["age_mae_months"] = "no image has a known age"
    return reasons


def to_json(value: Any) -> Any:
    """NaN -> None (null), tuples -> lists, NumPy scalars -> numbers, all the way down."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
