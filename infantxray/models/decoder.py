"""The decoder of the autoencoder: an image from the encoder's last map alone.

There are no skip connections: with them an unmasked autoencoder copies its input
past the latent map and the encoder learns nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from infantxray.models.convolution import matmul
from infantxray.models.encoders import layers
from infantxray.models.forms import current_forms

LEVELS = 5  # doublings from stride 32 to full resolution
MIN_WIDTH = 32  # a narrower level cannot draw edges


def level_widths(latent_features: int) -> list[int]:
    """Channels after each doubling: an eighth of the latent map's, then half as many each time."""
    return [max(latent_features // 2 ** (level + 3), MIN_WIDTH) for level in range(LEVELS)]


class Decoder(nn.Module):
    """Five doublings, each a transposed convolution of 2x2 and a convolution of 3x3.

    The first level is an eighth as wide as the latent map and each next level half
    as wide as the one before, so the decoder's cost follows the encoder's.

    Attributes:
      out_channels: channels of the image.
      dtype: dtype of the computation.
    """

    out_channels: int = 1
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, latent: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, h, w, C] to [B, 32 h, 32 w, out_channels], unbounded, near zero at first."""
        x = latent
        for level, width in enumerate(level_widths(latent.shape[-1]), start=1):
            x = Upsample(width, dtype=self.dtype, name=f"upsample{level}")(x)
            x = layers.BatchNorm(
                use_running_average=not train, dtype=self.dtype, name=f"upsample_norm{level}"
            )(x)
            x = _rearrange(nn.relu(x))
            if level < LEVELS:
                x = layers.Conv(width, 3, dtype=self.dtype, name=f"conv{level}")(x)
                x = layers.BatchNorm(
                    use_running_average=not train, dtype=self.dtype, name=f"norm{level}"
                )(x)
                x = nn.relu(x)
        return layers.Conv(
            self.out_channels,
            3,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1e-3, "fan_in", "normal"),
            name="output",
        )(x)


class Upsample(nn.Module):
    """A transposed convolution of kernel 2 and stride 2, as a product and a rearrangement.

    The windows do not overlap, so each pixel becomes its own 2x2 pixels: one matrix
    product, fast on every backend. `Forms.doubling` has the other spellings.
    """

    features: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2 H, 2 W, features]; "late" to [B, H, W, 2, 2, features]."""
        form = current_forms().doubling
        product = nn.Dense(
            4 * self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            dot_general=_convolve_transposed if form == "transposed" else _multiply,
            name="kernel",
        )
        x = product(x)
        if form == "transposed":
            return x
        x = x.reshape(*x.shape[:-1], 2, 2, self.features)
        return x if form == "late" else _rearrange(x)


def _rearrange(x: jax.Array) -> jax.Array:
    """Depth to space: [B, H, W, 2, 2, C] to [B, 2 H, 2 W, C]; a map of four axes stays."""
    if x.ndim == 4:
        return x
    batch, height, width, _, _, channels = x.shape
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H, 2, W, 2, C]
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _multiply(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """A product with kernel [C, 4 D] whose derivative is fast on CPUs."""
    return matmul(x, kernel)


def _convolve_transposed(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """In place of a product with kernel [C, 4 D]: the same as a transposed convolution."""
    kernel = kernel.reshape(kernel.shape[0], 2, 2, -1).transpose(1, 2, 0, 3)[::-1, ::-1]
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(1, 1)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
