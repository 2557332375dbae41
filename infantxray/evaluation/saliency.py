"""Grad-CAM (Selvaraju et al., ICCV 2017): where on the image a decision came from.

The gradient of a head with respect to the encoder's last map is `jax.grad`: no hooks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from data_pipeline.decode import PHANTOM_PREFIX
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from data_pipeline.phantom import Box, truth
from infantxray.evaluation.metrics import Predictions
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.training import augment

_LOCALISED = 8  # Images of a condition.


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with its saliency.

    Attributes:
      image: uint8 `[S, S]`.
      saliency: `[S, S]`, in [0, 1].
      truth: name of the true condition.
      predicted: name of the predicted one.
      probability: that the model gives the predicted condition.
      box: where the finding is; None where nobody knows.
    """

    image: np.ndarray
    saliency: np.ndarray
    truth: str
    predicted: str
    probability: float
    box: Box | None = None


def saliency(model: DiagnosisModel, variables, image: jax.Array, target: jax.Array) -> jax.Array:
    """Saliency of one condition for each image.

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
    source: ImageSource,
    predictions: Predictions,
    records: Records,
) -> list[Example]:
    """One image a class: of those that carry it, the one the model is surest of its answer for.

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
    maps = _full_size(model, variables, image, target)
    return [
        Example(
            image=image[j, ..., 0],
            saliency=maps[j],
            truth=predictions.classes[int(predictions.label[i])],
            predicted=predictions.classes[int(target[j])],
            probability=float(confidence[i]),
            box=_true_box(records.image_path[i], image.shape[1]),
        )
        for j, i in enumerate(chosen)
    ]


def _true_box(path: str, size: int) -> Box | None:
    """Where the finding of a phantom image is; None for other images and those without a place."""
    boxes = truth(path, size).boxes if path.startswith(PHANTOM_PREFIX) else ()
    return boxes[0] if boxes else None


_saliency = jax.jit(saliency, static_argnums=0)


def _full_size(model: DiagnosisModel, variables, image: np.ndarray, target: np.ndarray):
    """`saliency` as large as the images, `[B, S, S]`."""
    maps = np.asarray(_saliency(model, variables, image, target))
    size = image.shape[1:3][::-1]
    large = [Image.fromarray(m).resize(size, Image.Resampling.BICUBIC) for m in maps]
    return np.clip(np.stack([np.asarray(m) for m in large]), 0, 1)


def localisation(
    model: DiagnosisModel,
    variables,
    source: ImageSource,
    predictions: Predictions,
    records: Records,
) -> dict[str, float] | None:
    """Whether the saliency of the true condition lies where the finding is, on phantom images.

    Returns:
      `n` images, the first eight of each condition that has a place; `pointing_game`, the share of
      them whose most salient pixel lies in the finding's box (Zhang et al., ECCV 2016); and
      `mass_in_box`, the mean share of the saliency within it. Saliency that is spread evenly
      gives `box_share`, the mean share of the image that the box takes. None without such images.
    """
    count = len(predictions.classes)
    row_of = {path: row for row, path in enumerate(source.records.image_path)}
    images = []
    for k in range(count):
        of_class = np.flatnonzero(predictions.label == k)
        for i in of_class[:_LOCALISED]:
            example = source[row_of[records.image_path[i]]]["image"]
            box = _true_box(records.image_path[i], example.shape[0])
            if box:
                images.append((example, k, box))
    if not images:
        return None
    hits, mass, share = [], [], []
    for at in range(0, len(images), count):
        part = images[at : at + count]
        # As many images at a time as `examples` has, so that nothing new is compiled.
        padded = [part[min(i, len(part) - 1)] for i in range(count)]
        image = np.stack([example for example, _, _ in padded])
        maps = _full_size(model, variables, image, np.array([k for _, k, _ in padded]))
        for found, (_, _, box) in zip(maps, part, strict=False):
            inside = np.zeros(found.shape, bool)
            inside[box.y0 : box.y1, box.x0 : box.x1] = True
            hits.append(found.max() > 0 and bool(inside.flat[found.argmax()]))
            mass.append(found[inside].sum() / found.sum() if found.sum() > 0 else 0.0)
            share.append(inside.mean())
    return {
        "n": len(images),
        "pointing_game": float(np.mean(hits)),
        "mass_in_box": float(np.mean(mass)),
        "box_share": float(np.mean(share)),
    }
