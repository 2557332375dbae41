"""The denoising autoencoder: rebuild the image from a noisy copy.

Vincent et al., "Stacked denoising autoencoders", JMLR 11, 2010.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from infantxray.stage_one.objectives.base import PyTree
from infantxray.stage_one.objectives.l1 import L1
from infantxray.training import losses
from infantxray.training.augment import example_keys


class Denoise(L1):
    """`mean |I - D(E(I + noise))|`, in units of the full intensity range; else the same as L1."""

    name = "denoise"
    panel_names: tuple[str, ...] = ("input", "noisy", "reconstruction", "difference")

    def _add_noise(self, image: jax.Array, key: jax.Array) -> jax.Array:
        keys = example_keys(key, image.shape[0])
        noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)
        return image + self.settings.noise * noise

    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        noisy = self._add_noise(image, key)
        reconstruction, batch_stats = self._reconstruct(variables, noisy, train=train)
        return losses.l1(reconstruction, image), batch_stats

    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        noisy = self._add_noise(image, jax.random.key(0))
        reconstruction = jnp.clip(self._reconstruct(variables, noisy, train=False)[0], 0.0, 1.0)
        return image, jnp.clip(noisy, 0.0, 1.0), reconstruction, jnp.abs(image - reconstruction)
