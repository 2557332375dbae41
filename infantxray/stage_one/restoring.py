"""Trained models of stage one: restoring them, and reconstructing images with an autoencoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.errors import UserError
from infantxray.models import create_encoder
from infantxray.runs import workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one.objectives import OBJECTIVES, Objective, ObjectiveSettings
from infantxray.training import augment, checkpoints, partial_restore

PyTree = Any

RECONSTRUCTING = ("l1", "denoise")  # Objectives whose model is an autoencoder of images.


def restore(folder: str) -> tuple[ModelSpec, PyTree, int]:
    """The specification, the variables and the step of the last checkpoint.

    Raises:
      UserError: the folder is no workdir, or has no checkpoint.
    """
    spec = ModelSpec.read(folder)
    if not spec.objective:  # A run of an earlier version.
        objective = workdir.read_config(folder).get("objective", "")
        spec = dataclasses.replace(spec, objective=objective)
    steps = checkpoints.checkpoint_steps(folder)
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet; run configs/pretrain.py to its end")
    size = spec.preprocessing.image_size
    module = make_objective(spec).model
    abstract = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False)
    )
    return spec, partial_restore.restore_variables(folder, steps[-1], abstract)[0], steps[-1]


def make_objective(spec: ModelSpec) -> Objective:
    """The objective of a model of stage one; an unknown one counts as an autoencoder."""
    dtype = jnp.dtype(spec.dtype)
    kind = OBJECTIVES.get(spec.objective, OBJECTIVES["l1"])
    settings = ObjectiveSettings(image_size=spec.preprocessing.image_size, noise=0.0)
    return kind(create_encoder(spec.encoder, dtype=dtype), dtype, settings)


def reconstruct_function(spec: ModelSpec) -> Callable[[PyTree, jax.Array], jax.Array]:
    """The function from variables and images uint8 `[B, S, S, 1]` to reconstructions in [0, 1]."""
    objective = make_objective(spec)

    def reconstruct(variables: PyTree, image: jax.Array) -> jax.Array:
        panels = objective.panels(variables, augment.to_intensity(image))
        return panels[objective.panel_names.index("reconstruction")]

    return reconstruct
