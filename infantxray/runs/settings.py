"""Settings: checks of a configuration, and the dataclasses that are built from it.

A configuration is checked before anything is loaded; an error is one line. Only this module,
`configs/` and the commands know a `ConfigDict`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.files import split_places

if TYPE_CHECKING:
    from data_pipeline.dataset import DataSettings
    from infantxray.training.loop import LoopSettings

_log = logging.getLogger(__name__)

TASKS = (
    "pretrain",
    "finetune",
    "evaluate",
    "predict",
    "export",
    "check_data",
    "prepare",
    "export_phantom",
    "probe",
    "label_efficiency",
    "study",
    "compare",
)
OBJECTIVES = ("l1", "denoise", "masked_pixels", "masked_hog", "simsiam", "byol", "supervised")
RANDOM, PIXELS = "random", "pixels"  # Of config.encoders, beside stages one.
FEATURES = "features:"  # Before a file of config.encoders.
OPTIMIZERS = ("adamw", "sgd")
DTYPES = ("float32", "bfloat16")
HIGHER_IS_BETTER = ("roc_auc", "accuracy", "recall", "precision", "f1")
BEST_METRICS = (*HIGHER_IS_BETTER, "loss", "age_mae_months")


T = TypeVar("T")


class ConfigError(UserError):
    """A setting has an impossible value."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries of plain values, such as JSON holds."""
    return json.loads(config.to_json_best_effort())


def build(cls: type[T], config: Any, **values: Any) -> T:
    """Builds a dataclass from the settings of the same names.

    Args:
      cls: the dataclass.
      config: a configuration or a group of one. Fields that it lacks keep their defaults.
      **values: fields that are given instead.
    """
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.name in config:
            value = config[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def data_settings(config: Any, **values: Any) -> DataSettings:
    """The data settings of a task; `config.labels`, where the task has it, is one of them."""
    from data_pipeline.dataset import DataSettings

    if "labels" in config:
        values.setdefault("labels", config.labels)
    return build(DataSettings, config.data, **values)


def is_by_data(config: Any) -> bool:
    """Whether the length of stage two follows from its data, see `stage_two.budget`."""
    return config.task == "finetune" and not config.train_steps and not config.train_epochs


def total_steps(config: Any, num_images: int) -> int:
    """`train_steps`, or the number of steps of `train_epochs` passes over the training images."""
    steps = config.train_steps or math.ceil(config.train_epochs * num_images / config.batch_size)
    _log.info(
        "%d steps of %d images: %.2f epochs of %d images",
        steps,
        config.batch_size,
        steps * config.batch_size / num_images,
        num_images,
    )
    return steps


def loop_settings(config: Any, steps: int, *, best_metric: str | None) -> LoopSettings:
    """The settings of the training loop of either stage."""
    from infantxray.training.loop import LoopSettings  # Imports jax: about a second.
    from infantxray.training.optimizer import OptimizerSettings

    return build(
        LoopSettings,
        config,
        total_steps=steps,
        optimizer=build(OptimizerSettings, config.optimizer),
        best_metric=best_metric,
        lower_is_better=best_metric not in HIGHER_IS_BETTER,
    )


def advice_on_dtype(config: Any) -> str:
    """Further advice for a loss that is not finite."""
    return "" if config.dtype == "float32" else ", or use config.dtype=float32"


def _is_fraction(value) -> bool:
    return 0 <= value < 1


def _listed(text: str, pattern: str) -> bool:
    """Whether a comma-separated text has parts of this pattern alone, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return len(set(parts)) == len(parts) and all(re.fullmatch(pattern, part) for part in parts)


_SHARE = r"0?\.\d*[1-9]\d*"  # Above 0 and below 1.

# What a setting must satisfy, and that in words. Settings that a task lacks are passed over.
_RULES = {
    "task": (lambda v: v in TASKS, f"one of {', '.join(TASKS)}"),
    "seed": (lambda v: v >= 0, "0 or more"),
    "objective": (
        lambda v: set(found := v.split("+")) <= set(OBJECTIVES) and len(set(found)) == len(found),
        f"one of {', '.join(OBJECTIVES)}, or several joined by +, each once",
    ),
    **{f"weights.{name}": (lambda v: v > 0, "above 0") for name in OBJECTIVES},
    "teacher_momentum": (_is_fraction, "at least 0 and below 1"),
    "supervised.labels": (lambda v: v in ("single", "multi"), "single or multi"),
    "supervised.age_weight": (lambda v: v >= 0, "0 or more"),
    "dtype": (lambda v: v in DTYPES, f"one of {', '.join(DTYPES)}"),
    "batch_size": (lambda v: v >= 1, "at least 1"),
    "accumulate_steps": (lambda v: v >= 1, "at least 1"),
    "train_steps": (lambda v: v >= 0, "0 (off) or more"),
    "train_epochs": (lambda v: v >= 0, "0 (off) or more"),
    "log_every_steps": (lambda v: v >= 1, "at least 1"),
    "eval_every_steps": (lambda v: v >= 1, "at least 1"),
    "checkpoint_every_steps": (lambda v: v >= 1, "at least 1"),
    "resume": (lambda v: v in ("latest", "last_good"), "latest or last_good"),
    "images_every_steps": (lambda v: v >= 1, "at least 1"),
    "probe_every_steps": (lambda v: v >= 0, "0 (never) or more"),
    "probe_images": (lambda v: v >= 1, "at least 1"),
    "train_films": (lambda v: v >= 1, "at least 1"),
    "permutations": (lambda v: v >= 1, "at least 1"),
    "draws": (lambda v: v >= 1, "at least 1"),
    "label_fractions": (
        lambda v: v and all(0 < x <= 1 for x in v),
        "shares above 0, at most 1, such as 0.02,0.1,1.0",
    ),
    "study.size": (lambda v: v in ("cpu", "paper", "best"), "cpu, paper or best"),
    "study.label_draw": (lambda v: v in ("shared", "seed"), "shared or seed"),
    "study.parallel_cells": (lambda v: v >= 1, "at least 1"),
    "age_weight": (lambda v: v >= 0, "0 or more: it is α of L = CE + α·MSE"),
    "encoder_learning_rate_factor": (lambda v: v >= 0, "0 or more"),
    "age_loss": (lambda v: v in ("mse", "distribution"), "mse or distribution"),
    "age_weighting": (lambda v: v in ("fixed", "uncertainty"), "fixed or uncertainty"),
    "layer_decay": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "self_training.teacher_steps": (lambda v: v >= 0, "0 (off) or more"),
    "self_training.teachers": (lambda v: v >= 1, "1 or more"),
    "self_training.rounds": (lambda v: v >= 1, "1 or more"),
    "mixup": (lambda v: v >= 0, "0 (off) or more"),
    "consistency": (lambda v: v >= 0, "0 (off) or more"),
    "labelled_fraction": (lambda v: 0 < v < 1, "above 0 and below 1"),
    "class_weights": (lambda v: v in ("none", "balanced"), "none or balanced"),
    "labels": (lambda v: v in ("single", "multi"), "single or multi"),
    "condition_on": (
        lambda v: v in ("", "sex", "view", "sex,view", "view,sex"),
        "sex, view, both separated by a comma, or empty",
    ),
    "data.uncertain": (
        lambda v: v in ("ignore", "positive", "negative"),
        "ignore, positive or negative",
    ),
    "batch_norm_images": (lambda v: v >= 0, "0 (running averages) or more"),
    "ema_decay": (_is_fraction, "at least 0 and below 1"),
    "best_metric": (lambda v: v in BEST_METRICS, f"one of {', '.join(BEST_METRICS)}"),
    "early_stopping_evals": (lambda v: v >= 0, "0 (never) or more"),
    "coverage": (_is_fraction, "0 (off) or more, and below 1"),
    "augmentations": (lambda v: v >= 0, "0 (none) or more"),
    "bootstrap_samples": (lambda v: v >= 0, "0 (no intervals) or more"),
    "operating_points": (
        lambda v: _listed(v, f"youden|(sensitivity|specificity):{_SHARE}"),
        "youden, sensitivity:X and specificity:X, such as sensitivity:0.95,youden",
    ),
    "prevalence": (lambda v: _listed(v, _SHARE), "shares between 0 and 1, such as 0.01,0.1"),
    "subgroups": (lambda v: _listed(v, ".+"), "columns, each once, such as sex,site"),
    "optimizer.name": (lambda v: v in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    "optimizer.learning_rate": (lambda v: v > 0, "above 0"),
    "optimizer.warmup_fraction": (_is_fraction, "at least 0 and below 1"),
    "optimizer.weight_decay": (lambda v: v >= 0, "0 or more"),
    "optimizer.clip_norm": (lambda v: v >= 0, "0 (off) or more"),
    "optimizer.factor_without_batchnorm": (lambda v: v > 0, "above 0"),
    "augment.rotation_degrees": (lambda v: 0 <= v <= 180, "between 0 and 180"),
    "augment.scale": (_is_fraction, "at least 0 and below 1"),
    "augment.shift": (_is_fraction, "at least 0 and below 1"),
    "augment.contrast": (_is_fraction, "at least 0 and below 1"),
    "augment.brightness": (_is_fraction, "at least 0 and below 1"),
    "augment.gamma": (lambda v: v >= 0, "0 (off) or more"),
    "augment.noise": (lambda v: v >= 0, "0 (off) or more"),
    "augment.erase": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "denoise.noise": (lambda v: v > 0, "above 0"),
    "masking.fraction": (lambda v: 0 < v < 1, "above 0 and below 1"),
    "masking.patch_size": (lambda v: v in (0, 4, 8, 16, 32), "0 (by image size), 4, 8, 16 or 32"),
    "views.blur": (_is_fraction, "at least 0 and below 1"),
    "data.image_size": (lambda v: v >= 32 and v % 32 == 0, "a multiple of 32 (pixels)"),
    "data.resize": (lambda v: v in ("pad", "squash", "crop"), "pad, squash or crop"),
    "data.validation_fraction": (_is_fraction, "at least 0 and below 1"),
    "data.test_fraction": (_is_fraction, "at least 0 and below 1"),
    "data.patient_ids": (lambda v: v in ("shared", "source"), "shared or source"),
    "data.given_splits": (lambda v: v in ("keep", "ignore"), "keep or ignore"),
    "data.label_fraction": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "data.label_seed": (lambda v: v >= 0, "0 or more"),
    "data.on_error": (lambda v: v in ("raise", "skip"), "raise or skip"),
    "data.num_threads": (lambda v: v >= 1, "at least 1"),
}

# The same function makes the two views of objective=simsiam, and the images of supervision.
_RULES |= {
    key.replace("augment", name): rule
    for name in ("views", "supervised.augment")
    for key, rule in _RULES.items()
    if key.startswith("augment.")
}


def _lookup(config, key: str):
    for part in key.split("."):
        if part not in config:
            return None
        config = config[part]
    return config


def check(config) -> None:
    """Raises `ConfigError` on the first invalid setting. Loads nothing heavy."""
    for key, (holds, expected) in _RULES.items():
        value = _lookup(config, key)
        if value is None:
            continue
        if (isinstance(value, float) and not math.isfinite(value)) or not holds(value):
            raise ConfigError(f"config.{key} is {value!r}; it must be {expected}")
    if (
        "train_steps" in config
        and (config.train_steps > 0) == (config.train_epochs > 0)
        and not is_by_data(config)
    ):
        raise ConfigError(
            f"exactly one of config.train_steps ({config.train_steps}) and config.train_epochs "
            f"({config.train_epochs:g}) must be above 0; set the other to 0"
        )
    if "accumulate_steps" in config and config.batch_size % config.accumulate_steps:
        raise ConfigError(
            f"config.batch_size ({config.batch_size}) must be a multiple of "
            f"config.accumulate_steps ({config.accumulate_steps})"
        )
    fractions = (
        _lookup(config, "data.validation_fraction") or 0,
        _lookup(config, "data.test_fraction") or 0,
    )
    if sum(fractions) >= 1:
        raise ConfigError(
            "config.data.validation_fraction and config.data.test_fraction leave nothing to train "
            f"on ({fractions[0]:g} + {fractions[1]:g})"
        )
    if "masking" in config and config.masking.patch_size >= config.data.image_size:
        raise ConfigError(
            f"config.masking.patch_size ({config.masking.patch_size}) must be below "
            f"config.data.image_size ({config.data.image_size}): one patch would hide everything"
        )
    if _lookup(config, "self_training.linear_probe") and config.self_training.teacher_steps:
        raise ConfigError(
            "the teacher is either a linear probe or fine-tuned: set "
            "config.self_training.linear_probe=False or config.self_training.teacher_steps=0"
        )
    if _lookup(config, "self_training.linear_probe") and config.self_training.teachers > 1:
        raise ConfigError(
            "config.self_training.teachers counts fine-tuned teachers; a linear probe is one"
        )
    taught = _lookup(config, "self_training.linear_probe") or _lookup(
        config, "self_training.teacher_steps"
    )
    if taught and config.get("batch_size") == 1:
        raise ConfigError(
            "config.batch_size is 1; with config.self_training it must be at least 2: a batch "
            "joins labelled and other images"
        )
    committee = _lookup(config, "self_training.committee")
    if committee and not config.self_training.linear_probe:
        raise ConfigError(
            "config.self_training.committee names encoders for linear probes; set "
            "config.self_training.linear_probe=True"
        )
    for place in filter(None, split_places(committee or "")):
        _check_pretrained(place, "self_training.committee")
    if _lookup(config, "self_training.rounds") not in (None, 1) and not (
        config.self_training.linear_probe or config.self_training.teacher_steps
    ):
        raise ConfigError(
            "config.self_training.rounds needs a first teacher: set "
            "config.self_training.linear_probe=True or config.self_training.teacher_steps"
        )
    if config.get("mixup") and (config.get("age_film") or config.get("condition_on")):
        raise ConfigError(
            "config.mixup mixes images of two ages, sexes and views; it cannot be combined with "
            "config.age_film and config.condition_on"
        )
    if config.get("age_film") and not config.age_head:
        raise ConfigError("config.age_film=True needs config.age_head=True")
    if "best_metric" in config and not config.age_head and config.best_metric == "age_mae_months":
        raise ConfigError("config.best_metric=age_mae_months needs config.age_head=True")
    if "encoder" in config:
        _check_encoder(config.encoder)
    if config.get("pretrained"):
        _check_pretrained(config.pretrained)
    if "encoders" in config:
        for places in compared_encoders(config.encoders).values():
            for place in places:
                if place not in (RANDOM, PIXELS):
                    _check_pretrained(place, "encoders")
        if config.data.label_fraction < 1 or config.data.label_seed:
            raise ConfigError(
                "config.data.label_fraction and config.data.label_seed are not for this task, "
                "which draws labels itself: see config.label_fractions and config.draws"
            )
    for place in checkpoints(config) if "checkpoint" in config else ():
        if not os.path.isdir(os.path.expanduser(place)):
            advice = r"; write a comma in a path as \," if place != config.checkpoint else ""
            raise ConfigError(
                f"config.checkpoint: the folder {place} does not exist; it must be the workdir of "
                f"a finished stage two (configs/finetune.py){advice}"
            )


def checkpoints(config: Any) -> list[str]:
    """The workdirs of `config.checkpoint`; `predict` takes several, separated by commas."""
    if config.task != "predict":
        return [config.checkpoint]
    return [place.strip() for place in split_commas(config.checkpoint)]


def split_commas(text: str) -> list[str]:
    r"""Places separated by commas; a comma that belongs to a path is written `\,`.

    The whole text is one place if it is the path of a file or folder.
    """
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    return [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]


def _check_encoder(name: str) -> None:
    from infantxray.models import ENCODERS  # Imports jax: about a second.

    if name not in ENCODERS:
        raise ConfigError(f"config.encoder is {name!r}; it must be one of {', '.join(ENCODERS)}")


def compared_encoders(text: str) -> dict[str, tuple[str, ...]]:
    """`config.encoders` -> the places of each encoder by its name, in order.

    Raises:
      ConfigError: a name or a place is missing, or two have the same name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in split_commas(text):
        name, equals, rest = part.strip().partition("=")
        places = tuple(split_places(rest if equals else name))
        if not name or not all(places):
            raise ConfigError(
                f"config.encoders is {text!r}; it must be places separated by commas, such as "
                "random,l1=runs/l1_a+runs/l1_b"
            )
        name = name.strip() if equals else " + ".join(places)
        if name in found:
            raise ConfigError(f"config.encoders names {name!r} twice; write NAME=FOLDER")
        found[name] = places
    most = max(map(len, found.values()))
    for name, places in found.items():
        if places == (RANDOM,):
            found[name] = places * most  # Weights of several seeds, in turn.
        elif len(places) not in (1, most):
            raise ConfigError(
                f"config.encoders: {name} has {len(places)} stages one that take turns and another "
                f"has {most}; give each one, or {most}"
            )
    return found


def _check_pretrained(pretrained: str, key: str = "pretrained") -> None:
    if key == "encoders" and pretrained.startswith(FEATURES):
        if not os.path.isfile(os.path.expanduser(pretrained.removeprefix(FEATURES))):
            raise ConfigError(f"config.encoders: the file of {pretrained} does not exist")
        return
    place = pretrained.removeprefix("torch:")
    path = os.path.expanduser(place)
    if place != pretrained:
        if not os.path.isfile(path):
            raise ConfigError(f"config.{key}: the file {place} does not exist")
    elif os.path.isfile(path):
        raise ConfigError(
            f"config.{key}: {place} is a file; for PyTorch weights write torch:{place}"
        )
    elif not os.path.isdir(os.path.join(path, "checkpoints")):
        raise ConfigError(
            f"config.{key}: no stage-one checkpoint in {place}; run configs/pretrain.py with "
            f"--workdir={place} first, or "
            + ("write random" if key == "encoders" else "leave it empty")
            + " for random weights"
        )
