"""The exported function: from an image to calibrated probabilities, age, features and saliency."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infantxray.models.diagnosis import DiagnosisModel
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import build_model
from infantxray.training.augment import normalise

PyTree = Any


def answer_function(
    spec: ModelSpec, variables: PyTree, temperature: float | tuple[float, ...] | None = None
) -> tuple[Callable[[jax.Array], tuple[jax.Array, ...]], tuple[str, ...]]:
    """The function that is exported, with the weights inside, and the names of its outputs.

    It computes in float32, as the parameters are, also if the model was trained in bfloat16: ONNX
    Runtime has no convolution of bfloat16 on CPUs.

    Saliency is the class activation map (Zhou et al., CVPR 2016): what each cell of the last map
    adds to a logit.

    Args:
      spec: specification of the model.
      variables: its parameters and statistics.
      temperature: temperature of the softmax, or of each sigmoid; None = 1.

    Returns:
      A function of greys 0 to 255, `[B, S, S, 1]`, and the names of what it returns, in order:
      `probabilities` `[B, K]`, `age_months` `[B]`, `features` `[B, C]`, `saliency` `[B, K, h, w]`.
      The first and last are left out without conditions, ages without an age head.
    """
    model = build_model(dataclasses.replace(spec, dtype="float32"))
    variables = jax.tree.map(np.asarray, variables)

    def heads(latent: jax.Array, age: jax.Array | None = None) -> dict[str, jax.Array]:
        return model.apply(variables, latent, age, method=DiagnosisModel.heads)  # type: ignore

    # The logits are an affine function of the pooled map: its slope is `[K, C]`. It is computed
    # here, because converters replace layers by other operations, without derivatives.
    slope = np.zeros((0, 0))
    if spec.classes and not spec.age_film:
        channels = model.encoder.num_features
        gradient = jax.jacobian(lambda z: heads(z[None, None, None])["logits"][0])
        slope = np.asarray(gradient(np.zeros(channels, np.float32)))

    scale = np.asarray(temperature or 1.0, np.float32).reshape(1, -1)

    def answer(image: jax.Array) -> tuple[jax.Array, ...]:
        x = normalise(image.astype(jnp.float32) / 255.0, spec.input_mean, spec.input_std)
        latent: Any = model.apply(variables, x, method=DiagnosisModel.latent)
        outputs = heads(latent)
        result = []
        if spec.classes:
            logits = outputs["logits"] / scale
            result.append(jax.nn.sigmoid(logits) if spec.multi_label else jax.nn.softmax(logits))
        if spec.has_age:
            result.append(spec.age_in_months(outputs["age"]))
        result.append(latent.mean(axis=(1, 2), dtype=jnp.float32))
        if spec.classes:
            result.append(activation(latent.astype(jnp.float32), outputs))
        return tuple(result)

    def activation(latent: jax.Array, outputs: dict[str, jax.Array]) -> jax.Array:
        if not spec.age_film:
            return jnp.einsum("bhwc,kc->bkhw", latent, slope)
        height, width = latent.shape[1:3]  # The slope depends on the age: cell by cell.
        empty = heads(jnp.zeros_like(latent[:, :1, :1]), outputs["age"])["logits"]
        cells = [
            heads(latent[:, i : i + 1, j : j + 1], outputs["age"])["logits"] - empty
            for i in range(height)
            for j in range(width)
        ]
        return jnp.stack(cells, axis=-1).reshape(-1, len(spec.classes), height, width)

    conditions = ("probabilities",) if spec.classes else ()
    age = ("age_months",) if spec.has_age else ()
    return answer, (*conditions, *age, "features", *(("saliency",) if spec.classes else ()))
