"""Confidence intervals for metrics of images that share patients.

Images of one patient are not independent. Proportions get Wilson's interval with the effective
number of images. Other metrics are linearised: each image has an influence on the metric, the
influences of a patient's images are summed, and the sums give the variance (the infinitesimal
jackknife). This needs no resampling, and the difference of two metrics has the difference of their
influences, whether two models share the images or two groups share the patients.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

from infantxray.evaluation.predictions import Predictions

_NAN = float("nan")
# Below this, some intervals cover less than 93 % of the true values, and below the second number
# some cover so few that they are not given: benchmarks/results/diagnostic_intervals.md.
FEW_PATIENTS = 15
TOO_FEW_PATIENTS = 5


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its 95 % interval over patients.

    Attributes:
      value: NaN where it cannot be computed.
      low: of the interval; NaN where there is none.
      high: likewise; infinite where a ratio has no upper limit.
      standard_error: on the scale of `value`; NaN where the interval does not need one.
      p: two-sided, of the test that the true value is zero; for differences.
      note: the reason why there is no value or interval, or why the interval may be too short.
    """

    value: float
    low: float = _NAN
    high: float = _NAN
    standard_error: float = _NAN
    p: float = _NAN
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """A binary outcome and its score: one class against the rest, or one finding of several.

    Attributes:
      positive: bool `[N]`, the outcome.
      score: float64 `[N]`, higher for positive images.
      patient: int `[N]`, from 0 to `num_patients - 1`.
      num_patients: length of an array by patient; some may have no image here.
    """

    positive: np.ndarray
    score: np.ndarray
    patient: np.ndarray
    num_patients: int

    @classmethod
    def of(
        cls,
        positive: np.ndarray,
        score: np.ndarray,
        patient: np.ndarray | None = None,
        known: np.ndarray | None = None,
    ) -> Scores:
        """Scores of the images whose outcome is known.

        Args:
          positive: `[N]`, true or 1 where the finding is present.
          score: `[N]`.
          patient: one key a person, `[N]`; None: every image is a patient.
          known: bool `[N]`, false where the outcome is unknown; None: all are known.

        Raises:
          ValueError: the shapes differ, or a score or outcome of a known image is not usable.
        """
        positive, score = np.asarray(positive), np.asarray(score, np.float64)
        if positive.ndim != 1 or score.shape != positive.shape:
            raise ValueError(f"outcome {positive.shape} and score {score.shape} differ in shape")
        keys = np.arange(len(score)) if patient is None else np.asarray(patient)
        if keys.shape != score.shape:
            raise ValueError(f"patient {keys.shape} and score {score.shape} differ in shape")
        rows = np.ones(len(score), bool) if known is None else np.asarray(known, bool)
        positive, score = positive[rows], score[rows]
        if not np.isfinite(score).all() or not np.isin(positive, (0, 1)).all():
            raise ValueError("known images need a finite score and an outcome of 0 or 1")
        index = patient_index(keys[rows])
        return cls(positive.astype(bool), score, index, int(index.max(initial=-1)) + 1)

    @classmethod
    def of_class(cls, predictions: Predictions, k: int) -> Scores:
        """Class `k` against the rest, or finding `k`, over the images in which it is known."""
        known, positive = predictions.outcome(k)
        score = predictions.probabilities[:, k]
        return cls.of(positive, score, predictions.patient, known=known)

    def __len__(self) -> int:
        return len(self.score)

    def sides(self) -> tuple[int, int]:
        """How many patients have a positive image, and how many a negative one."""
        return (
            count_patients(self.patient[self.positive]),
            count_patients(self.patient[~self.positive]),
        )

    def missing(self) -> str:
        """The reason why a metric that needs both outcomes cannot be computed; empty if it can."""
        if not len(self):
            return "no image of known outcome"
        if self.positive.all():
            return "no negative image"
        return "" if self.positive.any() else "no positive image"

    def note(self) -> str:
        """The note for an interval that rests on few patients."""
        return few(min(self.sides()), "patients of the rarer outcome")


def patient_index(patient: np.ndarray) -> np.ndarray:
    """Patients as numbers from 0, `[N]`; numbers that are already small are returned as they are.

    Every function here takes keys of any kind, and is faster for numbers.
    """
    patient = np.asarray(patient)
    small = patient.dtype.kind in "iu" and len(patient) > 0
    if small and patient.min() >= 0 and patient.max() < len(patient):
        return patient
    return np.unique(patient, return_inverse=True)[1]


def count_patients(patient: np.ndarray) -> int:
    """How many patients N images have; `patient` is numbers of `patient_index`."""
    return int(np.count_nonzero(np.bincount(patient)))


def few(count: int, what: str, enough: int = FEW_PATIENTS) -> str:
    """A note if an interval rests on fewer than `enough` patients, otherwise empty."""
    if count >= enough:
        return ""
    return f"{count} {what}: the interval may cover the true value in less than 95 % of samples"


@dataclasses.dataclass(frozen=True)
class Linearised:
    """A metric and what each image contributes to its error.

    Attributes:
      value: of the metric.
      influence: `[N]`; the sums over patients have a squared sum that estimates the variance.
      note: of the metric.
      share: the metric with Wilson's interval, if it is a share of images.
    """

    value: float
    influence: np.ndarray
    note: str = ""
    share: Metric | None = None

    @classmethod
    def mean(cls, values: np.ndarray, patient: np.ndarray, note: str = "") -> Linearised:
        """The mean over images, `[N]`; of bool values, a share."""
        value, groups = float(values.mean()), count_patients(patient)
        factor = np.sqrt(groups / max(groups - 1, 1))
        note = note or few(groups, "patients")
        share = proportion(values, patient) if values.dtype == bool else None
        return cls(value, (values - value) / len(values) * factor, note, share)

    def __add__(self, other: Linearised) -> Linearised:
        note = self.note or other.note
        return Linearised(self.value + other.value, self.influence + other.influence, note)

    def __sub__(self, other: Linearised) -> Linearised:
        note = self.note or other.note
        return Linearised(self.value - other.value, self.influence - other.influence, note)

    def embed(self, rows: np.ndarray) -> Linearised:
        """The metric of a subgroup as one of all images; `rows` is bool `[M]` with N true."""
        influence = np.zeros(len(rows))
        influence[rows] = self.influence
        return dataclasses.replace(self, influence=influence)

    def metric(self, patient: np.ndarray, bounds: tuple[float, float] | None = None) -> Metric:
        """The metric with a t interval over patients; a share has Wilson's.

        Args:
          patient: int `[N]`.
          bounds: as `patient_interval`.
        """
        if self.share:
            return dataclasses.replace(self.share, note=self.note)
        sums = np.bincount(patient, self.influence)
        return patient_interval(self.value, sums, count_patients(patient), bounds, self.note)


def patient_interval(
    value: float,
    sums: np.ndarray,
    num_patients: int,
    bounds: tuple[float, float] | None = None,
    note: str = "",
) -> Metric:
    """A metric with a t interval from the influences of patients.

    The degrees of freedom are Satterthwaite's, 2 V^2 / var(V) for the estimated variance V, with
    the fourth moment of the influences: few where few patients carry the error.

    Args:
      value: of the metric.
      sums: influence of each patient, `[P]`; the squares add up to the variance.
      num_patients: those that have images.
      bounds: between which the metric lies; the interval is then symmetric on the logit scale.
        None: on the scale of the metric, with a test that the true value is zero.
      note: note to keep.
    """
    square = sums**2
    variance = float(square.sum())
    if num_patients < 2:
        return Metric(value, note="images of one patient alone: no interval")
    if variance <= 1e-24:
        if bounds is None and abs(value) < 1e-12:
            return Metric(value, value, value, 0.0, 1.0, note)
        return Metric(value, note="no variation between patients: no interval")
    spread = float((square**2).sum()) - variance**2 / num_patients
    degrees = num_patients - 1.0
    if spread > 0:
        degrees = min(max(2 * variance**2 / spread, 1.0), degrees)
    return t_interval(value, np.sqrt(variance), degrees, bounds, note)


def t_interval(
    value: float,
    error: float,
    degrees: float,
    bounds: tuple[float, float] | None = None,
    note: str = "",
) -> Metric:
    """A t interval, on the logit scale between `bounds` where these are given."""
    error = float(error)
    quantile = float(stdtrit(degrees, 0.975)) if np.isfinite(degrees) else float(ndtri(0.975))
    if bounds is None:
        tail = stdtr(degrees, -abs(value) / error) if np.isfinite(degrees) else _NAN
        half = quantile * error
        return Metric(value, value - half, value + half, error, float(2 * tail), note)
    low, width = bounds[0], bounds[1] - bounds[0]
    share = (value - low) / width
    if not 0 < share < 1:
        return Metric(value, note="at the limit of its range: no interval")
    half = quantile * error / width / (share * (1 - share))
    ends = low + width * expit(logit(share) + np.array([-half, half]))
    return Metric(value, float(ends[0]), float(ends[1]), error, note=note)


def wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval (J Am Stat Assoc 1927;22:209) of a share of `count` images."""
    z = quantile**2 / count
    middle = (share + z / 2) / (1 + z)
    half = quantile / (1 + z) * np.sqrt(share * (1 - share) / count + z / (4 * count))
    # At a share of 0 or 1 the limit is exact.
    return (
        0.0 if share == 0 else float(middle - half),
        1.0 if share == 1 else float(middle + half),
    )


def proportion(hits: np.ndarray, patient: np.ndarray, what: str = "image") -> Metric:
    """A share of images with Wilson's interval over patients.

    Where patients have several images, the number of images is divided by the design effect, the
    ratio of the variance between patients to that of independent images, and the quantile is
    Student's (Korn and Graubard, Surv Methodol 1998;24:193; Dean and Pagano, J Surv Stat Methodol
    2015;3:484).

    Args:
      hits: bool `[N]`.
      patient: one key a person, `[N]`.
      what: to name in the note where N is 0.
    """
    if not len(hits):
        return Metric(_NAN, note=f"no {what}")
    index = patient_index(patient)
    return patient_share(np.bincount(index, hits), np.bincount(index))


def inner(first: np.ndarray, second: np.ndarray) -> float:
    """Inner product without BLAS, whose threads wait for each other on a busy machine."""
    return float(np.einsum("p,p->", first.astype(np.float64), second))


def patient_share(hits: np.ndarray, sizes: np.ndarray) -> Metric:
    """As `proportion`, from the hits and images of each patient, `[P]`."""
    n, groups, quantile = int(sizes.sum()), int(np.count_nonzero(sizes)), float(ndtri(0.975))
    share, count = float(hits.sum()) / n, float(n)
    if groups < n:
        # Kish's effective number: patients whose images all agree.
        count = n**2 / inner(sizes, sizes)
        residual = hits - share * sizes
        variance = groups / max(groups - 1, 1) * inner(residual, residual) / n**2
        if variance > 1e-24 and groups > 1 and 0 < share < 1:
            count = min(share * (1 - share) / variance, float(n))
            quantile = float(stdtrit(groups - 1, 0.975))
    low, high = wilson(share, count, quantile)
    error = np.sqrt(share * (1 - share) / count)
    return Metric(share, low, high, float(error), note=few(groups, "patients"))


def ratio(above: Metric, below: Metric, correlation: float = 0.0) -> Metric:
    """A ratio of two shares, with an interval from theirs (MOVER-R).

    Donner and Zou, Stat Methods Med Res 2012;21:347. No upper limit where the lower limit of the
    denominator is 0.

    Args:
      above: numerator.
      below: denominator.
      correlation: of the two estimates.
    """
    a, b = above.value, below.value
    note = above.note or below.note
    if not np.isfinite([a, b, above.low, below.low]).all() or (a == 0 and b == 0):
        return Metric(_NAN, note=note or "0 divided by 0")
    product = max(a * b - correlation * (a - above.low) * (below.high - b), 0.0)
    ends = above.low * (2 * a - above.low), below.high * (2 * b - below.high)
    under = product + np.sqrt(max(product**2 - ends[0] * ends[1], 0.0))
    low = ends[0] / under if under > 0 else 0.0
    product = max(a * b - correlation * (above.high - a) * (b - below.low), 0.0)
    ends = above.high * (2 * a - above.high), below.low * (2 * b - below.low)
    over = product + np.sqrt(max(product**2 - ends[0] * ends[1], 0.0))
    high = over / ends[1] if ends[1] > 0 else float("inf")
    return Metric(a / b if b else float("inf"), float(low), float(high), note=note)


def difference(first: Metric, second: Metric, factor: float, correlation: float) -> Metric:
    """`first - factor * second` of two shares, with an interval from theirs (MOVER).

    Zou and Donner, Stat Med 2008;27:1693.
    """
    value = first.value - factor * second.value
    down = first.value - first.low, factor * (second.high - second.value)
    up = first.high - first.value, factor * (second.value - second.low)
    ends = [
        value + sign * np.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))
        for sign, (a, b) in ((-1, down), (1, up))
    ]
    return Metric(value, float(ends[0]), float(ends[1]), note=first.note or second.note)
