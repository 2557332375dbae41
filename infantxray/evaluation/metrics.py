"""Weighted classification and age metrics: one engine for point estimates and for the bootstrap.

A bootstrap sample is a weighting of the patients, so the engine computes every metric for many
weightings at once. A metric that cannot be computed is NaN: a class without cases has no recall,
and a class that every image or no image has, has no ROC curve.
"""

from __future__ import annotations

import numpy as np

from infantxray.evaluation.predictions import THRESHOLD, Predictions

__all__ = [
    "AGE_BANDS",
    "CLASS_METRICS",
    "HEADLINES",
    "Predictions",
    "age_groups",
    "classification",
    "findings_metrics",
    "headline",
    "roc_auc",
    "weighted_metrics",
]

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
CLASS_METRICS = ("recall", "precision", "f1", "roc_auc")
_MOST_WEIGHTS = 2_000_000  # Images times weightings at a time: some 100 MB.


def weighted_metrics(
    predictions: Predictions, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Headline and per-class metrics for B weightings of the patients.

    Recall, precision, F1 and ROC AUC (one class against the rest) are means over the classes that
    have cases. A class with cases that is never predicted has precision 0.

    Where an image may have several findings, each is scored over the images in which it is known,
    by a threshold of 0.5; ROC AUC is the mean over the findings that are known to be present in
    some images and absent in others. Accuracy is the share of right answers among all known
    findings of all images (1 - Hamming loss): where findings are rare it flatters.

    Args:
      predictions: predictions of N images of P patients.
      weights: `[B, P]`, in the order of `np.unique(predictions.patient)`; None weights all images
        equally (B = 1).

    Returns:
      `{name: [B]}`: the names of `HEADLINES`, and `recall/<class>` and so on for each class and
      name of `CLASS_METRICS`. NaN where a metric cannot be computed.
    """
    if weights is None:
        group, weights = np.zeros(len(predictions), int), np.ones((1, 1))
    else:
        group = np.unique(predictions.patient, return_inverse=True)[1]
    result = {"age_mae_months": _age_mae(predictions, group, weights)}
    if predictions.findings is not None:
        metrics, per_class = _findings(
            predictions.probabilities, predictions.findings, group, weights
        )
    else:
        metrics, per_class = _classification(
            predictions.probabilities, predictions.label, group, weights
        )
    for name, values in per_class.items():
        metrics |= {f"{name}/{c}": values[:, k] for k, c in enumerate(predictions.classes)}
    return metrics | result


def headline(predictions: Predictions) -> dict[str, float]:
    """The metrics of `HEADLINES`."""
    found = weighted_metrics(predictions)
    return {name: float(found[name][0]) for name in HEADLINES}


def classification(probabilities: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy and macro recall, precision, F1 and one-against-rest ROC AUC.

    Args:
      probabilities: `[N, K]`.
      label: int `[N]`; images with -1 are left out.
    """
    found, _ = _classification(probabilities, label, np.zeros(len(label), int), np.ones((1, 1)))
    return {name: float(values[0]) for name, values in found.items()}


def findings_metrics(probabilities: np.ndarray, findings: np.ndarray) -> dict[str, float]:
    """`classification` where an image may have several findings; see `weighted_metrics`.

    Args:
      probabilities: `[N, K]`.
      findings: `[N, K]`, 1 present, 0 absent, NaN unknown.
    """
    nobody = np.zeros(len(findings), int)
    found, _ = _findings(probabilities, findings, nobody, np.ones((1, 1)))
    return {name: float(values[0]) for name, values in found.items()}


def roc_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN where one side has no cases.

    Args:
      positive: bool `[N]`.
      score: `[N]`.
    """
    positive = np.asarray(positive, bool)
    return float(_roc_auc(positive, score, np.zeros(len(positive), int), np.ones((1, 1)))[0])


def age_groups(age_months: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The age bands that have images, with a bool `[N]` each; unknown ages are the last."""
    groups = [(name, (age_months >= low) & (age_months < high)) for name, low, high in AGE_BANDS]
    groups.append(("unknown", ~np.isfinite(age_months)))
    return [(name, rows) for name, rows in groups if rows.any()]


def _age_mae(predictions: Predictions, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    error = np.abs(predictions.age_predicted_months.astype(np.float64) - predictions.age_months)
    known = np.isfinite(error)
    total = np.bincount(group[known], error[known], weights.shape[1])
    count = np.bincount(group[known], minlength=weights.shape[1])
    weights = weights.astype(np.float64)
    return _ratio(weights @ total, weights @ count.astype(np.float64))


def _classification(
    probabilities: np.ndarray, label: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Headline metrics `[B]` and per-class metrics `[B, K]`, weighting groups of images."""
    known, (b, g) = label >= 0, weights.shape
    k = probabilities.shape[1]
    if not known.any() or not k:
        nan = np.full((b, k), np.nan)
        return dict.fromkeys(HEADLINES[:-1], np.full(b, np.nan)), dict.fromkeys(CLASS_METRICS, nan)
    probabilities, label, group = probabilities[known], label[known], group[known]
    outcome = label * k + probabilities.argmax(1)
    counts = np.bincount(group * k * k + outcome, minlength=g * k * k).reshape(g, k * k)
    # As floats: NumPy multiplies integer matrices without BLAS.
    confusion = (weights.astype(np.float64) @ counts.astype(np.float64)).reshape(b, k, k)
    hits = np.einsum("bkk->bk", confusion)
    cases, named = confusion.sum(2), confusion.sum(1)
    present = cases > 0
    per_class = {
        "recall": hits / np.maximum(cases, 1e-300),
        "precision": hits / np.where(named > 0, named, 1),
        "f1": 2 * hits / np.maximum(cases + named, 1e-300),
    }
    per_class = {name: np.where(present, values, np.nan) for name, values in per_class.items()}
    areas = [_roc_auc(label == j, probabilities[:, j], group, weights) for j in range(k)]
    per_class["roc_auc"] = np.stack(areas, 1)
    result = {"accuracy": _ratio(hits.sum(1), cases.sum(1))}
    for name, values in per_class.items():
        result[name] = _ratio(np.where(present, values, 0).sum(1), present.sum(1))
    return result, per_class


def _findings(
    probabilities: np.ndarray, findings: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`_classification` for findings `[N, K]`."""
    b, g = weights.shape
    columns: dict[str, list[np.ndarray]] = {name: [] for name in CLASS_METRICS}
    right, total = np.zeros(b), np.zeros(b)
    for k in range(findings.shape[1]):
        known = np.isfinite(findings[:, k])
        truth, score, of = findings[known, k] == 1, probabilities[known, k], group[known]
        outcome = 2 * truth + (score >= THRESHOLD)
        counts = np.bincount(of * 4 + outcome, minlength=4 * g).reshape(g, 4)
        counted = weights.astype(np.float64) @ counts.astype(np.float64)
        true_negative, false_positive, false_negative, true_positive = counted.T
        cases, named = true_positive + false_negative, true_positive + false_positive
        columns["recall"].append(_ratio(true_positive, cases))
        precision = true_positive / np.where(named > 0, named, 1)
        columns["precision"].append(np.where(cases > 0, precision, np.nan))
        columns["f1"].append(np.where(cases > 0, _ratio(2 * true_positive, cases + named), np.nan))
        columns["roc_auc"].append(_roc_auc(truth, score, of, weights))
        right += true_negative + true_positive
        total += counted.sum(1)
    nothing = np.full((b, 0), np.nan)
    per_class = {name: np.stack(v, 1) if v else nothing for name, v in columns.items()}
    result = {"accuracy": _ratio(right, total)}
    for name, values in per_class.items():
        here = np.isfinite(values)
        result[name] = _ratio(np.where(here, values, 0).sum(1), here.sum(1))
    return result, per_class


def _roc_auc(
    positive: np.ndarray, score: np.ndarray, group: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Area under the ROC curve for each weighting, `[B]`; NaN without both sides."""
    negatives, positives = np.flatnonzero(~positive), np.flatnonzero(positive)
    negatives = negatives[np.argsort(score[negatives], kind="stable")]
    below = np.searchsorted(score[negatives], score[positives], "left")
    below_or_equal = np.searchsorted(score[negatives], score[positives], "right")
    areas = []
    step = max(1, _MOST_WEIGHTS // max(len(score), 1))
    for at in range(0, len(weights), step):
        part = weights[at : at + step]
        above = part.take(group[positives], axis=1).astype(np.float64)
        total = np.zeros((len(part), len(negatives) + 1))
        np.cumsum(part.take(group[negatives], axis=1), axis=1, out=total[:, 1:])
        # Ties count half.
        wins = np.einsum("bp,bp->b", above, total.take(below, axis=1)) / 2
        wins += np.einsum("bp,bp->b", above, total.take(below_or_equal, axis=1)) / 2
        areas.append(_ratio(wins, above.sum(1) * total[:, -1]))
    return np.concatenate(areas)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
