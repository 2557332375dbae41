"""MobileNetV2.

Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", CVPR 2018,
width multiplier 1.0.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.encoders import layers

STEM_FEATURES = 32
LAST_FEATURES = 1280


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 2: t, c, n, s."""

    expansion: int
    features: int
    blocks: int
    strides: int


MOBILENET_V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


# Pyramid level at which a module enters, by the start of its name; 0 for all others. A level
# ends with the expansion of the first bottleneck of the next resolution.
LEVELS = (
    (r"bottleneck(4/[dp]|[56]/|7/e)", 1),
    (r"bottleneck(7/[dp]|([89]|1[0-3])/|14/e)", 2),
    (r"bottleneck(14/[dp]|1[5-7]/)|conv2/|norm2/", 3),
)


class Bottleneck(nn.Module):
    """Inverted residual: expand, filter every channel by itself, project linearly."""

    expansion: int
    features: int
    strides: int
    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the block's output, and its expansion, which has the input's resolution."""
        width = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = self.conv(width, name="expansion")(y)
            y = nn.relu6(self.norm(name="expansion_norm")(y))
        expanded = y
        y = self.conv(width, 3, strides=self.strides, groups=width, name="depthwise")(y)
        y = nn.relu6(self.norm(name="depthwise_norm")(y))
        y = self.conv(self.features, name="projection")(y)
        added = x.shape == y.shape
        y = self.norm(scale_init=layers.residual_scale(added), name="projection_norm")(y)
        return (x + y if added else y), expanded


class MobileNetV2(nn.Module):
    """MobileNetV2.

    A bottleneck's output is linear, so, as in the paper's detector (section 6.2), the
    finer maps are the expansions that the next stride of two starts from.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the rows of the paper's Table 2.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = MOBILENET_V2

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        steps = zip(self.stages[:-1], self.stages[1:], strict=True)
        expansions = [b.expansion * a.features for a, b in steps if b.strides == 2]
        return (*expansions[1:], LAST_FEATURES)

    @property
    def num_features(self) -> int:
        return LAST_FEATURES

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(STEM_FEATURES, 3, strides=2, name="conv1")(image)
        x = nn.relu6(norm(name="norm1")(x))

        maps, number = [], 0
        for stage in self.stages:
            for index in range(stage.blocks):
                number += 1
                strides = stage.strides if index == 0 else 1
                x, expanded = Bottleneck(
                    stage.expansion, stage.features, strides, conv, norm, name=f"bottleneck{number}"
                )(x)
                if strides == 2:
                    maps.append(expanded)

        x = conv(LAST_FEATURES, name="conv2")(x)
        x = nn.relu6(norm(name="norm2")(x))
        return (*maps[1:], x)  # the first expansion has stride 2
