"""Stage one as a training task: an objective's loss, on augmented images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import ImageSource
from infantxray.models.encoders import has_batchnorm
from infantxray.stage_one.objectives import Objective
from infantxray.training import augment
from infantxray.training.augment import Augmentation
from infantxray.training.batches import map_batches
from infantxray.training.train_step import Task

PyTree = Any


def make_task(
    objective: Objective,
    validation: ImageSource,
    augmentation: Augmentation,
    *,
    batch_size: int,
    num_threads: int,
    seed: int,
) -> Task:
    """The task of training one objective.

    Args:
      objective: objective of stage one.
      validation: images on which the mean loss is computed.
      augmentation: augmentation of training images, before the objective changes them.
      batch_size: validation images at a time on each device.
      num_threads: number of decoding threads.
      seed: seed of what is random in validation: the same masks every time.
    """
    size = objective.settings.image_size

    def init(key: jax.Array) -> PyTree:
        return objective.init(key, jnp.zeros((1, size, size, 1)))

    def losses(params: PyTree, batch_stats: PyTree, batch: Any, key: jax.Array) -> Any:
        augment_key, loss_key = jax.random.split(key)
        image = augment.to_intensity(batch["image"])
        image = augment.augment(image, augment_key, augmentation)
        variables = {"params": params, "batch_stats": batch_stats}
        values, batch_stats = objective.loss(variables, image, loss_key, train=True)
        return {objective.name: values}, batch_stats

    @jax.jit
    def validation_loss(variables: PyTree, image: jax.Array, key: jax.Array) -> jax.Array:
        return objective.loss(variables, augment.to_intensity(image), key, train=False)[0]

    def evaluate(variables: PyTree) -> dict[str, float]:
        key = jax.random.key(seed)
        batches = map_batches(
            lambda image, _: validation_loss(variables, image, key),
            validation,
            batch_size=batch_size,
            num_threads=num_threads,
        )
        losses = np.concatenate([np.zeros(0), *(values for values, _ in batches)])
        return {objective.name: float(losses.mean()) if len(losses) else float("nan")}

    return Task(
        init=init,
        weights=lambda batch: {objective.name: batch["mask"]},
        losses=losses,
        coefficients={objective.name: 1.0},
        evaluate=evaluate,
        after_step=objective.after_step,
    )


def learning_rate_factors(encoder: nn.Module, factor: float, params: PyTree) -> PyTree | None:
    """What multiplies the learning rate of each parameter; None = 1 for all.

    Args:
      encoder: encoder of stage one.
      factor: of its parameters where it has no BatchNorm.
      params: of the objective's model.
    """
    if has_batchnorm(encoder):
        return None
    factors = jax.tree.map(lambda _: 1.0, params)
    factors["encoder"] = jax.tree.map(lambda _: factor, params["encoder"])
    return factors
