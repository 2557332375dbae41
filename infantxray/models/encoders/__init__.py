"""The encoders of the paper's Table 1 behind one contract.

An encoder is a linen module with

- `pyramid_features`, the channels of its four maps (strides 4, 8, 16 and 32), and
  `num_features`, those of the last;
- `__call__(image, *, train)`, which maps [B, H, W, in_channels] to the four maps,
  fine to coarse, after activation. H and W are multiples of 32.

Parameters and BatchNorm statistics are float32 whatever the dtype of the computation.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.encoders.layers import Dtype
from infantxray.models.encoders.resnet import resnet50, resnext50

ENCODERS = {
    "resnet50": resnet50,
    "resnext50": resnext50,
}


def create_encoder(name: str, in_channels: int = 1, dtype: Dtype = jnp.float32) -> nn.Module:
    """The encoder of that name.

    Args:
      name: a key of `ENCODERS`.
      in_channels: channels of the images: 1 for grey, 3 for RGB.
      dtype: of the computation.

    Raises:
      ValueError: there is no encoder of that name.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}")
    return ENCODERS[name](in_channels=in_channels, dtype=dtype)
