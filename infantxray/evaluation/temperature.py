"""Temperature scaling: one number, fitted on validation patients, that calibrates probabilities.

Guo et al., ICML 2017. The order of the classes stays, and so do accuracy and the argmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, logit, softmax

from infantxray.evaluation.calibration import calibration

_SMALLEST = 1e-12
RANGE = 1e-3, 1e3  # Of the temperature.
_INDISTINGUISHABLE = 1.92  # In log likelihood: half the 95 % quantile of chi2 with one degree.


def fit_temperature(probabilities: np.ndarray, label: np.ndarray) -> float | None:
    """The temperature of least log loss for classes of which one is present.

    The log loss is convex in the inverse temperature: its derivative has at most one root. It has
    none if the label of every image is the most probable one. The log loss then falls for ever as
    the temperature goes to 0, and all probabilities would become 0 or 1.

    Args:
      probabilities: `[N, K]` of validation images.
      label: int `[N]`, -1 = unknown (left out).

    Returns:
      The temperature, between 0.001 and 1,000. None without images of known label, or where these
      images do not determine a temperature: there is no optimum in this range, or a likelihood
      ratio test at 5 % does not distinguish it from 0.001.
    """
    known = label >= 0
    if not known.any():
        return None
    logits = np.log(np.maximum(probabilities[known].astype(np.float64), _SMALLEST))
    return _root(logits, label[known])


def fit_temperature_binary(
    probability: np.ndarray, positive: np.ndarray, known: np.ndarray | None = None
) -> float | None:
    """The temperature of least log loss for one finding.

    Args:
      probability: `[N]` of validation images.
      positive: `[N]`, true or 1 where the finding is present.
      known: bool `[N]`; None: all are known.

    Returns:
      As `fit_temperature`.
    """
    rows = np.ones(len(probability), bool) if known is None else np.asarray(known, bool)
    if not rows.any():
        return None
    z = logit(np.clip(probability[rows].astype(np.float64), _SMALLEST, 1 - _SMALLEST))
    return _root(np.stack([np.zeros_like(z), z], 1), np.asarray(positive)[rows].astype(int))


def _root(logits: np.ndarray, label: np.ndarray) -> float | None:
    logits = logits - logits.mean(1, keepdims=True)
    rows = np.arange(len(label))
    own = logits[rows, label]
    if (own >= logits.max(1)).all():
        return None
    stated = own.mean()

    def slope(log_temperature: float) -> float:
        scaled = softmax(logits * np.exp(-log_temperature), axis=1)
        return float((scaled * logits).sum(1).mean() - stated)

    def likelihood(temperature: float) -> float:
        return float(log_softmax(logits / temperature, axis=1)[rows, label].sum())

    low, high = np.log(RANGE)
    if slope(low) <= 0 or slope(high) >= 0:
        return None
    found = float(np.exp(brentq(slope, low, high, xtol=1e-13)))
    distinguishable = likelihood(found) - likelihood(RANGE[0]) > _INDISTINGUISHABLE
    return found if distinguishable else None


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Calibrated probabilities of classes, `[N, K]`: softmax(log(p) / T)."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST))
    return np.asarray(np.exp(log_softmax(logits / temperature, axis=1)))


def scale_binary(probability: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Calibrated probabilities of findings, `[N]`, or `[N, F]` with temperatures `[F]`."""
    z = logit(np.clip(probability.astype(np.float64), _SMALLEST, 1 - _SMALLEST))
    return np.asarray(expit(z / temperature))


def before_and_after(
    probabilities: np.ndarray, label: np.ndarray, temperature: float, num_bins: int = 10
) -> dict[str, dict[str, Any]]:
    """Calibration on test images before and after scaling: `{"before": ..., "after": ...}`.

    Args:
      probabilities: `[N, K]`; for one finding the stack of 1 - p and p.
      label: int `[N]`, -1 = unknown.
      temperature: temperature from validation images.
      num_bins: of confidence.
    """
    return {
        "before": calibration(probabilities, label, num_bins),
        "after": calibration(scale(probabilities, temperature), label, num_bins),
    }
