"""The interface of stage one's objectives."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import flax.linen as nn
import jax

from infantxray.training.augment import Augmentation

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The settings of all objectives; each reads its own.

    Attributes:
      image_size: side of the images in pixels.
      noise: for `denoise`: standard deviation, of the intensity range.
      mask_fraction: for masked prediction: share of the patches that are hidden.
      patch_size: for masked prediction: pixels; 0 = about an eighth of the image's side.
      views: for `simsiam` and `byol`: the changes that make the two views.
      blur: for both: largest standard deviation of a Gaussian blur, of the image side.
      teacher_momentum: for `byol`: decay of the moving average.
    """

    image_size: int
    noise: float = 0.2
    mask_fraction: float = 0.6
    patch_size: int = 0
    views: Augmentation = dataclasses.field(default_factory=Augmentation)
    blur: float = 0.0
    teacher_momentum: float = 0.99


class Objective(abc.ABC):
    """Learns an encoder from images without labels.

    Subclasses take the encoder, the dtype of the computation, and `ObjectiveSettings`.

    Attributes:
      name: name of the loss, as it is logged.
      panel_names: of the pictures that `panels` returns.
      model: a module with the encoder as its submodule `encoder`.
    """

    name: str
    panel_names: tuple[str, ...]
    model: nn.Module

    def __init__(self, encoder: nn.Module, dtype: Any, settings: ObjectiveSettings):
        self.settings = settings

    def init(self, key: jax.Array, image: jax.Array) -> PyTree:
        """Fresh `params` and `batch_stats` for images of this shape, `[B, H, W, 1]`."""
        return self.model.init(key, image, train=False)

    @abc.abstractmethod
    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        """Image `[B, H, W, 1]`, intensities in [0, 1] -> loss of each, `[B]`, and batch_stats.

        The random numbers of an example depend only on the key and its position in the batch.
        """

    def after_step(self, params: PyTree, batch_stats: PyTree) -> PyTree:
        """`batch_stats` with what changes once a step, not once for each part of a batch.

        Args:
          params: those that the loss of the step was computed with.
          batch_stats: those that the loss of the step left.
        """
        del params
        return batch_stats

    @abc.abstractmethod
    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        """Image `[B, H, W, 1]` -> pictures in [0, 1], to compare by eye.

        All have the shape `[B, k H, k W, 1]` with an integer k: some drawings need more pixels.
        """
