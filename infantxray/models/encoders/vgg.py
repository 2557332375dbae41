"""VGG-19.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, configuration E: plain, with biases and without normalisation.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.convolution import max_pool
from infantxray.models.encoders import layers


@dataclasses.dataclass(frozen=True)
class Stage:
    """Convolutions of one width between two poolings."""

    convolutions: int
    features: int


VGG19 = (Stage(2, 64), Stage(2, 128), Stage(4, 256), Stage(4, 512), Stage(4, 512))


# Pyramid level at which a module enters, by the start of its name; 0 for all others. None enters
# at level 3: that map is pooled from level 2.
LEVELS = (("conv4_", 1), ("conv5_", 2))


class VGG(nn.Module):
    """A VGG. The three finer maps are taken before their pooling, the last after it.

    Attributes:
      in_channels: channels of the image.
      dtype: dtype of the computation.
      stages: the five stages, fine to coarse.
    """

    in_channels: int = 1
    dtype: layers.Dtype = jnp.float32
    stages: tuple[Stage, ...] = VGG19

    normalised = False
    levels = LEVELS

    @property
    def pyramid_features(self) -> tuple[int, ...]:
        features = tuple(stage.features for stage in self.stages)
        return (*features[2:], features[-1])

    @property
    def num_features(self) -> int:
        return self.pyramid_features[-1]

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, in_channels] to maps of strides 4, 8, 16 and 32."""
        del train  # there is no normalisation
        layers.check_image(image, self.in_channels)
        x, maps = image, []
        for number, stage in enumerate(self.stages, start=1):
            for index in range(1, stage.convolutions + 1):
                conv = layers.Conv(
                    stage.features, 3, use_bias=True, dtype=self.dtype, name=f"conv{number}_{index}"
                )
                x = nn.relu(conv(x))
            maps.append(x)
            x = max_pool(x, size=2, strides=2)
        return (*maps[2:], x)
