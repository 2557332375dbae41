"""Features of a frozen encoder, and linear models on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipeline.loader import FilmSource, evaluation_batches
from data_pipeline.manifest import Records
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.training import augment
from infantxray.training.sharding import DataParallel

_ITERATIONS = 100
L2 = 1e-2  # On standardised features.


def fit_linear(
    features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = L2
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


def fit_ridge(features: np.ndarray, targets: np.ndarray, l2: float = L2) -> Callable:
    """Ridge regression on standardised features, in closed form.

    Args:
      features: `[N, D]`.
      targets: `[N, T]`.
      l2: penalty, relative to the mean squared error.

    Returns:
      A function from features `[M, D]` to predictions `[M, T]`.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    offset = targets.mean(0)
    x = ((features - mean) / std).astype(np.float64)
    gram = x.T @ x / len(x) + l2 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (targets - offset) / len(x))
    return lambda other: ((other - mean) / std) @ weights + offset


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the films that could be read.

    Attributes:
      values: `[N, C]`, such as pooled last maps.
      records: of the films.
      label: int `[N]`, -1 unknown.
      rows: `[N]`, which of the films asked for they are.
    """

    values: np.ndarray
    records: Records
    label: np.ndarray
    rows: np.ndarray


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
    """Films -> `Features`.

    Args:
      config: its `batch_size` and `data.num_threads`.
      features: from images uint8 `[B, S, S, 1]` and a key to features `[B, C]`.
    """

    def __init__(self, config, features: Callable[[jax.Array, jax.Array], jax.Array]):
        self._config = config
        self._sharding = DataParallel()
        self._features = jax.jit(features)

    def __call__(self, source: FilmSource, seed: int = 0) -> Features:
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
        return Features(np.concatenate(values)[keep], records, labels, keep)
