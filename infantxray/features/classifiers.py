"""Classifiers and regressors on features: logistic regression, ridge regression, k-NN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infantxray.evaluation.predictions import Predictions
from infantxray.features.extraction import Features

METHODS = ("linear", "knn")

_ITERATIONS = 100
L2 = 1e-2  # On standardised features.
_PENALTIES = tuple(10.0**i for i in np.arange(-3.0, 4.5, 0.5))
_FOLDS = 5
_NEIGHBOURS = 20
_TEMPERATURE = 0.07


def probe(
    train: Features,
    test: Features,
    classes: tuple[str, ...],
    *,
    method: str = "linear",
    l2: float = L2,
    ages: bool = True,
) -> Predictions:
    """Predicts conditions and ages from features.

    Args:
      train: features with labels or ages.
      test: features to predict from.
      classes: names of the K conditions, in the order of `label`.
      method: `"linear"`, logistic regression for conditions and ridge regression for ages; or
        `"knn"`, the votes of the nearest neighbours for both.
      l2: penalty of the logistic regression.
      ages: whether to predict ages.

    Returns:
      `Predictions` of `test`. Without labels in `train` the conditions are equally likely; without
      ages the predicted ages are NaN.
    """
    known, aged = train.label >= 0, train.records.has_age & ages
    if train.findings is not None:
        known = np.isfinite(train.findings).any(1)
    count = len(classes)
    probabilities = np.full((len(test), count), 1 / max(count, 1))
    months = np.full(len(test), np.nan)
    if method == "knn":
        if count and known.any():
            rows, weights = nearest(train.values[known], test.values)
            if train.findings is None:
                votes = np.eye(count)[train.label[known][rows]]  # [M, k, K]
                probabilities = (weights[:, :, None] * votes).sum(1)
            else:
                probabilities = _vote(train.findings[known][rows], weights)
        if aged.any():
            rows, weights = nearest(train.values[aged], test.values)
            months = (weights * train.records.age_months[aged][rows]).sum(1)
    else:
        if count and known.any():
            truth = train.label if train.findings is None else train.findings
            predict = fit_linear(train.values[known], truth[known], count, l2)
            probabilities = predict(test.values)
        if aged.any():
            target = train.records.age_months[aged][:, None].astype(np.float64)
            patients = train.records.patient[aged]
            predict = fit_ridge_by_patient(train.values[aged], target, patients)
            months = predict(test.values)[:, 0]
    return Predictions(
        classes=classes,
        probabilities=probabilities,
        label=test.label,
        age_months=test.records.age_months,
        age_predicted_months=months,
        patient=test.records.patient,
        findings=test.findings,
    )


def _vote(votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probabilities `[M, K]` by the findings `[M, k, K]` of neighbours with weights `[M, k]`.

    Neighbours in which a finding is unknown do not vote on it; without any vote it is 0.5.
    """
    weight = weights[:, :, None] * np.isfinite(votes)
    total = weight.sum(1)
    found = (weight * np.nan_to_num(votes)).sum(1)
    return np.where(total > 0, found / np.where(total > 0, total, 1), 0.5)


def nearest(features: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neighbours by the cosine of standardised features.

    Args:
      features: `[N, D]`, among which neighbours are sought.
      other: `[M, D]`.

    Returns:
      Rows of `features`, `[M, k]`, and the weights of their votes, which sum to 1 (Wu et al.,
      CVPR 2018: exp(cosine / 0.07), k at most 20).
    """
    from sklearn.neighbors import NearestNeighbors  # Takes most of a second.

    mean, std = features.mean(0), features.std(0) + 1e-6
    neighbours = NearestNeighbors(
        n_neighbors=min(_NEIGHBOURS, len(features)), metric="cosine", algorithm="brute"
    ).fit((features - mean) / std)
    distance, rows = neighbours.kneighbors((other - mean) / std)
    weights = np.exp(-distance / _TEMPERATURE)
    return rows, weights / weights.sum(1, keepdims=True)


def fit_linear(
    features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float = L2
) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS; or one regression a finding.

    Args:
      features: `[N, D]`.
      labels: int `[N]`, in `[0, num_classes)`; or findings `[N, K]`, 1 present, 0 absent, NaN
        unknown: each finding then has a logistic regression on the images in which it is known.
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
        squash = jax.nn.softmax if labels.ndim == 1 else jax.nn.sigmoid
        return np.asarray(squash(z @ weights["kernel"] + weights["bias"][None]))

    return predict


@functools.partial(jax.jit, static_argnums=2)
def _lbfgs(x: jax.Array, labels: jax.Array, num_classes: int, l2: float) -> Any:
    def loss(weights):
        logits = x @ weights["kernel"] + weights["bias"][None]
        if labels.ndim == 1:
            fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        else:
            known = jnp.isfinite(labels)
            each = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, 0.0))
            fit = ((each * known).sum(0) / jnp.maximum(known.sum(0), 1)).sum()
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
    """`fit_ridge` with the penalty chosen by five-fold cross-validation over patients.

    The best penalty depends on the number of images, from a dozen to thousands. Predictions are
    clipped to the targets' range: a feature that hardly varies among a dozen images may lie far
    outside on others.

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
