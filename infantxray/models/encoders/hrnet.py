"""HRNet-W32 with its classification head.

Wang et al., "Deep high-resolution representation learning for visual recognition",
TPAMI 2020: branches of four resolutions side by side, exchanged again and again.
"""

from __future__ import annotations

import dataclasses
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.encoders import layers
from infantxray.models.encoders.resnet import Bottleneck
from infantxray.models.forms import current_forms

STEM_FEATURES = 64
HEAD_FEATURES = (128, 256, 512, 1024)
LAST_FEATURES = 2048


@dataclasses.dataclass(frozen=True)
class Stage:
    """Branches of these widths, fine to coarse, and how often they are exchanged."""

    modules: int
    widths: tuple[int, ...]


# Pyramid level at which a module enters, by the start of its name; 0 for all others.
LEVELS = (
    (r"stage4_3_fuse_\dto2|head_increase2|head_downsample1", 1),
    (r"stage4_3_fuse_\dto3|head_increase3|head_downsample2", 2),
    (r"stage4_3_fuse_\dto4|head_increase4|head_downsample3|head_final", 3),
)
HRNET_W32 = (Stage(1, (32, 64)), Stage(4, (32, 64, 128)), Stage(3, (32, 64, 128, 256)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    conv: partial[Any]
    norm: partial[Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        y = self.conv(features, 3, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(features, 3, name="conv2")(y)
        y = self.norm(scale_init=layers.residual_scale(True), name="norm2")(y)
        return layers.relu_sum(x, y)


class HRNet(nn.Module):
    """HRNet. The maps are those that its head passes down, from fine to coarse.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the stages 2, 3 and 4.
      units: residual units of a branch between two exchanges, and of stage 1.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = HRNET_W32
    units: int = 4

    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        return (*HEAD_FEATURES[:-1], LAST_FEATURES)

    @property
    def num_features(self) -> int:
        return LAST_FEATURES

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        layers.check_image(image, self.in_channels)
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, use_running_average=not train, dtype=self.dtype)

        def conv_norm(
            x: jax.Array,
            features: int,
            kernel_size: int,
            name: str,
            strides: int = 1,
            use_bias: bool = False,
        ) -> jax.Array:
            x = conv(features, kernel_size, strides, use_bias=use_bias, name=f"{name}_conv")(x)
            return norm(name=f"{name}_norm")(x)

        def bottleneck(x: jax.Array, width: int, name: str) -> jax.Array:
            return Bottleneck(width, 4 * width, 1, 1, conv, norm, name=name)(x)

        def fuse(branches: list[jax.Array], target: int, name: str) -> jax.Array:
            """All branches, brought to the target's resolution and width, summed."""
            features, terms = branches[target].shape[-1], []
            for source, y in enumerate(branches):
                path = f"{name}_{source + 1}to{target + 1}"
                for step in range(source, target):  # coarser by strided convolutions
                    last = step == target - 1
                    width = features if last else y.shape[-1]
                    y = conv_norm(y, width, 3, f"{path}_{step - source + 1}", strides=2)
                    y = y if last else nn.relu(y)
                if source > target:  # finer by repeating pixels
                    y = conv_norm(y, features, 1, path)
                terms.append(y)
            own, coarser = terms[: target + 1], terms[target + 1 :]
            if coarser and current_forms().fusion == "nested":
                coarser = [reduce(lambda y, fine: layers.add_upsampled(fine, y), coarser[::-1])]
            height = own[-1].shape[1]
            terms = own + [layers.repeat_pixels(y, height // y.shape[1]) for y in coarser]
            return layers.relu_sum(reduce(jnp.add, terms[:-1]), terms[-1])

        x = nn.relu(conv_norm(image, STEM_FEATURES, 3, "stem1", strides=2))
        x = nn.relu(conv_norm(x, STEM_FEATURES, 3, "stem2", strides=2))
        for index in range(self.units):
            x = bottleneck(x, 64, f"stage1_{index + 1}")

        branches = [x]
        for number, stage in enumerate(self.stages, start=2):
            previous = branches
            branches = []
            for index, width in enumerate(stage.widths):
                name = f"transition{number - 1}_{index + 1}"
                if index == len(previous):  # the new branch starts from the coarsest
                    y = nn.relu(conv_norm(previous[-1], width, 3, name, strides=2))
                elif previous[index].shape[-1] != width:
                    y = nn.relu(conv_norm(previous[index], width, 3, name))
                else:
                    y = previous[index]
                branches.append(y)
            for module in range(1, stage.modules + 1):
                for index in range(len(branches)):
                    for unit in range(1, self.units + 1):
                        name = f"stage{number}_{module}_branch{index + 1}_{unit}"
                        branches[index] = BasicBlock(conv, norm, name=name)(branches[index])
                branches = [
                    fuse(branches, target, f"stage{number}_{module}_fuse")
                    for target in range(len(branches))
                ]

        maps: list[jax.Array] = []
        for index, features in enumerate(HEAD_FEATURES):
            y = bottleneck(branches[index], features // 4, f"head_increase{index + 1}")
            if index > 0:
                name = f"head_downsample{index}"
                y += nn.relu(conv_norm(maps[-1], features, 3, name, strides=2, use_bias=True))
            maps.append(y)
        maps[-1] = nn.relu(conv_norm(maps[-1], LAST_FEATURES, 1, "head_final", use_bias=True))
        return tuple(maps)
