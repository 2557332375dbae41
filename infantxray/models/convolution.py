"""2-D convolution that is also fast on CPUs.

XLA's own convolutions are what accelerators want, but on CPUs their gradients
fall back on naive loops. On the CPU backend this module spells the same sums as
matrix products, which XLA does run fast. Parameters and results are the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [k, k, C / groups, D], zero-padded on every side."""
    size = kernel.shape[0]
    if jax.default_backend() == "cpu" and groups == 1:
        if size == 1:
            return x[:, ::strides, ::strides] @ kernel[0, 0]
        if max(x.shape[1:3]) <= 8:
            return _convolve_patches(x, kernel, strides, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def _convolve_patches(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """The patches under the kernel, side by side, times the kernel as one matrix."""
    size, _, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // strides + 1 for n in x.shape[1:3])
    taps = [
        x[
            :,
            row : row + (height - 1) * strides + 1 : strides,
            column : column + (width - 1) * strides + 1 : strides,
        ]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(size * size * channels, features)
