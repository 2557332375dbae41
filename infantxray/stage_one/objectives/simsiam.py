"""SimSiam: two views of an image should have the same representation.

Chen and He, "Exploring simple Siamese representation learning", CVPR 2021.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infantxray.models.heads import Siamese
from infantxray.stage_one.objectives.base import Objective, ObjectiveSettings, PyTree
from infantxray.stage_one.objectives.views import two_views
from infantxray.training.augment import normalise


class SimSiam(Objective):
    """`1 - cos(prediction of one view, projection of the other)`, mean over both directions.

    0 is perfect agreement, 1 none. No gradient flows into the projection; that, and its batch
    normalisation, keep all images from being projected to one point.

    SimSiam suits small batches, because the loss of an image depends on that image alone.
    Contrastive objectives need many other images. VICReg and Barlow Twins estimate covariances of
    hundreds of features, which 16 images cannot support, and would count the padding of a
    validation batch. `byol` adds a second, averaged network.
    """

    name = "simsiam"
    panel_names: tuple[str, ...] = ("input", "first_view", "second_view")

    def __init__(self, encoder: nn.Module, dtype: Any, settings: ObjectiveSettings):
        super().__init__(encoder, dtype, settings)
        self.model = Siamese(encoder, dtype=dtype)

    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        views = two_views(image, key, self.settings)
        # Both views of an image stay on its device; BatchNorm sees all of them at once.
        both = normalise(views.reshape(-1, *image.shape[1:]))
        (projection, prediction), updated = self.model.apply(
            variables, both, train=train, mutable=["batch_stats"]
        )
        return agreement(projection, prediction), updated["batch_stats"]

    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        del variables
        views = two_views(image, jax.random.key(0), self.settings)
        return image, views[:, 0], views[:, 1]


def agreement(projection: jax.Array, prediction: jax.Array) -> jax.Array:
    """Loss `[B]` of two views an image, `[2 B, D]` each: no gradient enters the projection."""
    projection = jax.lax.stop_gradient(_unit(projection.reshape(-1, 2, projection.shape[-1])))
    prediction = _unit(prediction.reshape(-1, 2, prediction.shape[-1]))
    cosine = (prediction * projection[:, ::-1]).sum(axis=-1)  # [B, 2]
    return 1.0 - cosine.mean(axis=1)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)
