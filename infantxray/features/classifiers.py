"""Features of a frozen encoder, and linear models on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipeline.loader import ImageSource, evaluation_batches
from data_pipeline.manifest import Records
from data_pipeline.splits import patient_keys
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.training import augment
from infantxray.training.sharding import DataParallel

_ITERATIONS = 100
_L2 = 1e-2  # On standardised features.
_PENALTIES = tuple(10.0**i for i in np.arange(-3.0, 4.5, 0.5))
_FOLDS = 5


def fit_linear(
    features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = _L2
) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, in `[0, num_classes)`.
      num_classes: K.
      l2: penalty on the weights, relative to the mean cross-entropy.

    Returns:
      A function from features `[M, D]` to probabilities `[M, K]`.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    x = jnp.asarray((features - mean) / std, jnp.float32)
    weights = _lbfgs(x, jnp.asarray(labels), num_classes, l2)

    def predict(other: np.ndarray) -> np.ndarray:
        z = jnp.asarray((other - mean) / std, jnp.float32)
        return np.asarray(jax.nn.softmax(z @ weights["kernel"] + weights["bias"][None]))

    return predict


@functools.partial(jax.jit, static_argnums=2)
def _lbfgs(x: jax.Array, labels: jax.Array, num_classes: int, l2: float):
    def loss(weights):
        logits = x @ weights["kernel"] + weights["bias"][None]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 0.5 * l2 * (weights["kernel"] ** 2).sum()

    solver = optax.lbfgs()
    weights = {"kernel": jnp.zeros((x.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, solver.init(weights)), length=_ITERATIONS)
    return weights


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, l2: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression on standardised features, in closed form.

    Args:
      features: `[N, D]`.
      targets: `[N, T]`.
      l2: penalty, relative to the mean squared error.

    Returns:
      A function from features `[M, D]` to predictions `[M, T]`.
    """
    return ridge_path(features, targets, (l2,))[0]


def fit_ridge_by_patient(
    features: np.ndarray, targets: np.ndarray, patient: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """`fit_ridge` with the penalty that errs least on patients who are left out.

    From the mean of all images to hardly a penalty, by five-fold cross-validation: how much must be
    penalised depends on how many images there are, from a dozen to thousands. Predictions stay
    within the targets' range: a feature that hardly varies among a dozen images may be far out on
    others.

    Args:
      features: `[N, D]`.
      targets: `[N, T]`.
      patient: key of each image's patient, `[N]`.

    Returns:
      A function from features `[M, D]` to predictions `[M, T]`.
    """
    keys, number = np.unique(patient, return_inverse=True)
    folds = min(_FOLDS, len(keys))
    penalty = _PENALTIES[-1]
    if folds > 1:
        fold = np.random.default_rng(0).permutation(len(keys))[number] % folds
        errors = np.zeros(len(_PENALTIES))
        for i in range(folds):
            out = fold == i
            path = ridge_path(features[~out], targets[~out], _PENALTIES)
            found = [_within(targets[~out], predict(features[out])) for predict in path]
            errors += [((answer - targets[out]) ** 2).sum() for answer in found]
        penalty = _PENALTIES[int(errors.argmin())]
    predict = fit_ridge(features, targets, penalty)
    return lambda other: _within(targets, predict(other))


def _within(targets: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.clip(values, targets.min(0), targets.max(0))


def ridge_path(
    features: np.ndarray, targets: np.ndarray, penalties: Sequence[float]
) -> list[Callable[[np.ndarray], np.ndarray]]:
    """`fit_ridge` for each of several penalties, by one eigendecomposition."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    offset = targets.mean(0)
    x = ((features - mean) / std).astype(np.float64)
    count, width = x.shape
    # (X'X/N + l2)^-1 X' = X' (XX'/N + l2)^-1: the smaller of the two is decomposed.
    few = count < width
    values, vectors = np.linalg.eigh((x @ x.T if few else x.T @ x) / count)
    y = (targets - offset) / count
    moments = vectors.T @ (y if few else x.T @ y)
    basis = x.T @ vectors if few else vectors

    def fitted(l2: float) -> Callable[[np.ndarray], np.ndarray]:
        weights = basis @ (moments / (np.maximum(values, 0.0) + l2)[:, None])
        return lambda other: ((other - mean) / std) @ weights + offset

    return [fitted(l2) for l2 in penalties]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the images that could be read.

    Attributes:
      values: `[N, C]`, such as pooled last maps.
      records: of the images.
      label: int `[N]`, -1 unknown.
      rows: `[N]`, which of the images asked for they are.
      patient: key of each image's patient, `[N]`.
    """

    values: np.ndarray
    records: Records
    label: np.ndarray
    rows: np.ndarray
    patient: np.ndarray


def pooled_map(model: DiagnosisModel, variables, changes=None) -> Callable:
    """The function from images uint8 `[B, S, S, 1]` and a key to pooled last maps `[B, C]`.

    Args:
      model: with the encoder.
      variables: its.
      changes: settings of `augment.augment`, which takes the key; None: the images as they are.
    """

    def pooled(image, key):
        x = augment.to_intensity(image)
        if changes is not None:
            x = augment.augment(x, key, changes)
        latent = model.apply(variables, augment.normalise(x), method=DiagnosisModel.latent)
        return latent.mean(axis=(1, 2)).astype(jnp.float32)

    return pooled


class Extractor:
    """Images -> `Features`.

    Args:
      config: its `batch_size`, `data.num_threads` and `data.patient_ids`.
      features: from images uint8 `[B, S, S, 1]` and a key to features `[B, C]`.
    """

    def __init__(self, config, features: Callable[[jax.Array, jax.Array], jax.Array]):
        self._config = config
        self._sharding = DataParallel()
        self._features = jax.jit(features)

    def __call__(self, source: ImageSource, seed: int = 0) -> Features:
        key = jax.random.key(seed)
        size = self._sharding.evaluation_batch_size(self._config.batch_size)
        values, masks = [], []
        batches = evaluation_batches(source, size, num_threads=self._config.data.num_threads)
        for i, batch in enumerate(batches):
            image = jax.device_put(batch["image"], self._sharding.batch)
            values.append(np.asarray(self._features(image, jax.random.fold_in(key, i))))
            masks.append(batch["mask"])
        keep = np.flatnonzero(np.concatenate(masks) > 0)
        records, labels = source.records.take(keep), source.labels[keep]
        patient = patient_keys(records, self._config.data.patient_ids)
        return Features(np.concatenate(values)[keep], records, labels, keep, patient)
