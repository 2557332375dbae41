"""Heads of stage one's objectives that do not rebuild the image: cell features and SimSiam."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from infantxray.models.encoders import layers


class CellHead(nn.Module):
    """Predicts features of cells that are finer than the last map: two convolutions.

    The first sees a position and its neighbours. The second predicts the features of all cells
    that the position covers; a rearrangement puts them in place. Upsampling the map instead
    cannot distinguish the cells of one position: at 64 px there are only 2 x 2 positions.

    Attributes:
      cells: along the side of one position of the last map.
      features: number of features of one cell.
      width: channels between the two convolutions.
      dtype: dtype of the computation.
    """

    cells: int
    features: int
    width: int = 256
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, latent: jax.Array, *, train: bool) -> jax.Array:
        """Map `[B, h, w, C]` -> `[B, cells h, cells w, features]`, near zero at first."""
        x = layers.Conv(self.width, 3, dtype=self.dtype, name="conv")(latent)
        x = layers.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        x = layers.Conv(
            self.cells**2 * self.features,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1e-3, "fan_in", "normal"),
            name="output",
        )(nn.relu(x))
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height, width, self.cells, self.cells, self.features)
        x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, h, cells, w, cells, features]
        return x.reshape(batch, self.cells * height, self.cells * width, self.features)


class Siamese(nn.Module):
    """SimSiam's network: encoder, projector, and the predictor of one view from the other.

    Attributes:
      encoder: see `infantxray.models.create_encoder`.
      features: width of a projection. The paper has 2048 and an encoder of that width; half of
        it saves two thirds of the weights beside the encoder's.
      dtype: dtype of the computation.
    """

    encoder: nn.Module
    features: int = 1024
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Image `[B, H, W, 1]`, normalised -> projection and prediction, float32 `[B, D]`."""

        def layer(x: jax.Array, width: int, name: str) -> jax.Array:
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)
            x = layers.BatchNorm(
                use_running_average=not train, dtype=self.dtype, name=f"{name}_norm"
            )(x)
            return nn.relu(x)

        x = self.encoder(image, train=train)[-1].mean(axis=(1, 2))
        x = layer(x, self.features, "projector1")
        x = layer(x, self.features, "projector2")
        x = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="projector3")(x)
        # Without a learned offset, which could grow until all projections are alike.
        projection = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            dtype=jnp.float32,
            use_scale=False,
            use_bias=False,
            name="projector3_norm",
        )(x)
        x = layer(projection, self.features // 4, "predictor1")
        prediction = nn.Dense(self.features, dtype=self.dtype, name="predictor2")(x)
        return projection, prediction.astype(jnp.float32)
