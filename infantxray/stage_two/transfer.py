"""What stage two takes over from stage one: its encoder, and whom that has seen."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax

from data_pipeline import dataset as data
from data_pipeline.errors import UserError
from data_pipeline.splits import Split, check_unseen
from infantxray.models import create_encoder
from infantxray.models.depth import pyramid_level
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.encoders import has_batchnorm
from infantxray.models.torch_weights import import_encoder
from infantxray.runs import workdir
from infantxray.stage_two import inference as diagnosis
from infantxray.training import checkpoints

PyTree = Any

_log = logging.getLogger(__name__)

# The weights of the tasks are a few numbers that have far to go: at the rate of the network they
# stay within a third of where they start.
_TASK_WEIGHTING_FACTOR = 30.0


def check_stage_one(config) -> None:
    """Refuses, before anything is loaded, a stage one that cannot fit."""
    if not config.pretrained or config.pretrained.startswith("torch:"):
        return
    card = workdir.ModelCard.read(config.pretrained)
    if card.encoder != config.encoder:
        raise UserError(
            f"{config.pretrained} was trained with encoder {card.encoder}, and config.encoder is "
            f"{config.encoder}; they must be the same"
        )
    if not checkpoints.checkpoint_steps(config.pretrained):
        raise UserError(
            f"{config.pretrained} has no checkpoint yet; run configs/pretrain.py with "
            f"--workdir={config.pretrained} first"
        )
    if not checkpoints.is_finished(config.pretrained):
        _log.warning("stage one in %s is not finished: its latest step is used", config.pretrained)
    if card.preprocessing != data.preprocessing(config.data):
        _log.warning(
            "stage one read its images another way: %s; here: %s",
            card.preprocessing,
            data.preprocessing(config.data),
        )


def check_scored(config, split: Split, roles: tuple[str, ...]) -> None:
    """Raises `DataError` where no image is left for testing, or stage one saw who is scored."""
    for role in roles:
        if role == "test":
            data.check_tested(split)
        if config.pretrained and not config.pretrained.startswith("torch:"):
            check_unseen(
                os.path.join(os.path.expanduser(config.pretrained), "split.csv"),
                split[role],
                config.data.patient_ids,
                f"stage one must not see who is scored here ({role}), but it trained on",
            )


def untrained_model(config, card: workdir.ModelCard) -> tuple[DiagnosisModel, PyTree]:
    """The model of `card` as stage two starts from it, with its variables.

    The encoder is that of `config.pretrained`; all else has random weights, by `config.seed`.
    """
    model = diagnosis.build_model(card)
    size = card.preprocessing.image_size
    init = jax.jit(lambda key: diagnosis.init_variables(model, size, key))
    return model, start_from(config, init(jax.random.key(config.seed)))


def start_from(config, variables):
    """Puts the weights of `config.pretrained` into fresh variables."""
    if not config.pretrained:
        _log.info("the encoder starts from random weights")
        return variables
    if config.pretrained.startswith("torch:"):
        path = os.path.expanduser(config.pretrained.removeprefix("torch:"))
        encoder = import_encoder(config.encoder, path)
        for name, tree in encoder.items():
            if tree:
                variables[name] = {**variables[name], "encoder": tree}
        return variables
    # The last step and not the best: a lower loss of stage one does not mean a better start.
    step = checkpoints.checkpoint_steps(config.pretrained)[-1]
    variables, report = checkpoints.restore_variables(
        config.pretrained, step, variables, only="encoder"
    )
    _log.info("encoder of %s, step %d: %s", config.pretrained, step, report)
    return variables


def learning_rate_factors(config, params):
    """What multiplies the learning rate of each parameter of stage two: a tree like `params`."""
    factors = jax.tree.map(lambda _: 1.0, params)
    if "task_weighting" in params:
        factors["task_weighting"] = jax.tree.map(
            lambda _: _TASK_WEIGHTING_FACTOR, params["task_weighting"]
        )
    if config.freeze_encoder:
        factors["encoder"] = jax.tree.map(lambda _: 0.0, params["encoder"])
        return factors
    encoder = create_encoder(config.encoder)
    factor = config.encoder_learning_rate_factor
    if not has_batchnorm(encoder):
        factor *= config.optimizer.factor_without_batchnorm
    if config.layer_decay < 1:
        levels = pyramid_level(encoder, params["encoder"])
        last = max(jax.tree.leaves(levels))
        factors["encoder"] = jax.tree.map(
            lambda level: factor * config.layer_decay ** (last - level), levels
        )
    else:
        factors["encoder"] = jax.tree.map(lambda _: factor, params["encoder"])
    return factors
