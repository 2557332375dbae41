"""Layers of the encoders: convolution, batch normalisation, sums, upsampling, the input check."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from infantxray.models.convolution import convolve

Dtype = jnp.dtype | type
Moments = tuple[jax.Array, jax.Array]

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A square convolution with PyTorch's padding: symmetric, half the kernel unless told.

    Attributes:
      features: number of output channels.
      kernel_size: side of the kernel.
      strides: step in both directions.
      padding: zeros on each side; None for `kernel_size // 2`.
      groups: number of channel groups that are convolved apart.
      use_bias: whether a bias is added; none is needed before BatchNorm.
      dtype: dtype of the computation; the parameters are float32.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = he_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        size = self.kernel_size
        kernel = self.param(
            "kernel", self.kernel_init, (size, size, x.shape[-1] // self.groups, self.features)
        )
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=size // 2 if self.padding is None else self.padding,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


def residual_scale(plain: bool) -> nn.initializers.Initializer:
    """Of the last normalisation before a sum: a block with a plain shortcut starts as identity.

    Without it deep networks learn nothing from random weights in the first hundreds of steps.
    Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1.
    """
    return nn.initializers.zeros_init() if plain else nn.initializers.ones_init()


MOMENTUM = 0.9  # Share of the running statistics that a step keeps, in every BatchNorm.


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's settings.

    Under jit the statistics are those of the whole batch, over however many devices.
    Unlike linen's own it applies one multiplication and one addition a pixel, which saves
    CPUs and accelerators a pass over the map in each direction.

    Attributes:
      use_running_average: use the running statistics, and leave them as they are.
      momentum: share of the running statistics that a step keeps.
      epsilon: added to the variance.
      dtype: dtype of the output; statistics and parameters are float32.
      scale_init: of the learned scale.
    """

    use_running_average: bool
    momentum: float = MOMENTUM
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        """Normalises each channel of [..., C].

        Args:
          x: the maps.
          moments: `channel_moments(x)` if known; used with the batch's statistics only.
        """
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)

        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, mean_square = channel_moments(x) if moments is None else moments
            var = jnp.maximum(mean_square - mean * mean, 0)
            if not self.is_initializing():
                kept = self.momentum
                running_mean.value = kept * running_mean.value + (1 - kept) * mean
                running_var.value = kept * running_var.value + (1 - kept) * var
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        offset = bias - mean * multiplier
        per_channel = (*(1,) * (x.ndim - 1), -1)
        x = x * multiplier.reshape(per_channel) + offset.reshape(per_channel)
        return x.astype(self.dtype)


def channel_moments(x: jax.Array) -> Moments:
    """Mean and mean square of each channel of [..., C], float32 [C]."""
    x = x.astype(jnp.float32)
    outer = tuple(range(x.ndim - 1))
    return x.mean(outer), (x * x).mean(outer)


@jax.custom_vjp
def relu_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    """ReLU of x + y, exactly, spelled so that XLA computes it once.

    XLA recomputes an operation of one argument in every consumer rather than store it. If
    that were the ReLU, each residual block would recompute the sums of all blocks before it.
    """
    return jnp.maximum(x, -y) + y


def _relu_sum_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    z = relu_sum(x, y)
    return z, z


def _relu_sum_backward(z: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradient = jnp.where(z > 0, gradient, 0)
    return gradient, gradient


relu_sum.defvjp(_relu_sum_forward, _relu_sum_backward)


def repeat_pixels(x: jax.Array, times: int) -> jax.Array:
    """[B, H, W, C] to [B, times H, times W, C]: upsampling to the nearest neighbour."""
    return x.repeat(times, axis=1).repeat(times, axis=2)


def add_upsampled(fine: jax.Array, coarse: jax.Array) -> jax.Array:
    """fine [B, H, W, C] plus coarse [B, H / n, W / n, C], whose pixels are repeated n x n."""
    batch, height, width, channels = coarse.shape
    times = fine.shape[1] // height
    blocks = fine.reshape(batch, height, times, width, times, channels)
    return (blocks + coarse[:, :, None, :, None, :]).reshape(fine.shape)


def check_image(image: jax.Array, in_channels: int) -> None:
    """Raises ValueError unless image is [B, H, W, in_channels], H and W multiples of 32."""
    if image.ndim != 4 or image.shape[-1] != in_channels:
        raise ValueError(
            f"image of shape {image.shape}, but the encoder takes [B, H, W, {in_channels}]: "
            f"set in_channels to the number of channels of the images"
        )
    if any(side == 0 or side % 32 for side in image.shape[1:3]):
        raise ValueError(
            f"image of {image.shape[1]} x {image.shape[2]} pixels, "
            f"but the encoder takes heights and widths that are multiples of 32"
        )
