"""Two random views of each image, for objectives that bring them together."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from infantxray.stage_one.objectives.base import ObjectiveSettings
from infantxray.training.augment import augment, example_keys


def two_views(image: jax.Array, key: jax.Array, settings: ObjectiveSettings) -> jax.Array:
    """Two independent variations of each image: `augment`, then blur.

    Args:
      image: intensities in [0, 1], `[B, H, W, 1]`.
      key: one key for the batch.
      settings: its `views` and `blur`.

    Returns:
      `[B, 2, H, W, 1]`, in [0, 1].
    """
    views = []
    for view_key in jax.random.split(key):
        augment_key, blur_key = jax.random.split(view_key)
        view = augment(image, augment_key, settings.views)
        if settings.blur:
            view = blur(view, blur_key, settings.blur * image.shape[1])
        views.append(view)
    return jnp.stack(views, axis=1)


def blur(image: jax.Array, key: jax.Array, largest: float) -> jax.Array:
    """Gaussian blur of each image `[B, H, W, 1]`, of 0 to `largest` pixels' standard deviation."""
    keys = example_keys(key, image.shape[0])
    sigma = largest * jax.vmap(jax.random.uniform)(keys) + 1e-3
    radius = math.ceil(3 * largest)
    offset = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (offset[:, None] / sigma[None]) ** 2)  # [2 radius + 1, B]
    weights = (weights / weights.sum(axis=0, keepdims=True))[..., None, None, None]
    for axis in (1, 2):
        margins = [(0, 0)] * 4
        margins[axis] = (radius, radius)
        padded = jnp.pad(image, margins, mode="edge")
        side = image.shape[axis]
        image = sum(
            weight * jax.lax.slice_in_dim(padded, place, place + side, axis=axis)
            for place, weight in enumerate(weights)
        )
    return image
