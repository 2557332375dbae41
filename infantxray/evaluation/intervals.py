"""Means over seeds with intervals over patients and seeds, paired differences, and tests.

Every model of a study answers for the same images of the same patients. Two things vary: who is
tested, and the seed of a training run. Both are resampled jointly, patients with all their images
and the same draws for every model, so that differences are paired in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from infantxray.evaluation.metrics import HEADLINES, Predictions

_CHUNK = 250  # Bootstrap samples at a time, so that memory stays small.
_CONFIDENCE = 0.95
_UNBOUNDED = ("age_mae_months",)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty; NaN where it cannot be computed.

    Attributes:
      mean: over seeds.
      sd: over seeds (n - 1); NaN for one seed.
      low: of the 95 % interval, over patients and seeds.
      high: likewise.
      p: of the test that the true value is zero; for differences.
    """

    mean: float
    sd: float
    low: float
    high: float
    p: float = float("nan")


_NOTHING = Estimate(*[float("nan")] * 5)


def weighted_figures(predictions: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of `metrics.headline`, and those of each class, with weighted patients.

    For many weightings at once: a bootstrap sample is a weighting.

    Args:
      predictions: of N images of P patients.
      weights: `[B, P]`, of the patients in the order of `np.unique(predictions.patient)`.

    Returns:
      `{name: [B]}`, of a class as `recall/<class>` and so on; NaN where a figure cannot be
      computed.
    """
    keys, patient = np.unique(predictions.patient, return_inverse=True)
    parts = [
        _weighted_figures(predictions, patient, len(keys), weights[at : at + _CHUNK])
        for at in range(0, len(weights), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weighted_figures(predictions, patient, num_patients, weights) -> dict[str, np.ndarray]:
    result = {name: np.full(len(weights), np.nan) for name in HEADLINES}
    weights = weights.astype(np.float64)
    error = np.abs(predictions.age_predicted_months - predictions.age_months).astype(np.float64)
    known = np.isfinite(error)
    if known.any():
        total = np.bincount(patient[known], error[known], num_patients)
        count = np.bincount(patient[known], minlength=num_patients)
        result["age_mae_months"] = _ratio(weights @ total, weights @ count)
    k = len(predictions.classes)
    known = predictions.label >= 0
    if not k or not known.any():
        return result
    label, patient = predictions.label[known], patient[known]
    probabilities = predictions.probabilities[known]
    outcome = label * k + probabilities.argmax(1)
    counts = np.bincount(patient * k * k + outcome, minlength=num_patients * k * k)
    confusion = (weights @ counts.reshape(num_patients, k * k)).reshape(-1, k, k)
    hits = np.einsum("bkk->bk", confusion)
    cases, named = confusion.sum(2), confusion.sum(1)
    present = cases > 0
    result["accuracy"] = _ratio(hits.sum(1), cases.sum(1))
    classes = {}
    for name, above, below in (
        ("recall", hits, cases),
        ("precision", hits, named),
        ("f1", 2 * hits, cases + named),
    ):
        values = above / np.where(below > 0, below, 1)
        result[name] = _ratio((values * present).sum(1), present.sum(1))
        classes[name] = np.where(present, values, np.nan)
    areas = np.stack(
        [_weighted_auc(label == j, probabilities[:, j], weights[:, patient]) for j in range(k)], 1
    )
    area = _ratio(np.where(present, areas, 0).sum(1), present.sum(1))
    result["roc_auc"] = np.where(present.sum(1) > 1, area, np.nan)
    classes["roc_auc"] = areas
    for name, values in classes.items():
        result |= {f"{name}/{c}": values[:, j] for j, c in enumerate(predictions.classes)}
    return result


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _weighted_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of image weights `[B, N]`; NaN without both sides."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    weights, positive = weights[:, order], positive[order]
    above = np.add.reduceat(weights * positive, starts, axis=1)
    below = np.add.reduceat(weights * ~positive, starts, axis=1)
    # Ties count half.
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(1)
    return _ratio(wins, above.sum(1) * below.sum(1))


class Resampling:
    """Draws of patients and seeds that all comparisons of a study share.

    Args:
      patient: key of each image's patient.
      num_seeds: training runs of each model.
      samples: bootstrap samples.
      seed: of the draws.
    """

    def __init__(self, patient: np.ndarray, num_seeds: int, samples: int, seed: int):
        rng = np.random.default_rng(seed)
        self._keys = np.unique(patient)
        n = len(self._keys)
        # Nobody is drawn 65,536 times, and hospitals have many patients.
        self.patients = rng.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.uint16)
        self._samples = samples
        self._seed = seed
        everyone = (0,) * num_seeds
        self._seeds = {everyone: self._draw_seeds(rng, everyone)}

    def _draw_seeds(self, rng: np.random.Generator, groups: tuple[int, ...]) -> np.ndarray | None:
        if len(groups) == 1:
            return None
        weights = np.full((self._samples, len(groups)), 1 / len(groups))
        for rows in _members(groups):
            # One seed fewer than there are: the variance over draws is then that of the mean, while
            # with as many draws it is too small by (n - 1) / n, a third for three seeds (Rao and
            # Wu, J Am Stat Assoc 1988;83:231-241).
            count, draws = len(rows), len(rows) - 1
            if draws:
                drawn = rng.multinomial(draws, np.full(count, 1 / count), size=self._samples)
                weights[:, rows] = drawn / draws * (count / len(groups))
        return weights

    def seed_weights(self, groups: tuple[int, ...]) -> np.ndarray | None:
        """The same draws for all models with seeds of these groups, `[B, S]`; None for one seed."""
        if groups not in self._seeds:
            rng = np.random.default_rng([self._seed, len(groups)])
            self._seeds[groups] = self._draw_seeds(rng, groups)
        return self._seeds[groups]

    def figures(self, runs: Sequence[Predictions], groups: Sequence[int] = ()) -> Sampled:
        """The figures of a model's runs, one a seed, on the test set and its draws.

        Args:
          runs: one a seed.
          groups: which of them share a stage one, `[S]`, the same numbers for all models that are
            compared. Seeds are then drawn within their group, and what is said is about these
            stages one. Empty: they share nothing.
        """
        groups = tuple(groups) or (0,) * len(runs)
        if len(set(groups)) == len(runs):
            groups = (0,) * len(runs)
        here = np.isin(self._keys, runs[0].patient)
        weights = np.concatenate([np.ones((1, here.sum()), np.uint16), self.patients[:, here]])
        found = [weighted_figures(run, weights) for run in runs]
        return Sampled(
            observed={name: np.array([f[name][0] for f in found]) for name in found[0]},
            drawn={name: np.stack([f[name][1:] for f in found]) for name in found[0]},
            seeds=self.seed_weights(groups),
            num_patients=int(here.sum()),
            groups=groups,
        )


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Figures of one model.

    Attributes:
      observed: `{name: [S]}`, on the test set.
      drawn: `{name: [S, B]}`, on resampled patients.
      seeds: `[B, S]`, weights of the seeds in each draw; None for a model without seeds or with
        one: then the interval covers patients alone.
      num_patients: whom the figures are of.
      bounded: they are scores from 0 to 1, or errors from 0, and not differences.
      groups: which seeds share a stage one, `[S]`; empty where none do.
    """

    observed: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    seeds: np.ndarray | None
    num_patients: int
    bounded: bool = True
    groups: tuple[int, ...] = ()

    def __sub__(self, other: Sampled) -> Sampled:
        """Differences, patient by patient and seed by seed."""
        return dataclasses.replace(
            self,
            observed={n: self.observed[n] - other.observed[n] for n in self.observed},
            drawn={n: self.drawn[n] - other.drawn[n] for n in self.drawn},
            bounded=False,
        )

    def estimate(self, name: str) -> Estimate:
        """Mean over seeds, with a t interval around it.

        The standard error is that of the joint bootstrap. Its degrees of freedom are
        Satterthwaite's: those of the few seeds where they vary most, those of the many patients
        where these do. A plain percentile interval is too short for three seeds that differ.
        """
        observed, drawn = self.observed[name], self.drawn[name]
        if not np.isfinite(observed).all():
            return _NOTHING
        count = len(observed)
        mean, sd = observed.mean(), observed.std(ddof=1) if count > 1 else np.nan
        weighted = drawn.mean(0) if self.seeds is None else (drawn * self.seeds.T).sum(0)
        weighted = weighted[np.isfinite(weighted)]
        over_patients = drawn.mean(0)
        if len(weighted) < 2:
            return Estimate(mean, sd, np.nan, np.nan)
        variance = weighted.var()
        of_patients = over_patients[np.isfinite(over_patients)].var()
        of_seeds, spare = self._of_seeds(observed)
        if variance == 0:
            return Estimate(mean, sd, mean, mean, 1.0 if mean == 0 else 0.0)
        spread = of_seeds**2 / spare + of_patients**2 / max(self.num_patients - 1, 1)
        degrees = max(variance**2 / spread, 1.0) if spread else 1.0
        error = np.sqrt(variance)
        half = stdtrit(degrees, (1 + _CONFIDENCE) / 2) * error
        p = 2 * stdtr(degrees, -abs(mean) / error)
        low, high = mean - half, mean + half
        if self.bounded:
            low, high = max(low, 0.0), high if name in _UNBOUNDED else min(high, 1.0)
        return Estimate(*map(float, (mean, sd, low, high, p)))

    def _of_seeds(self, observed: np.ndarray) -> tuple[float, int]:
        """Variance of the mean over seeds, and its degrees of freedom, at least 1."""
        if self.seeds is None:
            return 0.0, 1
        variance, degrees = 0.0, 0
        for rows in _members(self.groups or (0,) * len(observed)):
            if len(rows) > 1:
                variance += len(rows) * observed[rows].var(ddof=1)
                degrees += len(rows) - 1
        return variance / len(observed) ** 2, max(degrees, 1)


def _members(groups: tuple[int, ...]) -> list[np.ndarray]:
    """The places of each group."""
    return [np.flatnonzero(np.equal(groups, group)) for group in sorted(set(groups))]


def average(parts: Sequence[Sampled]) -> Sampled:
    """The mean over several models, such as all encoders, draw by draw."""
    names = parts[0].observed
    return dataclasses.replace(
        parts[0],
        observed={n: np.mean([part.observed[n] for part in parts], axis=0) for n in names},
        drawn={n: np.mean([part.drawn[n] for part in parts], axis=0) for n in names},
    )


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's correction of p-values for their number; NaN stays NaN and is not counted."""
    p = np.asarray(p, np.float64)
    adjusted = np.full(len(p), np.nan)
    rows = np.flatnonzero(np.isfinite(p))
    order = rows[np.argsort(p[rows], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
