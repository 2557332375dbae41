"""The encoders of the paper's Table 1 behind one contract.

An encoder is a linen module with

- `pyramid_features`, the channels of its four maps (strides 4, 8, 16 and 32), and
  `num_features`, those of the last;
- `__call__(image, *, train)`, which maps [B, H, W, in_channels] to the four maps,
  fine to coarse, after activation. H and W are multiples of 32;
- `normalised = False` where no BatchNorm keeps the last map in scale (see `has_batchnorm`);
- `levels`, patterns of module names and the pyramid level at which each enters, for learning
  rates that fall with depth (see `infantxray.models.depth`).

Parameters and BatchNorm statistics are float32 whatever the dtype of the computation.

To add an encoder:

1. Write its family in a module here: a table of stages in a frozen dataclass, a linen module with
   the members above, layers from `layers`, parameters named by the paper's terms.
2. Enter it in `ENCODERS`.
3. In `infantxray.models.torch_names`, map its names to the reference implementation's (`RULES`)
   and, if it was not trained with ImageNet's mean and deviation, state its input scale
   (`REFERENCE_SCALES`).
4. In `tests/models`, enter its parameter count in `test_encoders.py` and its reference in
   `reference_networks.py`. The tests then check shapes, gradients, levels, weights and, where
   PyTorch is installed, that both networks compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from infantxray.models.encoders.densenet import DenseNet
from infantxray.models.encoders.hrnet import HRNet
from infantxray.models.encoders.layers import Dtype
from infantxray.models.encoders.mobilenet import MobileNetV2
from infantxray.models.encoders.resnet import ResNet
from infantxray.models.encoders.shufflenet import ShuffleNet
from infantxray.models.encoders.vgg import VGG
from infantxray.models.encoders.xception import Xception


def has_batchnorm(encoder: nn.Module) -> bool:
    """False for encoders without normalisation of their maps: VGG19."""
    return getattr(encoder, "normalised", True)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "vgg19": VGG,
    "mobilenet_v2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "xception": Xception,
    "hrnet_w32": HRNet,
    "resnext50": partial(ResNet, groups=32, group_width=4),
    "densenet121": DenseNet,
    "resnet50": ResNet,
}


def create_encoder(name: str, in_channels: int = 1, dtype: Dtype = jnp.float32) -> nn.Module:
    """The encoder of that name.

    Args:
      name: a key of `ENCODERS`.
      in_channels: channels of the images: 1 for grey, 3 for RGB.
      dtype: dtype of the computation.

    Raises:
      ValueError: there is no encoder of that name.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}")
    return ENCODERS[name](in_channels=in_channels, dtype=dtype)
