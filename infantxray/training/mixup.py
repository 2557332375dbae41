"""MixUp: training on weighted means of two images and of their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The pairs of a batch and their weights (Zhang et al., "mixup", ICLR 2018).

    Attributes:
      partner: int `[B]`, a permutation: image i is mixed with image `partner[i]`.
      share: `[B]`, the weight λ of image i itself.
    """

    partner: jax.Array
    share: jax.Array

    def mix(self, image: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> λ times each image plus 1 − λ times its partner."""
        share = self.share[:, None, None, None]
        return share * image + (1 - share) * image[self.partner]

    def terms(
        self, loss: Callable[[PyTree], dict[str, jax.Array]], outputs: PyTree
    ) -> dict[str, jax.Array]:
        """Loss of each image's own label in the two mixtures that contain the image.

        A label keeps the weight that the loss gives to it, also if the label of its partner is
        unknown. For labels that are all known, the sum equals that of the usual formula.

        Args:
          loss: outputs -> `{name: [B]}`, against the labels of the batch.
          outputs: of the mixtures, `[B, ...]` each.

        Returns:
          `{name: [B]}`, λ-weighted sums over the two mixtures.
        """
        holder = jnp.argsort(self.partner)  # Image j is the partner in mixture holder[j].
        own, lent = loss(outputs), loss(jax.tree.map(lambda x: x[holder], outputs))
        rest = 1 - self.share[holder]
        return {name: self.share * own[name] + rest * lent[name] for name in own}


def draw(key: jax.Array, batch_size: int, alpha: float) -> Mixing:
    """Random pairs, with λ from a Beta(α, α) distribution."""
    order, share = jax.random.split(key)
    return Mixing(
        partner=jax.random.permutation(order, batch_size),
        share=jax.random.beta(share, alpha, alpha, (batch_size,)),
    )
