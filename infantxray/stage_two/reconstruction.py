"""Reconstruction error of stage one's autoencoder, as a second sign of unusual images.

An autoencoder rebuilds images like those that it was trained on. The threshold is a quantile of the
errors on validation images of stage two, and is stored in `reconstruction.json` on first use.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.splits import read_split
from infantxray.runs import workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one.restoring import RECONSTRUCTING, reconstruct_function, restore
from infantxray.stage_two.transfer import is_workdir
from infantxray.stage_two.trust_fitting import MIN_VALIDATION, reader_of
from infantxray.training import augment, processes
from infantxray.training.batches import map_batches

FILE = "reconstruction.json"
_QUANTILE = 0.99  # Of validation images.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReconstructionError:
    """`mean |I - Î|` of images, in units of the full intensity range.

    Attributes:
      error: jitted, from variables and images uint8 `[B, S, S, 1]` to `[B]`.
      variables: variables of the autoencoder.
      threshold: larger errors are unlike the training images.
    """

    error: Any
    variables: Any
    threshold: float = float("inf")

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.error(self.variables, image)


def for_workdir(folder: str, spec: ModelSpec, *, batch_size: int = 32) -> ReconstructionError:
    """The autoencoder that a run of stage two started from, with its threshold.

    Raises:
      UserError: the run did not start from an autoencoder that reads images in the same way, or
        its validation images are gone or fewer than 50.
    """
    folder = os.path.expanduser(folder)
    stage_one = workdir.read_config(folder).get("pretrained", "")
    if not is_workdir(stage_one):
        raise UserError(
            f"{folder} did not start from a stage-one workdir that is still there "
            f"({stage_one or 'random weights'}); leave out config.reconstruction"
        )
    found, variables, _ = restore(stage_one)
    if found.objective not in RECONSTRUCTING or found.preprocessing != spec.preprocessing:
        raise UserError(
            f"{stage_one} is not an autoencoder of the same images (objective {found.objective}, "
            f"{found.preprocessing.image_size} px); leave out config.reconstruction"
        )
    reconstruct = reconstruct_function(found)

    def error(variables: Any, image: jax.Array) -> jax.Array:
        return jnp.abs(reconstruct(variables, image) - augment.to_intensity(image)).mean((1, 2, 3))

    unlimited = ReconstructionError(jax.jit(error), variables)
    path = os.path.join(folder, FILE)
    if os.path.exists(path):
        threshold = float(workdir.read_json(folder, FILE)["threshold"])
        return dataclasses.replace(unlimited, threshold=threshold)
    validation = read_split(os.path.join(folder, "split.csv")).validation
    _log.info("reconstruction errors of %d validation images", len(validation))
    batches = map_batches(
        lambda image, _: unlimited(image),
        reader_of(folder, spec)(validation),
        batch_size=batch_size,
        num_threads=4,
    )
    errors = np.concatenate([np.zeros(0), *(part for part, _ in batches)])
    if len(errors) < MIN_VALIDATION:
        raise UserError(
            f"{len(errors)} validation images of {folder} can be read, fewer than {MIN_VALIDATION}"
        )
    threshold = float(np.quantile(errors, _QUANTILE))
    values = {"threshold": threshold, "n_validation": len(errors)}
    try:
        if processes.is_main():
            write_json(path, values, checksum=True)
    except OSError as problem:
        _log.warning("%s cannot be written to (%s): fitted for this command only", folder, problem)
    return dataclasses.replace(unlimited, threshold=threshold)
