"""Losses of the paper, one value an example: masks and means are applied once, in the loop."""

from __future__ import annotations

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


def _check_shapes(prediction: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Broadcasting would turn a forgotten axis into a wrong loss without a word."""
    if prediction != target:
        raise ValueError(f"Shape mismatch: got prediction {prediction} and target {target}.")
