"""ShuffleNet (version 1).

Zhang et al., "ShuffleNet: An extremely efficient convolutional neural network for
mobile devices", CVPR 2018, three groups, scale 1.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.convolution import average_pool, max_pool
from infantxray.models.encoders import layers

GROUPS = 3
STEM_FEATURES = 24


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 1; the first unit has the stride of two."""

    name: str
    units: int
    features: int


SHUFFLENET = (Stage("stage2", 4, 240), Stage("stage3", 8, 480), Stage("stage4", 4, 960))


# Pyramid level at which a module enters, by the start of its name; 0 for all others.
LEVELS = (("stage2_", 1), ("stage3_", 2), ("stage4_", 3))


def shuffle_channels(x: jax.Array, groups: int) -> jax.Array:
    """Deals the channels of [B, H, W, C] out so that each group gets some of every group."""
    *outer, channels = x.shape
    x = x.reshape(*outer, groups, channels // groups)
    return x.swapaxes(-1, -2).reshape(*outer, channels)


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to, or joined with, the shortcut."""

    features: int
    strides: int
    first_groups: int
    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.features // 4
        joined = self.strides == 2
        y = self.conv(width, groups=self.first_groups, name="gconv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = shuffle_channels(y, GROUPS)
        y = self.conv(width, 3, strides=self.strides, groups=width, name="dwconv")(y)
        y = self.norm(name="norm2")(y)
        features = self.features - x.shape[-1] if joined else self.features
        y = self.conv(features, groups=GROUPS, name="gconv2")(y)
        y = self.norm(scale_init=layers.residual_scale(not joined), name="norm3")(y)
        if joined:
            x = average_pool(x, size=3, strides=2, padding=1)
            return nn.relu(jnp.concatenate([y, x], axis=-1))
        return layers.relu_sum(x, y)


class ShuffleNet(nn.Module):
    """ShuffleNet.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the three stages, fine to coarse.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = SHUFFLENET

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        return (STEM_FEATURES, *(stage.features for stage in self.stages))

    @property
    def num_features(self) -> int:
        return self.pyramid_features[-1]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(STEM_FEATURES, 3, strides=2, name="conv1")(image)
        x = nn.relu(norm(name="norm1")(x))
        x = max_pool(x, size=3, strides=2, padding=1)

        maps = [x]
        for stage in self.stages:
            for index in range(stage.units):
                first = index == 0
                x = Unit(
                    features=stage.features,
                    strides=2 if first else 1,
                    # the stem is too narrow for groups (section 3.2)
                    first_groups=1 if first and stage is self.stages[0] else GROUPS,
                    conv=conv,
                    norm=norm,
                    name=f"{stage.name}_{index + 1}",
                )(x)
            maps.append(x)
        return tuple(maps)
