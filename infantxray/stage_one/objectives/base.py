"""What every objective of stage one offers."""

from __future__ import annotations

import abc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    def __init__(self, encoder: nn.Module, dtype, config):
        """For the encoder, the type to compute in, and stage one's settings."""

    @abc.abstractmethod
    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        """Image `[B, H, W, 1]`, intensities in [0, 1] -> loss of each, `[B]`, and batch_stats.

        What is random about an example depends on the key and its place in the batch alone.
        """

    @abc.abstractmethod
    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        """Image `[B, H, W, 1]` -> pictures in [0, 1], to compare by eye.

        All have the shape `[B, k H, k W, 1]`, k a whole number: some drawings need more pixels.
        """


def example_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """A key for each example, `[B]`: the same however the batch is spread over devices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))
