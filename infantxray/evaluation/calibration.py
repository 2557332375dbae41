"""Whether a stated probability of 80 % is right four times in five."""

from __future__ import annotations

import numpy as np


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
    index = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    bins, gap = [], 0.0
    for b in range(num_bins):
        rows = index == b
        if rows.any():
            mean_confidence, accuracy = confidence[rows].mean(), correct[rows].mean()
            gap += rows.sum() / n * abs(mean_confidence - accuracy)
            bins.append(
                {
                    "confidence": float(mean_confidence),
                    "accuracy": float(accuracy),
                    "n": int(rows.sum()),
                }
            )
    truth = np.eye(probabilities.shape[1])[label]
    stated = np.maximum(probabilities[np.arange(n), label], np.finfo(np.float32).tiny)
    return {
        "expected_calibration_error": float(gap),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
        "log_loss": float(-np.log(stated).mean()),
        "bins": bins,
    }
