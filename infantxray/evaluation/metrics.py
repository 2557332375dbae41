"""Figures of merit from predictions, with intervals. NumPy alone.

A figure that cannot be computed is NaN here and null, with its reason, in `metrics.json`: a class
without cases has no recall, and a class that everybody has or nobody has no ROC curve.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

# Lower and upper bound in months; the bands in which paediatric results are usually given.
AGE_BANDS = (
    ("0-28 days", 0.0, 28 / 30.4375),
    ("1-12 months", 28 / 30.4375, 12.0),
    ("1-2 years", 12.0, 24.0),
    ("2-5 years", 24.0, 60.0),
    ("5-12 years", 60.0, 144.0),
    ("12-18 years", 144.0, 216.0),
    ("18 years and over", 216.0, np.inf),
)
HEADLINES = ("accuracy", "recall", "precision", "f1", "roc_auc", "age_mae_months")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said of N images, and the truth.

    Attributes:
      classes: names of the K conditions; empty without a condition head.
      probabilities: `[N, K]`.
      label: int `[N]`, -1 = unknown.
      age_months: `[N]`, NaN = unknown.
      age_predicted_months: `[N]`, NaN without an age head.
      patient: one key a person, `[N]`.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    label: np.ndarray
    age_months: np.ndarray
    age_predicted_months: np.ndarray
    patient: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> Predictions:
        return dataclasses.replace(
            self,
            **{
                f.name: getattr(self, f.name)[rows]
                for f in dataclasses.fields(self)
                if f.name != "classes"
            },
        )


def confusion_matrix(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `[K, K]`: rows are the truth, columns the prediction."""
    flat = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, precision and F1 of each class, `[K]`; NaN for a class without cases.

    A class with cases that is never predicted has precision 0, as scikit-learn's default.
    """
    hits = np.diag(confusion).astype(float)
    cases, named = confusion.sum(1), confusion.sum(0)
    present = cases > 0

    def ratio(above, below):
        return np.where(present, above / np.maximum(below, 1), np.nan)

    return {
        "recall": ratio(hits, cases),
        "precision": ratio(hits, named),
        "f1": ratio(2 * hits, cases + named),
    }


def roc_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by ranks, ties counted half; NaN where one side has no cases."""
    positive = np.asarray(positive, bool)
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2.0
    total = rank[group][positive].sum()
    return float((total - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def roc_curve(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-score, kind="stable")
    positive = np.asarray(positive, bool)[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(positive)[last]
    false = np.cumsum(~positive)[last]
    return (
        np.concatenate([[0.0], false / max(false[-1], 1)]),
        np.concatenate([[0.0], true / max(true[-1], 1)]),
    )


def pr_curve(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold, from few positives to all; both sides must occur."""
    order = np.argsort(-score, kind="stable")
    positive = np.asarray(positive, bool)[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive)[last]
    return hits / hits[-1], hits / (last + 1)


def classification(probabilities: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy and macro recall, precision, F1 and one-against-rest ROC AUC.

    Macro figures are means over the classes that have cases; images with label -1 are left out.

    Args:
      probabilities: `[N, K]`.
      label: int `[N]`.
    """
    known = label >= 0
    probabilities, label = probabilities[known], label[known]
    if not len(label):
        return dict.fromkeys(("accuracy", "recall", "precision", "f1", "roc_auc"), float("nan"))
    predicted = probabilities.argmax(1)
    confusion = confusion_matrix(label, predicted, probabilities.shape[1])
    present = np.flatnonzero(confusion.sum(1))
    result = {"accuracy": float((predicted == label).mean())}
    for name, values in per_class(confusion).items():
        result[name] = float(values[present].mean())
    if len(present) > 1:
        areas = [roc_auc(label == k, probabilities[:, k]) for k in present]
        result["roc_auc"] = float(np.mean(areas))
    else:
        result["roc_auc"] = float("nan")
    return result


def age_mae(predictions: Predictions) -> float:
    """Mean absolute error of the age in months, over images of known age."""
    error = np.abs(predictions.age_predicted_months - predictions.age_months)
    known = np.isfinite(error)
    return float(error[known].mean()) if known.any() else float("nan")


def headline(predictions: Predictions) -> dict[str, float]:
    """The figures of `HEADLINES`; NaN where one cannot be computed."""
    result = dict.fromkeys(HEADLINES, float("nan"))
    if predictions.classes:
        result |= classification(predictions.probabilities, predictions.label)
    result["age_mae_months"] = age_mae(predictions)
    return result


def bootstrap(
    predictions: Predictions,
    figures: Callable[[Predictions], dict[str, float]],
    *,
    samples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals, resampling patients with all their images.

    Images of one patient are not independent: resampling images would make the intervals too short.

    Args:
      predictions: of the test set.
      figures: what to compute.
      samples: bootstrap samples.
      seed: of the resampling.

    Returns:
      Lower and upper bound of each figure; NaN where no sample could compute it.
    """
    _, patient = np.unique(predictions.patient, return_inverse=True)
    order = np.argsort(patient, kind="stable")
    starts = np.searchsorted(patient[order], np.arange(patient.max() + 2))
    images = [order[a:b] for a, b in itertools.pairwise(starts)]
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(samples):
        drawn = rng.integers(len(images), size=len(images))
        rows.append(figures(predictions.take(np.concatenate([images[i] for i in drawn]))))
    intervals = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        intervals[name] = (
            tuple(float(v) for v in np.percentile(values, [2.5, 97.5]))
            if len(values)
            else (float("nan"), float("nan"))
        )
    return intervals


def by_age_band(predictions: Predictions) -> list[dict]:
    """The headline figures within each age band that has images; unknown ages are a band too."""
    ages = predictions.age_months
    bands = [(name, (ages >= low) & (ages < high)) for name, low, high in AGE_BANDS]
    bands.append(("unknown", ~np.isfinite(ages)))
    return [
        {"band": name, "n": int(rows.sum())} | headline(predictions.take(rows))
        for name, rows in bands
        if rows.any()
    ]


def baseline(predictions: Predictions, train_label: np.ndarray, age_mean_months) -> dict:
    """What a model that never looks at the image would score.

    Args:
      predictions: of the test set.
      train_label: int `[M]` of the training images, -1 = unknown.
      age_mean_months: mean age of the training images; None without an age head.

    Returns:
      `majority_class`, the most frequent in training, and the `accuracy` of always naming it;
      `age_mae_months` of always naming the mean age. NaN where one cannot be computed.
    """
    result = {"majority_class": None, "accuracy": float("nan"), "age_mae_months": float("nan")}
    known, trained = predictions.label[predictions.label >= 0], train_label[train_label >= 0]
    if len(known) and len(trained):
        majority = int(np.bincount(trained).argmax())
        result["majority_class"] = predictions.classes[majority]
        result["accuracy"] = float((known == majority).mean())
    ages = predictions.age_months[np.isfinite(predictions.age_months)]
    if age_mean_months is not None and len(ages):
        result["age_mae_months"] = float(np.abs(ages - age_mean_months).mean())
    return result


def missing_reasons(predictions: Predictions) -> dict[str, str]:
    """Why a headline figure, or a class, has no value: `{name: reason}`."""
    reasons = {}
    if not predictions.classes:
        why = "the model has no condition head"
    elif not (predictions.label >= 0).any():
        why = "no image has a known label of one of the model's classes"
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


def summarise(predictions: Predictions, *, bootstrap_samples: int = 1000, seed: int = 0) -> dict:
    """Everything in `metrics.json` but the calibration.

    Args:
      predictions: of the test set.
      bootstrap_samples: for the 95 % intervals; 0 leaves them out.
      seed: of the resampling.
    """
    figures = headline(predictions)
    result = {
        "n": len(predictions),
        "n_patients": len(set(predictions.patient.tolist())),
        "n_with_condition": int((predictions.label >= 0).sum()),
        "n_with_age": int(np.isfinite(predictions.age_months).sum()),
    }
    result |= figures
    result["not_computed"] = missing_reasons(predictions)
    if predictions.classes:
        result |= _classes(predictions)
    result["age_bands"] = by_age_band(predictions)
    if any(not np.isfinite(row[name]) for row in result["age_bands"] for name in HEADLINES):
        result["not_computed"]["age_bands"] = "no label, no second class or no age in some bands"
    if bootstrap_samples:
        intervals = bootstrap(predictions, headline, samples=bootstrap_samples, seed=seed)
        result["ci95"] = {name: list(intervals[name]) for name in HEADLINES}
    return result


def _classes(predictions: Predictions) -> dict:
    known = predictions.label >= 0
    label, probabilities = predictions.label[known], predictions.probabilities[known]
    confusion = confusion_matrix(label, probabilities.argmax(1), len(predictions.classes))
    scores = per_class(confusion)
    table = {}
    for k, name in enumerate(predictions.classes):
        table[name] = {"n": int(confusion[k].sum())}
        table[name] |= {figure: float(values[k]) for figure, values in scores.items()}
        table[name]["roc_auc"] = roc_auc(label == k, probabilities[:, k])
    return {"per_class": table, "confusion_matrix": confusion.tolist()}


def to_json(value):
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
