"""The length of stage two from the data: `train_steps=0` and `train_epochs=0`.

The number of drawn images grows with the cube root of the number of labelled images: 12,800 for 40
labels, 22,000 for 200, 47,000 for 2,000, 59,000 for 4,000. The rule connects lengths after which
networks at 64 px had stopped improving on validation patients of the phantom and of children's
chests. Very large sets are seen eight times.
"""

from __future__ import annotations

import dataclasses
import math

from data_pipeline.errors import UserError
from data_pipeline.splits import FEW_IMAGES

_IMAGES, _LABELS = 12_800, 40
_LEAST_EPOCHS = 8
_EVALUATIONS = 12
_PATIENCE = 4


@dataclasses.dataclass(frozen=True)
class Budget:
    """Length and rhythm of a stage two.

    Attributes:
      total_steps: the ceiling, at which the learning rate reaches zero.
      eval_every_steps: interval of evaluations and checkpoints.
      early_stopping_evals: evaluations without improvement after which training stops; 0 = never.
      least_steps: steps before which training does not stop early: half of `total_steps`.
      text: a description of the budget.
    """

    total_steps: int
    eval_every_steps: int
    early_stopping_evals: int
    least_steps: int
    text: str = ""


def images_to_draw(num_labelled: int) -> int:
    """Number of images that stage two draws, including those of teachers."""
    few = _IMAGES * max(num_labelled / _LABELS, 1.0) ** (1 / 3)
    return round(max(few, _LEAST_EPOCHS * num_labelled))


def by_data(
    num_labelled: int,
    num_validation: int,
    batch_size: int,
    *,
    drawn_by_teachers: int = 0,
    rounds: int = 1,
) -> Budget:
    """The budget of a run; equal for all arms that have the same data.

    Args:
      num_labelled: training images with a condition (or an age, where there are no conditions).
      num_validation: validation images that can choose a checkpoint. With few of them, the last
        checkpoint is used and training does not stop early.
      batch_size: images of a step.
      drawn_by_teachers: images that self-training's teachers draw; they count.
      rounds: students in turn, which share the images equally.

    Raises:
      UserError: the teachers alone draw more.
    """
    images = images_to_draw(num_labelled) - drawn_by_teachers
    if images < batch_size * rounds:
        raise UserError(
            f"the teachers draw {drawn_by_teachers:,} images, and {num_labelled} labels give "
            f"{images_to_draw(num_labelled):,} in all; lower config.self_training.teacher_steps "
            "or .rounds, or set config.train_steps"
        )
    steps = math.ceil(images / batch_size / rounds)
    budget = Budget(
        total_steps=steps,
        eval_every_steps=math.ceil(steps / _EVALUATIONS),
        early_stopping_evals=_PATIENCE if num_validation >= FEW_IMAGES else 0,
        least_steps=steps // 2,
    )
    stop = "never stops early"
    if budget.early_stopping_evals:
        stop = f"stops after {_PATIENCE} evaluations without improvement, from step {steps // 2} on"
    times = "" if rounds == 1 else f"{rounds} times "
    text = (
        f"length by the data: {num_labelled:,} labelled images and {num_validation:,} for "
        f"validation give {times}{steps:,} steps of {batch_size} images, an evaluation every "
        f"{budget.eval_every_steps}; {stop}"
    )
    return dataclasses.replace(budget, text=text)
