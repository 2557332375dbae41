"""Diagnosis model of stage two: condition (MCD) and age (APN) from the encoder's last map Z."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infantxray.models.encoders import has_batchnorm
from infantxray.models.encoders.layers import MOMENTUM

AGE_BINS = 41  # of distribution regression: five months each, from 0 to 18 years


class AgePredictionNet(nn.Module):
    """Age from the pooled last map, by one hidden layer.

    The paper gives no layer sizes; one hidden layer of 256 is the customary regression head.

    Attributes:
      hidden_features: width of the hidden layer.
      age_range: None for one number (the paper); or the lowest and the highest standardised age:
        the network then spreads a probability over `AGE_BINS` ages between them, and its age is
        the mean of that distribution (Gao et al., "Age estimation using expectation of label
        distribution learning", IJCAI 2018).
      dtype: dtype of the computation.
    """

    hidden_features: int = 256
    age_range: tuple[float, float] | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array) -> dict[str, jax.Array]:
        """Pooled map `[B, C]` -> `age` `[B]`, standardised by the training set, float32.

        With `age_range` also `age_logits` `[B, AGE_BINS]`.
        """
        x = nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(pooled)
        x = nn.relu(x)
        # Small: before training every prediction is near the training set's mean age.
        init = nn.initializers.normal(0.01)
        if self.age_range is None:
            return {"age": nn.Dense(1, dtype=jnp.float32, kernel_init=init, name="age")(x)[..., 0]}
        logits = nn.Dense(AGE_BINS, dtype=jnp.float32, kernel_init=init, name="age_bins")(x)
        return {"age": nn.softmax(logits) @ age_bins(self.age_range), "age_logits": logits}


def age_bins(age_range: tuple[float, float]) -> np.ndarray:
    """The ages `[AGE_BINS]` between which distribution regression spreads its probability."""
    return np.linspace(*age_range, AGE_BINS, dtype=np.float32)


class FiLM(nn.Module):
    """Feature-wise linear modulation: age, sex or view scale and shift the features of a head.

    What is normal depends on age: a large liver is a sign of disease at ten years and normal at
    ten days. Perez et al., AAAI 2018.

    Attributes:
      hidden_features: width of the hidden layer.
      dtype: dtype of the computation.
    """

    hidden_features: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, known: jax.Array) -> jax.Array:
        """Pooled map `[B, C]` and what is known `[B, D]` -> `[B, C]`; at first unchanged."""
        x = nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(known)
        x = nn.relu(x)
        init = nn.initializers.zeros
        x = nn.Dense(2 * pooled.shape[-1], dtype=self.dtype, kernel_init=init, name="film")(x)
        scale, shift = jnp.split(x, 2, axis=-1)
        return pooled * (1.0 + scale) + shift


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

    The pooled map of an encoder that has no BatchNorm (VGG19) goes through a separate BatchNorm.

    Attributes:
      encoder: see `infantxray.models.create_encoder`.
      num_classes: how many conditions; with 0 there is no condition head (age alone).
      age_head: whether AgePredictionNet is there.
      age_range: see `AgePredictionNet`.
      age_film: the condition is read from features that the age modulates; needs `age_head`.
      num_context: further inputs, such as sexes and views, that modulate the features of both
        heads; 0 = none.
      freeze_encoder: run the encoder with its running statistics and pass no gradient into it.
      dtype: dtype of the computation.
    """

    encoder: nn.Module
    num_classes: int
    age_head: bool = True
    age_range: tuple[float, float] | None = None
    age_film: bool = False
    num_context: int = 0
    freeze_encoder: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.num_classes:
            self.condition_head = ConditionHead(self.num_classes)
        if self.age_head:
            self.age_prediction_net = AgePredictionNet(age_range=self.age_range, dtype=self.dtype)
        if self.age_film:
            self.age_modulation = FiLM(dtype=self.dtype)
        if self.num_context:
            self.context_modulation = FiLM(dtype=self.dtype)
        if not has_batchnorm(self.encoder):
            # Nothing bounds the scale of such a last map in stage one, whose decoder normalises
            # its input: VGG19's grew to 1e10 in 300 steps.
            self.latent_norm = nn.BatchNorm(
                momentum=MOMENTUM, epsilon=1e-5, use_fast_variance=False
            )

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool,
        age: jax.Array | None = None,
        context: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Image `[B, H, W, 1]`, normalised -> `heads` of its last map."""
        latent = self.encoder(image, train=train and not self.freeze_encoder)[-1]
        if self.freeze_encoder:
            latent = jax.lax.stop_gradient(latent)
        return self.heads(latent, age, context, train=train)

    def latent(self, image: jax.Array) -> jax.Array:
        """Image `[B, H, W, 1]` -> last map `[B, H/32, W/32, C]`, in inference mode."""
        return self.encoder(image, train=False)[-1]

    def heads(
        self,
        latent: jax.Array,
        age: jax.Array | None = None,
        context: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Last map `[B, h, w, C]` -> `logits` `[B, K]` and `age` `[B]` (standardised), float32.

        Saliency differentiates this with respect to the map.

        Args:
          latent: last map.
          age: standardised, `[B]`, NaN = unknown. `age_film` uses it in training, so that the
            condition head does not learn from the first, wrong predictions. Where it is unknown,
            and in use, the predicted age replaces it.
          context: further inputs `[B, num_context]`; zeros, and None, where nothing is known.
          train: normalise by this batch, where the encoder has no BatchNorm.
        """
        # Logits are computed in float32: so is the mean that they are read from.
        pooled = latent.mean(axis=(1, 2), dtype=jnp.float32)
        if not has_batchnorm(self.encoder):
            pooled = self.latent_norm(pooled, use_running_average=not train)
        if self.num_context:
            if context is None:
                context = jnp.zeros((pooled.shape[0], self.num_context), jnp.float32)
            pooled = self.context_modulation(pooled, context)
        outputs = self.age_prediction_net(pooled) if self.age_head else {}
        if self.num_classes:
            features = pooled
            if self.age_film:
                # The condition's loss must not change the predicted age.
                shown = jax.lax.stop_gradient(outputs["age"])
                if age is not None:
                    shown = jnp.where(jnp.isfinite(age), jnp.nan_to_num(age), shown)
                features = self.age_modulation(pooled, shown[:, None])
            outputs["logits"] = self.condition_head(features)
        return outputs
