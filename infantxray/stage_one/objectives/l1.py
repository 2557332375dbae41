"""The paper's objective: rebuild the image, mean absolute error (Equation 1)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infantxray.models import Decoder
from infantxray.models.autoencoder import Autoencoder
from infantxray.stage_one.objectives.base import Objective, ObjectiveSettings, PyTree
from infantxray.training import losses
from infantxray.training.augment import denormalise, normalise


class L1(Objective):
    """`mean |I - Î|`, in units of the full intensity range: 0.02 is 5 of 255 grey levels."""

    name = "l1"
    panel_names: tuple[str, ...] = ("input", "reconstruction", "difference")

    def __init__(self, encoder: nn.Module, dtype: Any, settings: ObjectiveSettings):
        super().__init__(encoder, dtype, settings)
        self.model = Autoencoder(encoder, Decoder(dtype=dtype))

    def _reconstruct(
        self, variables: PyTree, image: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        output, updated = self.model.apply(
            variables, normalise(image), train=train, mutable=["batch_stats"]
        )
        return denormalise(output.astype(jnp.float32)), updated["batch_stats"]

    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        del key  # Nothing here is random.
        reconstruction, batch_stats = self._reconstruct(variables, image, train=train)
        return losses.l1(reconstruction, image), batch_stats

    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        reconstruction = jnp.clip(self._reconstruct(variables, image, train=False)[0], 0.0, 1.0)
        return image, reconstruction, jnp.abs(image - reconstruction)
