"""Convolution and pooling that are also fast on CPUs.

XLA's own convolutions are what accelerators want. On CPUs several of them, and most of
their gradients, fall back on plain loops that are ten to a hundred times slower than
the machine can do. The `_products` forms here spell the same sums as matrix products
and shifted additions, which XLA runs fast there. Which form is used is decided when a
function is traced, by `jax.default_backend()`; parameters and, within rounding, results
and gradients are the same. The CPU's forms have reverse-mode derivatives only.

Maps are [B, H, W, C] and kernels [k, k, C / groups, D]; padding is by zeros, equal on
all four sides.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

# XLA's convolution runs in plain loops where the output is smaller than this, the kernel's side.
BLIND_SPOT = 3
# Up to this side the patches of a grouped convolution fit the caches.
SMALL_MAP = 8
# Products narrower than this waste vector lanes: groups are joined until they are as wide.
MIN_PATCH_WIDTH, MIN_BLOCK_WIDTH = 16, 32
MAX_BLOCKS = 4  # dense convolutions that a grouped one is split into; more compile too slowly


def convolve(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [k, k, C / groups, D] to [B, H', W', D]."""
    form = convolve_products if jax.default_backend() == "cpu" else convolve_lax
    return form(x, kernel, strides=strides, padding=padding, groups=groups)


def convolve_lax(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """`convolve` as XLA's own operation."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def convolve_products(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """`convolve` as whatever runs fastest on CPUs."""
    size, features = kernel.shape[0], kernel.shape[-1]
    channels = x.shape[-1]
    if groups == channels == features:
        return _convolve_depthwise(x, kernel, strides, padding)
    if size == 1 and padding == 0:
        x = x[:, ::strides, ::strides]
        products = [
            _matmul(part, weights[0, 0])
            for part, weights in zip(
                jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
            )
        ]
        return products[0] if groups == 1 else jnp.concatenate(products, axis=-1)
    output_side = (min(x.shape[1:3]) + 2 * padding - size) // strides + 1
    if groups == 1 and output_side < BLIND_SPOT:
        patches = jnp.concatenate(_taps(x, size, strides, padding), axis=-1)
        return _matmul(patches, kernel.reshape(-1, features))
    if groups > 1 and max(x.shape[1:3]) <= SMALL_MAP:
        kernel, groups = _join_groups(kernel, groups, MIN_PATCH_WIDTH)
        return _convolve_grouped_patches(x, kernel, strides, padding, groups)
    kernel, groups = _join_groups(kernel, groups, max(MIN_BLOCK_WIDTH, channels // MAX_BLOCKS))
    blocks = [
        convolve_lax(part, weights, strides=strides, padding=padding)
        for part, weights in zip(
            jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
        )
    ]
    return blocks[0] if groups == 1 else jnp.concatenate(blocks, axis=-1)


def max_pool(x: jax.Array, *, size: int, strides: int, padding: int = 0) -> jax.Array:
    """The maximum over windows of [B, H, W, C]; padding never wins.

    On CPUs a gradient is shared out where several pixels of a window are the largest.
    """
    if jax.default_backend() != "cpu":
        return nn.max_pool(x, (size, size), (strides, strides), [(padding, padding)] * 2)
    for axis in (1, 2):  # the maximum over rows, then over columns: 2 k steps, not k * k
        x = reduce(jnp.maximum, _shifts(x, axis, size, strides, padding, -jnp.inf))
    return x


def average_pool(x: jax.Array, *, size: int, strides: int, padding: int = 0) -> jax.Array:
    """The mean over windows of [B, H, W, C]; padding counts as zeros."""
    if jax.default_backend() != "cpu":
        return nn.avg_pool(x, (size, size), (strides, strides), [(padding, padding)] * 2)
    for axis in (1, 2):
        x = sum(_shifts(x, axis, size, strides, padding, 0))
    return x / size**2


def _shifts(
    x: jax.Array, axis: int, size: int, strides: int, padding: int, fill: float
) -> list[jax.Array]:
    """For each place in a window along an axis, what it sees at each of the window's stops."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = (padding, padding)
    x = jnp.pad(x, margins, constant_values=fill)
    last = (x.shape[axis] - size) // strides * strides
    return [
        lax.slice_in_dim(x, place, place + last + 1, strides, axis=axis) for place in range(size)
    ]


def _taps(x: jax.Array, size: int, strides: int, padding: int) -> list[jax.Array]:
    """For each of the kernel's size * size places, row by row, what it sees at each stop."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return [
        tap
        for row in _shifts(x, 1, size, strides, 0, 0)
        for tap in _shifts(row, 2, size, strides, 0, 0)
    ]


def _convolve_depthwise(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """Every channel with its own k x k weights: shift, multiply, add."""
    size, features = kernel.shape[0], kernel.shape[-1]
    weights = kernel.reshape(size * size, 1, 1, 1, features)
    taps = _taps(x, size, strides, padding)
    return sum(tap * weight for tap, weight in zip(taps, weights, strict=True))


def _convolve_grouped_patches(
    x: jax.Array, kernel: jax.Array, strides: int, padding: int, groups: int
) -> jax.Array:
    """The patches under the kernel times the kernel, for each group."""
    size, _, width, features = kernel.shape
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, groups, width)
    x = jnp.moveaxis(x, 3, 0).reshape(groups * batch, rows, columns, width)
    patches = jnp.concatenate(_taps(x, size, strides, padding), axis=-1)
    _, rows, columns, depth = patches.shape
    y = lax.dot_general(
        patches.reshape(groups, batch * rows * columns, depth),
        jnp.moveaxis(kernel.reshape(depth, groups, features // groups), 1, 0),
        (((2,), (1,)), ((0,), (0,))),
    )  # [groups, B H W, D / groups]
    return jnp.moveaxis(y, 0, 1).reshape(batch, rows, columns, features)


def _join_groups(kernel: jax.Array, groups: int, min_width: int) -> tuple[jax.Array, int]:
    """The same convolution in fewer groups, of min_width channels or more, padded with zeros."""
    width, features = kernel.shape[2:]
    joined = next(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and n * width >= min(min_width, groups * width)
    )
    if joined == 1:
        return kernel, groups
    source = np.arange(joined * width) // width  # of an input channel: its group within the block
    target = np.arange(features) // (features // groups) % joined
    own = jnp.asarray((source[:, None] == target)[None, None], kernel.dtype)
    return jnp.tile(kernel, (1, 1, joined, 1)) * own, groups // joined


@jax.custom_vjp
def _matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., C] times weights [C, D].

    Its own derivative, because that of `@` with respect to the weights copies x and the
    gradient into transposed order first, which takes longer than the product.
    """
    return x @ weights


def _matmul_forward(x, weights):
    return x @ weights, (x, weights)


def _matmul_backward(residuals, gradient):
    x, weights = residuals
    outer = tuple(range(x.ndim - 1))
    return gradient @ weights.T, lax.dot_general(x, gradient, ((outer, outer), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)
