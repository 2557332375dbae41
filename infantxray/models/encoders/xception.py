"""Xception.

Chollet, "Xception: Deep learning with depthwise separable convolutions", CVPR 2017.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.convolution import max_pool
from infantxray.models.encoders import layers


@dataclasses.dataclass(frozen=True)
class Stage:
    """One module of the paper's Figure 5: the widths of its separable convolutions, its stride."""

    features: tuple[int, ...]
    strides: int


ENTRY_FLOW = (Stage((128, 128), 2), Stage((256, 256), 2), Stage((728, 728), 2))
MIDDLE_FLOW = (Stage((728, 728, 728), 1),) * 8
EXIT_FLOW = (Stage((728, 1024), 2),)
LAST_FEATURES = (1536, 2048)
# Pyramid level at which a module enters, by the start of its name; 0 for all others.
LEVELS = ((r"block2/", 1), (r"block([3-9]|10|11)/", 2), (r"block12/|conv[34]/|norm[34]/", 3))


class SeparableConv(nn.Module):
    """A 3x3 filter for every channel, then a 1x1 convolution, with nothing between them."""

    features: int
    conv: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = self.conv(channels, 3, groups=channels, name="depthwise")(x)
        return self.conv(self.features, name="pointwise")(x)


class Block(nn.Module):
    """Separable convolutions, each after a ReLU, and pooling if strided; added to the shortcut.

    Attributes:
      stage: its widths and stride.
      activated: whether the input has been through a ReLU already.
    """

    stage: Stage
    activated: bool
    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for number, features in enumerate(self.stage.features, start=1):
            if number > 1 or not self.activated:
                y = nn.relu(y)
            y = SeparableConv(features, self.conv, name=f"sepconv{number}")(y)
            last = number == len(self.stage.features)
            init = layers.residual_scale(last and self.stage.strides == 1)
            y = self.norm(scale_init=init, name=f"norm{number}")(y)
        if self.stage.strides > 1:
            y = max_pool(y, size=3, strides=self.stage.strides, padding=1)
            x = self.conv(y.shape[-1], strides=self.stage.strides, name="projection")(x)
            x = self.norm(name="projection_norm")(x)
        return x + y


class Xception(nn.Module):
    """Xception.

    The finer maps are block outputs after the ReLU that the next block opens with. The
    stem's convolutions are unpadded, so the stride-4 map lacks a row and a column:
    they are repeated at its end.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the twelve modules with a shortcut.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = ENTRY_FLOW + MIDDLE_FLOW + EXIT_FLOW

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        steps = zip(self.stages[:-1], self.stages[1:], strict=True)
        before = [a.features[-1] for a, b in steps if b.strides == 2]
        return (*before, LAST_FEATURES[-1])

    @property
    def num_features(self) -> int:
        return LAST_FEATURES[-1]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(32, 3, strides=2, padding=0, name="conv1")(image)
        x = nn.relu(norm(name="norm1")(x))
        x = conv(64, 3, padding=0, name="conv2")(x)
        x = nn.relu(norm(name="norm2")(x))

        maps = []
        for number, stage in enumerate(self.stages, start=1):
            if number > 1 and stage.strides == 2:
                maps.append(nn.relu(x))
            x = Block(stage, number == 1, conv, norm, name=f"block{number}")(x)

        for number, features in enumerate(LAST_FEATURES, start=3):
            x = SeparableConv(features, conv, name=f"conv{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
        maps.append(x)
        maps[0] = jnp.pad(maps[0], ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
        return tuple(maps)
