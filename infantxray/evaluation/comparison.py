"""Comparison of two models on the same patients: permutation tests and reclassification.

DeLong's test is `roc.auc_difference`; intervals over seeds are in `intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from infantxray.evaluation.estimates import Linearised, Metric, Scores, patient_index
from infantxray.evaluation.roc import _same_images

_NAN = float("nan")
_CHUNK_BYTES = 2**27


def sign_flip_test(
    first: np.ndarray,
    second: np.ndarray,
    patient: np.ndarray,
    *,
    samples: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided permutation test of the mean difference of two models' values a image.

    Under the null hypothesis a patient's values of the two models are exchangeable: the sign of the
    patient's summed difference is random (Good, Permutation Tests, 2000). For hits, absolute errors
    and other values of which a metric is the mean.

    Args:
      first: of one model, `[N]`.
      second: of the other.
      patient: one key a person, `[N]`.
      samples: random permutations; the observed one counts as one more.
      seed: seed of the permutations.

    Returns:
      The p-value; NaN without images.
    """
    if not len(first):
        return _NAN
    sums = np.bincount(patient_index(patient), np.asarray(first, np.float64) - second)
    sums = sums[sums != 0]
    observed = abs(sums.sum())
    slack = 1e-12 * (1 + np.abs(sums).sum())
    rng = np.random.default_rng(seed)
    reached, chunk = 1, max(_CHUNK_BYTES // (8 * max(len(sums), 1)), 1)
    for start in range(0, samples, chunk):
        signs = rng.integers(0, 2, (min(chunk, samples - start), len(sums)), np.int8)
        drawn = 2 * (signs @ sums) - sums.sum()
        reached += int((np.abs(drawn) >= observed - slack).sum())
    return reached / (samples + 1)


def auc_permutation_test(
    first: Scores, second: Scores, *, samples: int = 999, seed: int = 0
) -> float:
    """Two-sided permutation test of the difference of two areas under the ROC curve.

    The ranks that the two models give a patient's images are exchanged at random (Venkatraman and
    Begg, Biometrika 1996;83:835, with the area as statistic).

    Args:
      first: of one model.
      second: of the other, on the same images.
      samples: random permutations; the observed one counts as one more.
      seed: seed of the permutations.

    Returns:
      The p-value; NaN without both outcomes.

    Raises:
      ValueError: the models were not tested on the same images.
    """
    _same_images([first, second])
    if first.missing():
        return _NAN
    positive, n = first.positive, len(first)
    # Both models' ranks on one scale, so that a permutation selects one of the two for each image
    # and nothing is sorted again.
    pooled = np.concatenate([rankdata(first.score), rankdata(second.score)])
    values, place = np.unique(pooled, return_inverse=True)
    rng = np.random.default_rng(seed)
    negatives = int((~positive).sum())

    def area(chosen: np.ndarray) -> float:
        """Number of pairs in the right order, for the place `[N]` that each image takes."""
        below = np.bincount(chosen[~positive], minlength=len(values))
        under = np.cumsum(below) - below / 2
        return float(under[chosen[positive]].sum())

    def statistic(swap: np.ndarray) -> float:
        one = np.where(swap, place[n:], place[:n])
        return area(one) - area(place[:n] + place[n:] - one)

    observed = abs(statistic(np.zeros(n, bool)))
    slack = 1e-9 * negatives
    reached = 1
    for _ in range(samples):
        swap = rng.integers(0, 2, first.num_patients, np.int8).astype(bool)[first.patient]
        reached += abs(statistic(swap)) >= observed - slack
    return reached / (samples + 1)


def reclassification(first: Scores, second: Scores, thresholds: Sequence[float]) -> dict[str, Any]:
    """Reclassification table and net reclassification improvement of `second` over `first`.

    Pencina et al., Stat Med 2008;27:157. The improvement can be positive for a model that is no
    better but badly calibrated (Kerr et al., Epidemiology 2014;25:114): read it beside net benefit.

    Args:
      first: probabilities of the reference model.
      second: of the other, for the same images.
      thresholds: increasing bounds of C - 1 between C categories of probability.

    Returns:
      `positive` and `negative`, counts `[C, C]` of the images of each outcome (rows: first model,
      columns: second), and the metrics `nri_positive` (up minus down among positive images),
      `nri_negative` (down minus up among negative images) and `nri`, their sum.

    Raises:
      ValueError: the models were not tested on the same images, or thresholds do not increase.
    """
    _same_images([first, second])
    if not len(thresholds) or (np.diff(thresholds) <= 0).any():
        raise ValueError(f"thresholds must increase, got {list(thresholds)}")
    bounds, count = np.asarray(thresholds), len(thresholds) + 1
    before, after = (np.searchsorted(bounds, s.score, "right") for s in (first, second))
    result: dict[str, Any] = {}
    parts = []
    for name, side, sign in (("positive", first.positive, 1), ("negative", ~first.positive, -1)):
        table = np.bincount(before[side] * count + after[side], minlength=count**2)
        result[name] = table.reshape(count, count).tolist()
        if not side.any():
            result[f"nri_{name}"] = Metric(_NAN, note=f"no {name} image")
            continue
        moved = (sign * np.sign(after - before))[side]
        part = Linearised.mean(moved, first.patient[side], first.note()).embed(side)
        parts.append(part)
        result[f"nri_{name}"] = part.metric(first.patient)
    if len(parts) == 2:
        result["nri"] = (parts[0] + parts[1]).metric(first.patient)
    else:
        result["nri"] = Metric(_NAN, note=first.missing())
    return result
