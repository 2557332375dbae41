"""Input normalisation: the mean and standard deviation that an encoder's weights were trained with.

A network reads `(intensity - mean) / std` of an intensity in [0, 1]. The two numbers belong to
its weights: with others, every layer sees another range than the one it was trained on.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class InputScale:
    """Mean and standard deviation of the intensity in [0, 1].

    The defaults are the means over ImageNet's three colours as torchvision gives them (.485, .456,
    .406 and .229, .224, .225): a grey image looks to the network like a grey photograph.

    Raises:
      ValueError: the mean is not finite, or the deviation is not finite and positive.
    """

    mean: float = 0.449
    std: float = 0.226

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"input mean {self.mean} and standard deviation {self.std}: no scale")


IMAGENET = InputScale()
# [-1, 1]: Inception's and Xception's.
SYMMETRIC = InputScale(mean=0.5, std=0.5)
# [-1024, 1024]: Cohen et al., "TorchXRayVision", MIDL 2022.
TORCHXRAYVISION = InputScale(mean=0.5, std=1 / 2048)
