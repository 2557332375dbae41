"""Grad-CAM (Selvaraju et al., ICCV 2017): where on the film a decision came from.

The gradient of a head with respect to the encoder's last map is `jax.grad`: no hooks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from data_pipeline.loader import FilmSource
from data_pipeline.manifest import Records
from infantxray.evaluation.metrics import Predictions
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.training import augment


@dataclasses.dataclass(frozen=True)
class Example:
    """One film with its saliency.

    Attributes:
      image: uint8 `[S, S]`.
      saliency: `[S, S]`, in [0, 1].
      truth: name of the true condition.
      predicted: name of the predicted one.
      probability: that the model gives the predicted condition.
    """

    image: np.ndarray
    saliency: np.ndarray
    truth: str
    predicted: str
    probability: float


def saliency(model: DiagnosisModel, variables, image: jax.Array, target: jax.Array) -> jax.Array:
    """Saliency of one condition for each film.

    Args:
      model: of stage two.
      variables: its parameters and statistics.
      image: uint8 `[B, S, S, 1]`.
      target: int `[B]`, the condition to explain.

    Returns:
      `[B, S/32, S/32]`, the positive part of the gradient-weighted last map, each scaled to a
      maximum of 1 (all zero where nothing speaks for the condition).
    """
    x = augment.normalise(augment.to_intensity(image))
    latent = model.apply(variables, x, method=DiagnosisModel.latent).astype(jnp.float32)

    def score(latent):
        logits = model.apply(variables, latent, method=DiagnosisModel.heads)["logits"]
        return jnp.take_along_axis(logits, target[:, None], axis=1).sum()

    weights = jax.grad(score)(latent).mean(axis=(1, 2), keepdims=True)
    cam = jax.nn.relu((weights * latent).sum(-1))
    return cam / jnp.maximum(cam.max(axis=(1, 2), keepdims=True), 1e-12)


def examples(
    model: DiagnosisModel,
    variables,
    source: FilmSource,
    predictions: Predictions,
    records: Records,
) -> list[Example]:
    """One film a class: of those that carry it, the one the model is surest of its answer for.

    Right or wrong: a confident mistake teaches as much as a confident hit.
    """
    if not predictions.classes:
        return []
    row_of = {path: row for row, path in enumerate(source.records.image_path)}
    confidence = predictions.probabilities.max(1)
    chosen = [
        int(rows[np.argmax(confidence[rows])])
        for k in range(len(predictions.classes))
        if len(rows := np.flatnonzero(predictions.label == k))
    ]
    if not chosen:
        return []
    image = np.stack([source[row_of[records.image_path[i]]]["image"] for i in chosen])
    target = predictions.probabilities[chosen].argmax(1)
    maps = np.asarray(jax.jit(saliency, static_argnums=0)(model, variables, image, target))
    size = image.shape[1:3][::-1]
    return [
        Example(
            image=image[j, ..., 0],
            saliency=np.clip(
                np.asarray(Image.fromarray(maps[j]).resize(size, Image.Resampling.BICUBIC)), 0, 1
            ),
            truth=predictions.classes[int(predictions.label[i])],
            predicted=predictions.classes[int(target[j])],
            probability=float(confidence[i]),
        )
        for j, i in enumerate(chosen)
    ]
