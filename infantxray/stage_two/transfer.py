"""Transfer from stage one: its encoder, and the patients that it has seen."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax

from data_pipeline.conditions import check_tested
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.splits import Split, check_unseen
from infantxray.models import create_encoder
from infantxray.models.depth import pyramid_level
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.encoders import has_batchnorm
from infantxray.models.initialisation import initialise
from infantxray.models.torch_weights import import_encoder, read_encoder
from infantxray.runs import workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import build_model, init_variables
from infantxray.training import checkpoints, partial_restore

PyTree = Any

_log = logging.getLogger(__name__)

# The weights of the tasks are a few numbers that move far: at the learning rate of the network they
# stay within a third of their start.
_TASK_WEIGHTING_FACTOR = 30.0


def is_workdir(pretrained: str) -> bool:
    """Whether `pretrained` names a workdir: neither empty (random weights) nor `torch:FILE`."""
    return bool(pretrained) and not pretrained.startswith("torch:")


def check_stage_one(pretrained: str, encoder: str, preprocessing: Preprocessing) -> None:
    """Refuses an unsuitable stage one before anything is loaded.

    Args:
      pretrained: its workdir, `torch:FILE`, or empty.
      encoder: name of the encoder of stage two.
      preprocessing: of stage two.

    Raises:
      UserError: it has another encoder, or no checkpoint.
    """
    if not is_workdir(pretrained):
        return
    spec = ModelSpec.read(pretrained)
    if spec.encoder != encoder:
        raise UserError(
            f"{pretrained} was trained with encoder {spec.encoder}, and config.encoder is "
            f"{encoder}; they must be the same"
        )
    if not checkpoints.checkpoint_steps(pretrained):
        raise UserError(
            f"{pretrained} has no checkpoint yet; run configs/pretrain.py with "
            f"--workdir={pretrained} first"
        )
    if not checkpoints.is_finished(pretrained):
        _log.warning("stage one in %s is not finished: using its latest step", pretrained)
    if spec.preprocessing != preprocessing:
        _log.warning(
            "stage one used different preprocessing: %s; stage two: %s",
            spec.preprocessing,
            preprocessing,
        )


def check_scored(
    pretrained: str, split: Split, roles: tuple[str, ...], *, patient_ids: str
) -> None:
    """Raises `DataError` if no image is left for testing, or stage one trained on scored patients.

    Args:
      pretrained: see `check_stage_one`.
      split: split of stage two.
      roles: scored roles: `"validation"`, `"test"`.
      patient_ids: see `Records.with_patients`.
    """
    for role in roles:
        if role == "test":
            check_tested(split)
        for place in walk(pretrained):
            check_unseen(
                os.path.join(os.path.expanduser(place), "split.csv"),
                split[role],
                patient_ids,
                f"stage one must not see the patients scored here ({role}), but it trained on",
            )


def walk(pretrained: str) -> Iterator[str]:
    """The workdirs of a stage one and of the runs that it started from, the last run first.

    Raises:
      UserError: the run that was yielded last is no longer there.
    """
    found: set[str] = set()
    while is_workdir(pretrained) and pretrained not in found:
        found.add(pretrained)
        yield pretrained
        pretrained = workdir.read_config(pretrained).get("pretrained", "")


def used_labels(pretrained: str) -> bool:
    """Whether weights come from a run, or a chain of runs, that learned from labels."""
    if not is_workdir(pretrained):
        return False
    spec = ModelSpec.read(pretrained)
    return spec.source_labels or spec.has_heads


def check_input_scale(spec: ModelSpec, pretrained: str) -> None:
    """Refuses weights for stage one that were trained with another input scale."""
    other = with_input_scale(spec, pretrained)
    if other != spec:
        raise UserError(
            f"config.pretrained={pretrained} expects images of mean {other.input_mean:.3g} and "
            f"standard deviation {other.input_std:.3g}; stage one has one input scale. Start stage "
            "two from these weights"
        )


def with_input_scale(spec: ModelSpec, pretrained: str) -> ModelSpec:
    """The specification with the input scale that the pretrained weights were trained with."""
    if is_workdir(pretrained):
        other = ModelSpec.read(pretrained)
        return dataclasses.replace(spec, input_mean=other.input_mean, input_std=other.input_std)
    if pretrained:
        _, scale = read_encoder(spec.encoder, _torch_file(pretrained))
        return dataclasses.replace(spec, input_mean=scale.mean, input_std=scale.std)
    return spec


def _torch_file(pretrained: str) -> str:
    return os.path.expanduser(pretrained.removeprefix("torch:"))


def untrained_model(spec: ModelSpec, pretrained: str, seed: int) -> tuple[DiagnosisModel, PyTree]:
    """The model that stage two starts from, with its variables.

    The encoder is that of `pretrained`; everything else has random weights.
    """
    model = build_model(spec)
    size = spec.preprocessing.image_size
    fresh = initialise(lambda key: init_variables(model, size, key), jax.random.key(seed))
    return model, start_from(pretrained, spec.encoder, fresh)


def start_from(pretrained: str, encoder: str, variables: PyTree) -> PyTree:
    """Puts the encoder of `pretrained` into fresh variables of stage two.

    Args:
      pretrained: see `check_stage_one`.
      encoder: its name.
      variables: `{"params": ..., "batch_stats": ...}`.
    """
    if not pretrained:
        _log.info("the encoder starts from random weights")
        return variables
    if not is_workdir(pretrained):
        for name, tree in import_encoder(encoder, _torch_file(pretrained)).items():
            if tree:
                variables[name] = {**variables[name], "encoder": tree}
        return variables
    # The last step, not the best: a lower loss of stage one does not mean a better start.
    step = checkpoints.checkpoint_steps(pretrained)[-1]
    variables, report = partial_restore.restore_variables(
        pretrained, step, variables, only="encoder"
    )
    _log.info("encoder of %s, step %d: %s", pretrained, step, report)
    return variables


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Learning rates of the parts of the model, relative to the optimizer's.

    Attributes:
      encoder: name of the encoder.
      freeze_encoder: do not train it.
      encoder_learning_rate_factor: of its parameters.
      factor_without_batchnorm: of those of an encoder without BatchNorm, besides.
      layer_decay: of each pyramid level relative to the next deeper one; 1 = all alike.
    """

    encoder: str
    freeze_encoder: bool = False
    encoder_learning_rate_factor: float = 1.0
    factor_without_batchnorm: float = 1.0
    layer_decay: float = 1.0

    def __call__(self, params: PyTree) -> PyTree:
        """The factor of each parameter: a tree like `params`."""
        factors = jax.tree.map(lambda _: 1.0, params)
        if "task_weighting" in params:
            factors["task_weighting"] = jax.tree.map(
                lambda _: _TASK_WEIGHTING_FACTOR, params["task_weighting"]
            )
        if self.freeze_encoder:
            factors["encoder"] = jax.tree.map(lambda _: 0.0, params["encoder"])
            return factors
        encoder = create_encoder(self.encoder)
        factor = self.encoder_learning_rate_factor
        if not has_batchnorm(encoder):
            factor *= self.factor_without_batchnorm
        if self.layer_decay < 1:
            levels = pyramid_level(encoder, params["encoder"])
            last = max(jax.tree.leaves(levels))
            factors["encoder"] = jax.tree.map(
                lambda level: factor * self.layer_decay ** (last - level), levels
            )
        else:
            factors["encoder"] = jax.tree.map(lambda _: factor, params["encoder"])
        return factors
