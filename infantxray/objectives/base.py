"""What every objective of stage one offers."""

from __future__ import annotations

import abc
from typing import Any

import flax.linen as nn
import jax

PyTree = Any


class Objective(abc.ABC):
    """Learns an encoder from images without labels.

    Attributes:
      name: of the loss, as it is logged.
      panel_names: of the pictures that `panels` makes.
      model: a module with the encoder as its submodule `encoder`.
    """

    name: str
    panel_names: tuple[str, ...]
    model: nn.Module

    @abc.abstractmethod
    def __init__(self, encoder: nn.Module, dtype): ...

    @abc.abstractmethod
    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        """Image `[B, H, W, 1]`, intensities in [0, 1] -> loss of each, `[B]`, and batch_stats."""

    @abc.abstractmethod
    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        """Image `[B, H, W, 1]` -> pictures of that shape, in [0, 1], to compare by eye."""
