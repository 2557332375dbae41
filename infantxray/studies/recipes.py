"""Recipes: the named sets of variants that studies compare.

A variant says whether stage two starts from a stage one, and which settings of either stage it
changes. Variants that change nothing of stage one, or the same settings, share its runs. The last
variant of a recipe is the one that the others are compared with, unless one is called `full`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import UserError
from infantxray.studies.commands import flatten, nest


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the methods that a study compares.

    Attributes:
      pretrained: stage two starts from a stage one; otherwise from random weights.
      pretrain: changed settings of stage one, nested as in `configs/pretrain.py`.
      finetune: changed settings of stage two, nested as in `configs/finetune.py`.
    """

    pretrained: bool = True
    pretrain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_LABELS_ALONE = {"self_training": {"linear_probe": False}}
# A fine-tuned teacher. The student of 150 steps takes as many images in total as `best`.
_FINE_TUNED_TEACHER = {"self_training": {"linear_probe": False, "teacher_steps": 150}}

# Every change is about twice as large as the default, and a square of the image is greyed out.
_STRONG_AUGMENTATION = {
    "rotation_degrees": 12.0,
    "scale": 0.2,
    "shift": 0.1,
    "contrast": 0.4,
    "brightness": 0.2,
    "gamma": 0.4,
    "noise": 0.04,
    "erase": 0.5,
}
_NO_AUGMENTATION = {
    **dict.fromkeys(_STRONG_AUGMENTATION, 0.0),
    "flip_left_right": False,
    "flip_up_down": False,
}
_ALL_AGE_TERMS = {"age_weighting": "uncertainty", "age_loss": "distribution", "age_film": True}

RECIPES: dict[str, dict[str, Variant]] = {
    # The paper's Table 2.
    "paper": {
        "without_pretraining": Variant(pretrained=False),
        "without_apn": Variant(finetune={"age_head": False}),
        "full": Variant(),
    },
    # Initial weights and teachers change; the number of images that stage two draws does not.
    "best": {
        "random": Variant(pretrained=False, finetune=_LABELS_ALONE),
        "random_self_training": Variant(pretrained=False),
        # Suits random weights better than a linear probe of them.
        "random_fine_tuned_teacher": Variant(pretrained=False, finetune=_FINE_TUNED_TEACHER),
        "paper": Variant(pretrain={"objective": "l1"}, finetune=_LABELS_ALONE),
        "masked": Variant(finetune=_LABELS_ALONE),
        "best": Variant(),
    },
    # `best`, with one term at a time left out or changed.
    "ablation": {
        "without_masking": Variant(pretrain={"objective": "l1"}),
        "without_teachers": Variant(finetune=_LABELS_ALONE),
        "fine_tuned_teacher": Variant(finetune=_FINE_TUNED_TEACHER),
        "without_augmentation": Variant(finetune={"augment": _NO_AUGMENTATION}),
        "strong_augmentation": Variant(finetune={"augment": _STRONG_AUGMENTATION}),
        "without_average": Variant(finetune={"ema_decay": 0.0}),
        "best": Variant(),
    },
    # `best`, with one addition at a time.
    "semi_supervised": {
        "second_round": Variant(finetune={"self_training": {"rounds": 2}}),
        "consistency": Variant(finetune={"consistency": 1.0}),
        "mixup": Variant(finetune={"mixup": 0.4}),
        "best": Variant(),
    },
    # Random weights and every objective of stage one; stage two learns from labels alone.
    "objectives": {
        "random": Variant(pretrained=False, finetune=_LABELS_ALONE),
        **{
            name: Variant(pretrain={"objective": name}, finetune=_LABELS_ALONE)
            for name in ("l1", "denoise", "simsiam", "masked_pixels", "masked_hog")
        },
    },
    # What stage one may learn from: nothing, images alone, labels of the source data, or both.
    "transfer": {
        "random": Variant(pretrained=False, finetune=_LABELS_ALONE),
        **{
            name: Variant(pretrain={"objective": objective}, finetune=_LABELS_ALONE)
            for name, objective in (
                ("l1", "l1"),
                ("masked_hog", "masked_hog"),
                ("simsiam", "simsiam"),
                ("hybrid", "masked_hog+simsiam"),
                ("supervised", "supervised"),
                ("supervised_masked_hog", "supervised+masked_hog"),
            )
        },
    },
    # The age term of stage two; all else as in the paper.
    "age": {
        "mse": Variant(),
        "learned_weights": Variant(finetune={"age_weighting": "uncertainty"}),
        "distribution": Variant(finetune={"age_loss": "distribution"}),
        "condition": Variant(finetune={"age_film": True}),
        "all": Variant(finetune=_ALL_AGE_TERMS),
        "none": Variant(finetune={"age_head": False}),
    },
}


def find_variants(recipe: str, extra: Mapping[str, Mapping[str, Any]]) -> dict[str, Variant]:
    """The variants of a recipe, with those of `extra` added or put in their place.

    Args:
      recipe: a name in `RECIPES`.
      extra: `{name: {"pretrained": ..., "pretrain": {...}, "finetune": {...}}}`.

    Raises:
      UserError: the recipe is unknown, or a variant has other fields.
    """
    if recipe not in RECIPES:
        raise UserError(
            f"config.study.recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}"
        )
    found = dict(RECIPES[recipe])
    for name, fields in extra.items():
        try:
            found[name] = Variant(**fields)
        except TypeError:
            raise UserError(
                f"the variant {name} has the fields {', '.join(fields)}; a variant has pretrained, "
                "pretrain and finetune"
            ) from None
    return found


_BOOLEANS = {"True": True, "False": False}


def change_variants(
    variants: Mapping[str, Variant], changes: str, stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Variant]:
    """Variants with changes from the command line.

    Args:
      variants: by name.
      changes: `VARIANT.STAGE.KEY=VALUE`, separated by commas, such as
        `full.finetune.age_weight=0.4`.
      stages: settings of `pretrain` and `finetune`, nested, for the types of values.

    Raises:
      UserError: a variant, stage or setting is unknown, or a value has another type.
    """
    found = dict(variants)
    for change in filter(None, changes.split(",")):
        target, _, text = change.strip().partition("=")
        name, _, rest = target.partition(".")
        stage, _, key = rest.partition(".")
        try:
            default = flatten(stages[stage])[key]
            value = _BOOLEANS[text] if isinstance(default, bool) else type(default)(text)
            changed = flatten(getattr(found[name], stage)) | {key: value}
        except (KeyError, ValueError):
            raise UserError(
                f"config.study.changes holds {change.strip()!r}; expected VARIANT.STAGE.KEY=VALUE, "
                f"with a variant ({', '.join(found)}), pretrain or finetune, and a setting of that "
                "stage"
            ) from None
        fields: dict[str, Any] = {stage: nest(changed)}
        found[name] = dataclasses.replace(found[name], **fields)
    return found
