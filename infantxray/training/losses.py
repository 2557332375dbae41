"""Losses, one value an example. The training step applies masks and means."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Equation 1: mean absolute difference of each image.

    Args:
      prediction: reconstructions, `[B, H, W, C]`.
      target: what they should be, of the same shape.

    Returns:
      `[B]`, in the units of the images.
    """
    _check_shapes(prediction.shape, target.shape)
    return jnp.abs(prediction - target).mean(axis=(1, 2, 3))


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Equation 2: softmax cross-entropy.

    Args:
      logits: `[B, K]`.
      label: int `[B]`; where it is negative (unknown) the value is meaningless and finite, to be
        masked by the caller.

    Returns:
      `[B]`, in nats.
    """
    _check_shapes(logits.shape[:-1], label.shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy of each of K findings.

    Args:
      logits: `[B, K]`.
      target: probabilities, `[B, K]`.

    Returns:
      `[B, K]`, in nats.
    """
    _check_shapes(logits.shape, target.shape)
    return optax.sigmoid_binary_cross_entropy(logits, target)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Equation 3: squared error of the standardised age.

    Args:
      prediction: `[B]`.
      target: `[B]`; where it is NaN (unknown) the value is 0, with zero gradient.

    Returns:
      `[B]`, in squared standard deviations of the training ages.
    """
    _check_shapes(prediction.shape, target.shape)
    # The NaN is replaced before the subtraction: NaN times a zero mask would still be NaN.
    known = jnp.isfinite(target)
    return jnp.where(known, prediction - jnp.where(known, target, 0.0), 0.0) ** 2


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy with a distribution over the classes, such as a teacher's answer.

    Args:
      logits: `[B, K]`.
      target: probabilities, `[B, K]`.

    Returns:
      `[B]`, in nats.
    """
    _check_shapes(logits.shape, target.shape)
    return optax.softmax_cross_entropy(logits, target)


def disagreement(logits: jax.Array, other: jax.Array, multi_label: bool = False) -> jax.Array:
    """Squared difference of the probabilities in two views (Laine and Aila, ICLR 2017).

    Args:
      logits: of the first view, `[B, K]`.
      other: of the second view, `[B, K]`.
      multi_label: K sigmoids instead of one softmax.

    Returns:
      `[B]`, sums over the K classes.
    """
    _check_shapes(logits.shape, other.shape)
    squash = jax.nn.sigmoid if multi_label else jax.nn.softmax
    return ((squash(logits) - squash(other)) ** 2).sum(-1)


def age_distribution(
    logits: jax.Array, prediction: jax.Array, target: jax.Array, bins: jax.Array
) -> jax.Array:
    """Distribution regression of the age, with the loss of DLDL-v2.

    The cross-entropy with a normal distribution around the true age, one bin wide, plus the
    absolute error of the mean. Gao et al., IJCAI 2018.

    Args:
      logits: over the bins, `[B, N]`.
      prediction: mean of that distribution, `[B]`.
      target: standardised age, `[B]`; where it is NaN (unknown) the value is 0, with zero gradient.
      bins: standardised ages, evenly spaced, `[N]`.

    Returns:
      `[B]`.
    """
    _check_shapes(prediction.shape, target.shape)
    _check_shapes(logits.shape[1:], bins.shape)
    known = jnp.isfinite(target)
    age = jnp.where(known, target, 0.0)
    width = bins[1] - bins[0]
    distribution = jax.nn.softmax(-(((bins[None, :] - age[:, None]) / width) ** 2) / 2)
    # A shift of the loss: it is zero where the distribution is met exactly.
    entropy = optax.softmax_cross_entropy(jnp.log(distribution + 1e-12), distribution)
    divergence = optax.softmax_cross_entropy(logits, distribution) - entropy
    return jnp.where(known, divergence + jnp.abs(prediction - age), 0.0)


def weigh_by_uncertainty(
    terms: dict[str, jax.Array], log_variance: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Losses of several tasks, weighted by the learned noise of each task.

    `exp(-s) L + s / 2` for the cross-entropy, and with `exp(-s) / 2` for a regression, where `s`
    is the logarithm of the variance. Kendall, Gal and Cipolla, CVPR 2018, equations 5 and 10.

    Args:
      terms: loss of each example in each task, `{name: [B]}`; the cross-entropy by that name.
      log_variance: the learned `s` of each task, `{name: []}`.

    Returns:
      `{name: [B]}`, to be added up.
    """
    weight = uncertainty_weights(log_variance)
    return {name: weight[name] * value + 0.5 * log_variance[name] for name, value in terms.items()}


def uncertainty_weights(log_variance: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What `weigh_by_uncertainty` multiplies the loss of each task by."""
    return {
        name: jnp.exp(-s) * (1.0 if name == "cross_entropy" else 0.5)
        for name, s in log_variance.items()
    }


def _check_shapes(prediction: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raises ValueError where broadcasting would hide a forgotten axis."""
    if prediction != target:
        raise ValueError(f"Shape mismatch: got prediction {prediction} and target {target}.")
