"""Out-of-distribution detection: whether an image looks like the training data.

Distances in the features of the encoder, fitted on training images, with a threshold on validation
images: Mahalanobis distance with a shrunk covariance (Lee et al., NeurIPS 2018; Ledoit and Wolf, J
Multivar Anal 2004;88:365), and distance to the k-th nearest training image on the unit sphere (Sun
et al., ICML 2022). The reconstruction error of an autoencoder may be added as another score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

_CHUNK = 2048
_COVARIANCE_IMAGES = 20_000
_EXACT = 1e-12


@dataclasses.dataclass(frozen=True)
class OutlierDetector:
    """A fitted detector of unusual images; `arrays` makes it storable by `numpy.savez`.

    Attributes:
      mean: of the training features, float32 `[C]`.
      whitening: inverse of the Cholesky factor of their covariance, float32 `[C, C]`.
      neighbours: training features of unit length, float32 `[M, C]`.
      k: the neighbour whose distance counts.
      names: names of the scores, in the order of the columns below; the last is `combined`.
      centre: median of each score on validation images, `[S - 1]`.
      spread: 95th percentile above that median, `[S - 1]`.
      thresholds: quantiles of the scores on validation images, `[S]`.
    """

    mean: np.ndarray
    whitening: np.ndarray
    neighbours: np.ndarray
    k: int
    names: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    thresholds: np.ndarray

    def distances(
        self, features: np.ndarray, extra: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Scores of images, higher for unusual ones: `{name: [N]}`.

        `combined` is the mean of the scores, each less its validation median and divided by its
        validation spread.

        Args:
          features: `[N, C]`.
          extra: further scores `{name: [N]}`, those given to `fit_detector`.

        Raises:
          ValueError: the features have another width, or the extra scores other names.
        """
        found = _raw(self, features) | {k: np.asarray(v) for k, v in (extra or {}).items()}
        if tuple(found) != self.names[:-1]:
            raise ValueError(f"scores {list(found)} given, {list(self.names[:-1])} fitted")
        columns = np.stack(list(found.values()), 1)
        return found | {"combined": ((columns - self.centre) / self.spread).mean(1)}

    def unusual(
        self, features: np.ndarray, extra: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Whether the combined score is above its threshold, bool `[N]`."""
        return np.asarray(self.distances(features, extra)["combined"] > self.thresholds[-1])

    def arrays(self) -> dict[str, np.ndarray]:
        """For `numpy.savez`."""
        fields = dataclasses.fields(self)
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> OutlierDetector:
        """From `arrays`, or what `numpy.load` makes of them."""
        values: dict[str, Any] = {f.name: arrays[f.name] for f in dataclasses.fields(cls)}
        names = tuple(str(name) for name in values["names"])
        return cls(**values | {"k": int(values["k"]), "names": names})


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, _EXACT))


def _raw(detector: OutlierDetector, features: np.ndarray) -> dict[str, np.ndarray]:
    if features.ndim != 2 or features.shape[1] != len(detector.mean):
        raise ValueError(f"features {features.shape}, fitted on [N, {len(detector.mean)}]")
    mahalanobis, nearest = np.empty(len(features)), np.empty(len(features))
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = features[rows].astype(np.float32)
        mahalanobis[rows] = np.linalg.norm((part - detector.mean) @ detector.whitening.T, axis=1)
        near = _unit(part) @ detector.neighbours.T
        kth = near.shape[1] - detector.k
        cosine = np.partition(near, kth, axis=1)[:, kth]
        nearest[rows] = np.sqrt(np.clip(2 - 2 * cosine, 0, None))
    return {"mahalanobis": mahalanobis, "knn": nearest}


def fit_detector(
    training: np.ndarray,
    validation: np.ndarray,
    *,
    k: int = 10,
    quantile: float = 0.99,
    max_neighbours: int = 2000,
    extra: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> OutlierDetector:
    """A detector from features of training and validation images.

    Args:
      training: `[N, C]`, at least 2 images.
      validation: `[M, C]`, of other patients.
      k: the neighbour whose distance counts; fewer where training images are fewer.
      quantile: share of validation images that are not called unusual.
      max_neighbours: training images that are kept, drawn at random; they are stored.
      extra: further scores of the validation images, `{name: [M]}`, such as reconstruction errors.
      seed: seed of the draws.

    Raises:
      ValueError: too few images, or a quantile that is not within (0, 1).
    """
    from sklearn.covariance import ledoit_wolf  # Takes most of a second.

    if len(training) < 2 or not len(validation):
        raise ValueError(f"{len(training)} training and {len(validation)} validation images")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be within (0, 1), got {quantile}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(training))
    sample = training[order[:_COVARIANCE_IMAGES]].astype(np.float64)
    mean = sample.mean(0)
    covariance = ledoit_wolf(sample - mean, assume_centered=True)[0]
    # Constant features have no variance: a floor keeps the factor finite.
    floor = _EXACT + 1e-6 * float(np.trace(covariance)) / len(mean)
    factor = np.linalg.cholesky(covariance + floor * np.eye(len(mean)))
    whitening = solve_triangular(factor, np.eye(len(mean)), lower=True)
    kept = _unit(training[order[:max_neighbours]])
    names = ("mahalanobis", "knn", *(extra or {}), "combined")
    ones = np.ones(len(names) - 1)
    draft = OutlierDetector(
        mean.astype(np.float32),
        whitening.astype(np.float32),
        kept,
        min(k, len(kept)),
        names,
        0 * ones,
        ones,
        np.ones(len(names)),
    )
    scores = draft.distances(validation, extra)
    columns = np.stack([scores[name] for name in names[:-1]], 1)
    centre = np.median(columns, axis=0)
    spread = np.maximum(np.quantile(columns, 0.95, axis=0) - centre, _EXACT)
    draft = dataclasses.replace(draft, centre=centre, spread=spread)
    combined = ((columns - centre) / spread).mean(1)
    thresholds = np.quantile(np.column_stack([columns, combined]), quantile, axis=0)
    return dataclasses.replace(draft, thresholds=thresholds)
