"""ResNet-50 and ResNeXt-50.

ResNet: He et al., "Deep residual learning for image recognition", CVPR 2016, with
the stride of a block in its 3x3 convolution, as in torchvision ("1.5").
ResNeXt: Xie et al., "Aggregated residual transformations for deep neural
networks", CVPR 2017: the same network with two other numbers.
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

EXPANSION = 4  # a bottleneck puts out this many times its width


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 1: blocks of one width, the first with the stride."""

    name: str
    blocks: int
    width: int
    strides: int


RESNET50 = (
    Stage("conv2", blocks=3, width=64, strides=1),
    Stage("conv3", blocks=4, width=128, strides=2),
    Stage("conv4", blocks=6, width=256, strides=2),
    Stage("conv5", blocks=3, width=512, strides=2),
)


# Pyramid level at which a module enters, by the start of its name; 0 for all others.
LEVELS = (("conv3_", 1), ("conv4_", 2), ("conv5_", 3))


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (in groups), 1x1 expand, added to the shortcut."""

    width: int
    features: int
    strides: int
    groups: int
    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.width, 3, strides=self.strides, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(self.features, name="conv3")(y)
        # Blocks start as the identity (Goyal et al. 2017): with random ones the gradient grows
        # from block to block, a hundredfold over the network.
        y = self.norm(scale_init=nn.initializers.zeros_init(), name="norm3")(y)
        if x.shape != y.shape:
            x = self.conv(self.features, strides=self.strides, name="projection")(x)
            x = self.norm(name="projection_norm")(x)
        return layers.relu_sum(x, y)


class ResNet(nn.Module):
    """A ResNet, or with groups a ResNeXt.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the four stages, fine to coarse.
      groups: cardinality of the 3x3 convolutions.
      group_width: channels of a group where the stage's width is 64.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = RESNET50
    groups: int = 1
    group_width: int = 64

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        return tuple(EXPANSION * stage.width for stage in self.stages)

    @property
    def num_features(self) -> int:
        return self.pyramid_features[-1]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        x = conv(64, 7, strides=2, name="conv1")(image)
        x = nn.relu(norm(name="norm1")(x))
        x = max_pool(x, size=3, strides=2, padding=1)

        maps = []
        for stage in self.stages:
            for index in range(stage.blocks):
                x = Bottleneck(
                    width=self.groups * stage.width * self.group_width // 64,
                    features=EXPANSION * stage.width,
                    strides=stage.strides if index == 0 else 1,
                    groups=self.groups,
                    conv=conv,
                    norm=norm,
                    name=f"{stage.name}_{index + 1}",
                )(x)
            maps.append(x)
        return tuple(maps)
