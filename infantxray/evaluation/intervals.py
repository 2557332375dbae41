"""Bootstrap intervals over patients; for studies over patients and seeds, with paired tests.

All models of a study are tested on the same images of the same patients. Two things vary: which
patients are tested, and the seed of a training run. Both are resampled jointly, patients with all
their images and the same draws for every model, so differences are paired in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from infantxray.evaluation.metrics import weighted_metrics
from infantxray.evaluation.predictions import Predictions

CONFIDENCE = 0.95  # Of every interval of this project.
_CHUNK = 250  # Bootstrap samples at a time, which bounds the memory.
_UNBOUNDED = ("age_mae_months",)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric with its uncertainty; NaN where it cannot be computed.

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


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of bootstrap values `[B]`; NaN are left out, all NaN gives NaN."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def patient_draws(num_patients: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap samples of patients, `[b, P]` at a time: how often each patient is drawn."""
    rng = np.random.default_rng(seed)
    for at in range(0, samples, _CHUNK):
        yield np.stack(
            [
                np.bincount(
                    rng.integers(num_patients, size=num_patients), minlength=num_patients
                ).astype(np.uint16)
                for _ in range(min(_CHUNK, samples - at))
            ]
        )


def bootstrap(
    predictions: Predictions, *, samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of all metrics, resampling patients with all their images.

    Images of one patient are not independent: resampling images would make the intervals too short.

    Args:
      predictions: predictions of the test set.
      samples: bootstrap samples.
      seed: seed of the resampling.

    Returns:
      Lower and upper bound of each name of `weighted_metrics`; NaN where no sample can compute it.
    """
    num_patients = len(np.unique(predictions.patient))
    parts = [
        weighted_metrics(predictions, weights)
        for weights in patient_draws(num_patients, samples, seed)
    ]
    return {
        name: percentile_interval(np.concatenate([part[name] for part in parts]))
        for name in parts[0]
    }


def mean_interval(
    values: np.ndarray, patient: np.ndarray, *, samples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` `[N]`, resampling patients (keys `[N]`)."""
    keys, group = np.unique(patient, return_inverse=True)
    total, count = np.bincount(group, values), np.bincount(group)
    draws = patient_draws(len(keys), samples, seed)
    return percentile_interval(np.concatenate([w @ total / (w @ count) for w in draws]))


class Resampling:
    """Draws of patients and seeds that all comparisons of a study share.

    Args:
      patient: key of each image's patient.
      num_seeds: training runs of each model.
      samples: bootstrap samples.
      seed: seed of the draws.
    """

    def __init__(self, patient: np.ndarray, num_seeds: int, samples: int, seed: int):
        rng = np.random.default_rng(seed)
        self._keys = np.unique(patient)
        n = len(self._keys)
        # A patient is never drawn 65,536 times: 16 bits save memory.
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

    def metrics(self, runs: Sequence[Predictions], groups: Sequence[int] = ()) -> Sampled:
        """The metrics of a model's runs, one a seed, on the test set and its draws.

        Args:
          runs: one a seed.
          groups: which of them share a stage one, `[S]`, the same numbers for all models that are
            compared. Seeds are then drawn within their group, and intervals are conditional on
            these stages one. Empty: they share nothing.
        """
        groups = tuple(groups) or (0,) * len(runs)
        if len(set(groups)) == len(runs):
            groups = (0,) * len(runs)
        here = np.isin(self._keys, runs[0].patient)
        weights = np.concatenate([np.ones((1, here.sum()), np.uint16), self.patients[:, here]])
        found = [weighted_metrics(run, weights) for run in runs]
        return Sampled(
            observed={name: np.array([f[name][0] for f in found]) for name in found[0]},
            drawn={name: np.stack([f[name][1:] for f in found]) for name in found[0]},
            seeds=self.seed_weights(groups),
            num_patients=int(here.sum()),
            groups=groups,
        )


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Metrics of one model on the test set and on resampled patients.

    Attributes:
      observed: `{name: [S]}`, on the test set.
      drawn: `{name: [S, B]}`, on resampled patients.
      seeds: `[B, S]`, weights of the seeds in each draw; None for a model without seeds or with
        one: then the interval covers patients alone.
      num_patients: tested patients.
      bounded: the values are scores from 0 to 1, or errors from 0, not differences.
      groups: group of each seed, by shared stage one, `[S]`; empty if none share one.
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
        Satterthwaite's: those of the few seeds where seeds vary most, those of the many
        patients where patients do. A percentile interval is too short for three seeds that differ.
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
        half = stdtrit(degrees, (1 + CONFIDENCE) / 2) * error
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
    values = np.asarray(p, np.float64)
    adjusted = np.full(len(values), np.nan)
    rows = np.flatnonzero(np.isfinite(values))
    order = rows[np.argsort(values[rows], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted
