"""Autoencoder of stage one: image I -> encoder E -> last map Z -> decoder D -> image Î."""

from __future__ import annotations

import flax.linen as nn
import jax


class Autoencoder(nn.Module):
    """An encoder and a decoder that rebuilds the image from the last map alone.

    There are no skip connections: an unmasked autoencoder that has them copies its input and
    learns nothing.

    Attributes:
      encoder: see `infantxray.models.create_encoder`.
      decoder: last map `[B, H/32, W/32, C]` -> image `[B, H, W, 1]`.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Image `[B, H, W, 1]`, normalised -> its reconstruction, of the same shape and scale."""
        latent = self.encoder(image, train=train)[-1]
        return self.decoder(latent, train=train)
