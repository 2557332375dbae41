"""Stage two: from the encoder's last map Z to the condition (MCD) and the age (APN)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class AgePredictionNet(nn.Module):
    """Age from the pooled last map, by one hidden layer.

    The paper gives no layer sizes; one hidden layer of 256 is the customary regression head.

    Attributes:
      hidden_features: width of the hidden layer.
      dtype: of the computation.
    """

    hidden_features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Pooled map `[B, C]` -> age `[B]`, standardised by the training set, float32."""
        x = nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(pooled)
        x = nn.relu(x)
        # Small: before training everybody is about as old as the training set's mean.
        init = nn.initializers.normal(0.01)
        return nn.Dense(1, dtype=jnp.float32, kernel_init=init, name="age")(x)[..., 0]


class ConditionHead(nn.Module):
    """Medical condition diagnosis: one linear layer on the pooled last map.

    Attributes:
      num_classes: how many conditions.
    """

    num_classes: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Pooled map `[B, C]` -> logits `[B, num_classes]`, float32."""
        # Small: before training every condition is about equally likely.
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, name="logits")(
            pooled
        )


class DiagnosisModel(nn.Module):
    """Encoder, condition head and, unless switched off, AgePredictionNet.

    Attributes:
      encoder: see `infantxray.models.create_encoder`.
      num_classes: how many conditions; with 0 there is no condition head (age alone).
      age_head: whether AgePredictionNet is there.
      freeze_encoder: run the encoder with its running statistics and pass no gradient into it.
      dtype: of the computation.
    """

    encoder: nn.Module
    num_classes: int
    age_head: bool = True
    freeze_encoder: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        if self.num_classes:
            self.condition_head = ConditionHead(self.num_classes)
        if self.age_head:
            self.age_prediction_net = AgePredictionNet(dtype=self.dtype)

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Image `[B, H, W, 1]`, normalised -> `heads` of its last map."""
        latent = self.encoder(image, train=train and not self.freeze_encoder)[-1]
        if self.freeze_encoder:
            latent = jax.lax.stop_gradient(latent)
        return self.heads(latent)

    def latent(self, image: jax.Array) -> jax.Array:
        """Image `[B, H, W, 1]` -> last map `[B, H/32, W/32, C]`, in inference mode."""
        return self.encoder(image, train=False)[-1]

    def heads(self, latent: jax.Array) -> dict[str, jax.Array]:
        """Last map `[B, h, w, C]` -> `logits` `[B, K]` and `age` `[B]` (standardised), float32.

        Saliency differentiates this with respect to the map.
        """
        pooled = latent.mean(axis=(1, 2))
        outputs = {}
        if self.num_classes:
            outputs["logits"] = self.condition_head(pooled)
        if self.age_head:
            outputs["age"] = self.age_prediction_net(pooled)
        return outputs
