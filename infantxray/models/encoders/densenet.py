"""DenseNet-121.

Huang et al., "Densely connected convolutional networks", CVPR 2017: DenseNet-BC with
growth rate 32 and compression 0.5.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.convolution import average_pool, max_pool
from infantxray.models.encoders import layers
from infantxray.models.forms import current_forms

STEM_FEATURES = 64
BOTTLENECK_WIDTH = 4  # the 1x1 convolution puts out this many times the growth rate
DENSENET121 = (6, 12, 24, 16)  # layers of each dense block
# Pyramid level at which a module enters, by the start of its name; 0 for all others.
LEVELS = (
    (r"transition1_conv|dense2_|transition2_norm", 1),
    (r"transition2_conv|dense3_|transition3_norm", 2),
    (r"transition3_conv|dense4_|norm5", 3),
)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: the `growth_rate` new channels."""

    growth_rate: int
    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array, moments: layers.Moments | None) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(x, moments))
        y = self.conv(BOTTLENECK_WIDTH * self.growth_rate, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        return self.conv(self.growth_rate, 3, name="conv2")(y)


class DenseNet(nn.Module):
    """A DenseNet. Each map is a dense block's output after the norm and ReLU that follow it.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      blocks: layers of each of the four dense blocks.
      growth_rate: channels that a layer adds.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    blocks: tuple[int, ...] = DENSENET121
    growth_rate: int = 32

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        first, *rest = self.blocks
        return tuple(
            accumulate(
                rest,
                lambda features, layers: features // 2 + layers * self.growth_rate,
                initial=STEM_FEATURES + first * self.growth_rate,
            )
        )

    @property
    def num_features(self) -> int:
        return self.pyramid_features[-1]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(STEM_FEATURES, 7, strides=2, name="conv0")(image)
        x = nn.relu(norm(name="norm0")(x))
        x = max_pool(x, size=3, strides=2, padding=1)

        shared = train and current_forms().statistics == "shared"
        maps = []
        for number, length in enumerate(self.blocks, start=1):
            if number > 1:
                x = conv(x.shape[-1] // 2, name=f"transition{number - 1}_conv")(x)
                x = average_pool(x, size=2, strides=2)
            moments = layers.channel_moments(x) if shared else None
            for index in range(1, length + 1):
                layer = DenseLayer(self.growth_rate, conv, norm, name=f"dense{number}_{index}")
                y = layer(x, moments)
                x = jnp.concatenate([x, y], axis=-1)
                if moments is not None:  # the moments of earlier channels do not change
                    added = layers.channel_moments(y)
                    mean, square = map(jnp.concatenate, zip(moments, added, strict=True))
                    moments = mean, square
            last = number == len(self.blocks)
            x = nn.relu(norm(name="norm5" if last else f"transition{number}_norm")(x, moments))
            maps.append(x)
        return tuple(maps)
