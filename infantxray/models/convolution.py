"""Convolution and pooling in the form that is fast on the backend.

XLA's convolutions are made for accelerators. On CPUs several of them, and most of their gradients,
run in plain loops that are ten to a hundred times slower than the machine can do;
`convolve_products` writes the same sums as matrix products and shifted additions. On GPUs grouped
convolutions and convolutions of one channel are slow; they have forms as dense or batched products
and on 2x2 blocks of pixels. `forms.Forms` lists the choices and each backend's defaults. The CPU's
forms have reverse-mode derivatives only.

Maps are [B, H, W, C] and kernels [k, k, C / groups, D]; padding is by zeros, equal on
all four sides.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from infantxray.models.forms import current_forms

# XLA's convolution runs in plain loops where the output is smaller than this, the kernel's side.
BLIND_SPOT = 3
# Up to this side the patches of a grouped convolution fit the caches.
SMALL_MAP = 8
# Products narrower than this waste vector lanes: groups are joined until they are as wide.
MIN_PATCH_WIDTH, MIN_BLOCK_WIDTH = 16, 32
STEM_CHANNELS = 3  # grey or RGB: too few for tensor cores
MAX_BLOCKS = 4  # dense convolutions that a grouped one is split into; more compile too slowly
# The kernel's gradient is one product, if the kernel has this many channels at both ends. Maps of
# this side need fewer at one of the ends.
WIDE, WIDE_ON_LARGE_MAP, LARGE_MAP = 64, 32, 32
FEW = 3  # channels of an image, grey or RGB: an output for which XLA's convolution is slow
ROWS_AT_ONCE = 16  # of the map: the copies of all rows would take half of VGG19's memory again


def convolve(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Convolves x [B, H, W, C] with kernel [k, k, C / groups, D] to [B, H', W', D]."""
    forms = current_forms()
    size, channels = kernel.shape[0], x.shape[-1]
    if forms.convolution == "products":
        return convolve_products(x, kernel, strides=strides, padding=padding, groups=groups)
    if 1 < groups < channels:
        form = forms.grouped_1x1 if size == 1 else forms.grouped_3x3
        if form == "batched":
            return _convolve_batched(x, kernel, strides, padding, groups)
        if form == "dense":
            kernel, groups = _join_groups(kernel, groups, channels)
            if size == 1 and padding == 0:
                return matmul(x[:, ::strides, ::strides], kernel[0, 0])
    elif groups == size == 1 and padding == 0 and forms.pointwise == "product":
        return matmul(x[:, ::strides, ::strides], kernel[0, 0])
    elif channels <= STEM_CHANNELS and strides == 2 and forms.stem == "space_to_depth":
        return _convolve_blocks(x, kernel, strides, padding)
    return convolve_lax(x, kernel, strides=strides, padding=padding, groups=groups)


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
    """`convolve` in the form that runs fastest on CPUs."""
    size, features = kernel.shape[0], kernel.shape[-1]
    channels = x.shape[-1]
    if groups == channels == features:
        return _convolve_depthwise(x, kernel, strides, padding)
    if size == 1 and padding == 0:
        x = x[:, ::strides, ::strides]
        products = [
            matmul(part, weights[0, 0])
            for part, weights in zip(
                jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
            )
        ]
        return products[0] if groups == 1 else jnp.concatenate(products, axis=-1)
    output_side = (min(x.shape[1:3]) + 2 * padding - size) // strides + 1
    if groups == 1 and output_side < BLIND_SPOT:
        patches = jnp.concatenate(_taps(x, size, strides, padding), axis=-1)
        return matmul(patches, kernel.reshape(-1, features))
    if groups > 1 and max(x.shape[1:3]) <= SMALL_MAP:
        kernel, groups = _join_groups(kernel, groups, MIN_PATCH_WIDTH)
        return _convolve_grouped_patches(x, kernel, strides, padding, groups)
    kernel, groups = _join_groups(kernel, groups, max(MIN_BLOCK_WIDTH, channels // MAX_BLOCKS))
    blocks = [
        _convolve_dense(part, weights, strides, padding)
        for part, weights in zip(
            jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
        )
    ]
    return blocks[0] if groups == 1 else jnp.concatenate(blocks, axis=-1)


def max_pool(x: jax.Array, *, size: int, strides: int, padding: int = 0) -> jax.Array:
    """The maximum over windows of [B, H, W, C]; padding never wins.

    In the form "shifts" a gradient is shared where several pixels of a window are the largest.
    """
    form = current_forms().max_pool
    if form == "shifts":
        for axis in (1, 2):  # the maximum over rows, then over columns: 2 k steps, not k * k
            x = reduce(jnp.maximum, _shifts(x, axis, size, strides, padding, -jnp.inf))
        return x
    if form == "padded":
        x, padding = _pad(x, padding, float(jnp.finfo(x.dtype).min)), 0
    return nn.max_pool(x, **_window(size, strides, padding))


def average_pool(x: jax.Array, *, size: int, strides: int, padding: int = 0) -> jax.Array:
    """The mean over windows of [B, H, W, C]; padding counts as zeros."""
    form = current_forms().average_pool
    if form == "shifts":
        for axis in (1, 2):
            x = reduce(jnp.add, _shifts(x, axis, size, strides, padding, 0))
        return x / size**2
    if form == "padded":
        x, padding = _pad(x, padding, 0.0), 0
    return nn.avg_pool(x, **_window(size, strides, padding))


@jax.custom_vjp
def matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., C] times weights [C, D].

    Its own derivative, because that of `@` with respect to the weights copies x and the
    gradient into transposed order first, which takes longer than the product.
    """
    return x @ weights


def _matmul_forward(
    x: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ weights, (x, weights)


def _matmul_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    outer = tuple(range(x.ndim - 1))
    return gradient @ weights.T, lax.dot_general(x, gradient, ((outer, outer), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def _window(size: int, strides: int, padding: int) -> dict[str, Any]:
    """Keywords of linen's pooling."""
    margins = [(padding, padding)] * 2 if padding else "VALID"
    return {"window_shape": (size, size), "strides": (strides, strides), "padding": margins}


def _pad(x: jax.Array, padding: int, fill: float) -> jax.Array:
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(x, margins, constant_values=fill) if padding else x


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
    x = _pad(x, padding, 0.0)
    return [
        tap
        for row in _shifts(x, 1, size, strides, 0, 0)
        for tap in _shifts(row, 2, size, strides, 0, 0)
    ]


def _convolve_dense(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """XLA's convolution, or a faster form for many channels and for the channels of an image."""
    side, size = min(x.shape[1:3]), kernel.shape[0]
    narrow, wide = sorted(kernel.shape[2:])
    enough = WIDE_ON_LARGE_MAP if side >= LARGE_MAP else WIDE
    if strides == 1 and padding < size:
        if narrow >= enough and wide >= WIDE:
            return _convolve_wide(x, kernel, padding)
        if kernel.shape[-1] <= FEW < kernel.shape[-2]:
            return _convolve_to_few(x, kernel, padding)
    return convolve_lax(x, kernel, strides=strides, padding=padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_wide(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """XLA's convolution by steps of 1, with its own derivative with respect to the kernel.

    XLA computes that derivative as a convolution with a kernel as large as the map, at a third of
    the speed of the other two convolutions of a step, or less.
    """
    return convolve_lax(x, kernel, padding=padding)


def _convolve_wide_forward(
    x: jax.Array, kernel: jax.Array, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_lax(x, kernel, padding=padding), (x, kernel)


def _convolve_wide_backward(
    padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One product of k copies of x, shifted by rows, and k of the gradient, by columns.

    Patches under the kernel would be k * k copies of x.
    """
    x, kernel = residuals
    _, pull_back = jax.vjp(lambda x: convolve_lax(x, kernel, padding=padding), x)
    size, _, channels, features = kernel.shape
    height = gradient.shape[1]
    blocks = -(-height // ROWS_AT_ONCE)
    rows = -(-height // blocks)
    added = blocks * rows - height
    x = jnp.pad(x, ((0, 0), (padding, padding + added), (0, 0), (0, 0)))
    gradient_rows = jnp.pad(gradient, ((0, 0), (0, added), (0, 0), (0, 0)))

    def add_rows(block: int, product: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, block * rows, rows + size - 1, axis=1)
        part_gradient = lax.dynamic_slice_in_dim(gradient_rows, block * rows, rows, axis=1)
        return product + lax.dot_general(
            jnp.concatenate(_shifts(part, 1, size, 1, 0, 0), axis=-1),  # k of [B, rows, W, C]
            jnp.concatenate(
                _shifts(part_gradient, 2, size, 1, size - 1 - padding, 0)[::-1], axis=-1
            ),
            (((0, 1, 2), (0, 1, 2)), ((), ())),
        )

    product = jnp.zeros((size * channels, size * features), x.dtype)
    product = lax.fori_loop(0, blocks, add_rows, product)
    product = product.reshape(size, channels, size, features)
    return pull_back(gradient)[0], product.transpose(0, 2, 1, 3)


_convolve_wide.defvjp(_convolve_wide_forward, _convolve_wide_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_to_few(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """A convolution by steps of 1 to a few channels D: one product, then k * k shifted additions.

    The product maps each pixel to what it adds to each of the k * k pixels around it.
    """
    size, _, channels, features = kernel.shape
    product = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, size * size * features)
    maps = _pad(product, padding, 0.0).reshape(
        *(x.shape[0], x.shape[1] + 2 * padding, x.shape[2] + 2 * padding),
        *(size, size, features),
    )
    maps = jnp.moveaxis(maps, (3, 4), (0, 1))  # [k, k, B, H + 2 p, W + 2 p, D]
    height, width = (side + 2 * padding - size + 1 for side in x.shape[1:3])
    return reduce(
        jnp.add,
        (
            maps[row, column, :, row : row + height, column : column + width]
            for row in range(size)
            for column in range(size)
        ),
    )


def _convolve_to_few_forward(
    x: jax.Array, kernel: jax.Array, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_to_few(x, kernel, padding), (x, kernel)


def _convolve_to_few_backward(
    padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two products with the patches [B, H, W, k * k * D] of the gradient."""
    x, kernel = residuals
    size, _, channels, features = kernel.shape
    patches = jnp.concatenate(_taps(gradient, size, 1, size - 1 - padding)[::-1], axis=-1)
    x_gradient = patches @ kernel.transpose(0, 1, 3, 2).reshape(-1, channels)
    kernel_gradient = lax.dot_general(patches, x, (((0, 1, 2), (0, 1, 2)), ((), ())))
    kernel_gradient = kernel_gradient.reshape(size, size, features, channels)
    return x_gradient, kernel_gradient.transpose(0, 1, 3, 2)


_convolve_to_few.defvjp(_convolve_to_few_forward, _convolve_to_few_backward)


def _convolve_depthwise(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """Every channel with its own k x k weights: shift, multiply, add."""
    size, features = kernel.shape[0], kernel.shape[-1]
    weights = kernel.reshape(size * size, 1, 1, 1, features)
    taps = _taps(x, size, strides, padding)
    return reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))


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


def _convolve_batched(
    x: jax.Array, kernel: jax.Array, strides: int, padding: int, groups: int
) -> jax.Array:
    """The patches of all groups times their kernels: one batched product, no group copied out."""
    size, _, width, features = kernel.shape
    taps = [tap.reshape(*tap.shape[:-1], groups, width) for tap in _taps(x, size, strides, padding)]
    patches = jnp.concatenate(taps, axis=-1)  # [B, H', W', groups, k * k * width]
    batch, rows, columns, _, depth = patches.shape
    y = lax.dot_general(
        patches.reshape(-1, groups, depth),
        kernel.reshape(depth, groups, features // groups),
        (((2,), (0,)), ((1,), (1,))),
    )  # [groups, B H' W', D / groups]
    return jnp.moveaxis(y, 0, 1).reshape(batch, rows, columns, features)


def _convolve_blocks(x: jax.Array, kernel: jax.Array, strides: int, padding: int) -> jax.Array:
    """Space-to-depth: blocks of strides x strides pixels become channels, convolved by steps of 1.

    7x7 by steps of 2 on one channel becomes 4x4 by steps of 1 on four, its added weights zero.
    """
    size, _, channels, features = kernel.shape
    taps = -(-size // strides)
    stops = [(side + 2 * padding - size) // strides + 1 for side in x.shape[1:3]]
    rows, columns = (stop + taps - 1 for stop in stops)  # in blocks
    ends = [
        n * strides - side - padding for n, side in zip((rows, columns), x.shape[1:3], strict=True)
    ]
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        ((0, 0, 0), (padding, ends[0], 0), (padding, ends[1], 0), (0, 0, 0)),
    )
    x = x.reshape(x.shape[0], rows, strides, columns, strides, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, columns, -1)
    added = (0, taps * strides - size)
    kernel = jnp.pad(kernel, (added, added, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, strides, taps, strides, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(taps, taps, -1, features)
    return convolve_lax(x, kernel)


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
