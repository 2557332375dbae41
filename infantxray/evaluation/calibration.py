"""Calibration: expected calibration error, Brier score and log loss."""

from __future__ import annotations

import numpy as np

_TINY = np.finfo(np.float32).tiny


def findings_calibration(
    probabilities: np.ndarray, findings: np.ndarray, num_bins: int = 10
) -> dict:
    """`calibration` of all known findings, where an image may have several.

    `confidence` is then the probability of a finding, and `accuracy` the share of these findings
    that are present; `brier` goes from 0 to 1, and `log_loss` is the binary cross-entropy.

    Args:
      probabilities: `[N, K]`.
      findings: `[N, K]`, 1 present, 0 absent, NaN unknown.
      num_bins: equally wide bins of probability.
    """
    known = np.isfinite(findings)
    probability, present = probabilities[known].astype(np.float64), findings[known]
    if not len(present):
        return calibration(np.zeros((0, 2)), np.zeros(0, int))
    stated = np.maximum(np.where(present == 1, probability, 1 - probability), _TINY)
    bins = _bins(probability, present, num_bins)
    return {
        "expected_calibration_error": _gap(bins),
        "brier": float(((probability - present) ** 2).mean()),
        "log_loss": float(-np.log(stated).mean()),
        "bins": bins,
    }


def calibration(probabilities: np.ndarray, label: np.ndarray, num_bins: int = 10) -> dict:
    """Calibration of the predicted class, and proper scores.

    Args:
      probabilities: `[N, K]`.
      label: int `[N]`, -1 = unknown (left out).
      num_bins: equally wide bins of confidence.

    Returns:
      `expected_calibration_error` (Naeini et al., AAAI 2015: mean gap between confidence and
      accuracy over bins, weighted by their images), `brier` (sum over classes, 0 to 2),
      `log_loss` (nats), and the `bins`: `confidence`, `accuracy`, `n`. NaN without images.
    """
    known = label >= 0
    probabilities, label = probabilities[known].astype(np.float64), label[known]
    n = len(label)
    if not n:
        nan = float("nan")
        return {"expected_calibration_error": nan, "brier": nan, "log_loss": nan, "bins": []}
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == label
    bins = _bins(confidence, correct, num_bins)
    truth = np.eye(probabilities.shape[1])[label]
    stated = np.maximum(probabilities[np.arange(n), label], _TINY)
    return {
        "expected_calibration_error": _gap(bins),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
        "log_loss": float(-np.log(stated).mean()),
        "bins": bins,
    }


def _bins(confidence: np.ndarray, correct: np.ndarray, num_bins: int) -> list[dict]:
    index = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return [
        {
            "confidence": float(confidence[rows].mean()),
            "accuracy": float(correct[rows].mean()),
            "n": int(rows.sum()),
        }
        for b in range(num_bins)
        if (rows := index == b).any()
    ]


def _gap(bins: list[dict]) -> float:
    """Mean distance of confidence and accuracy, weighted by the images of each bin."""
    total = sum(b["n"] for b in bins)
    return float(sum(b["n"] / total * abs(b["confidence"] - b["accuracy"]) for b in bins))
