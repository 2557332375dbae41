"""Self-training: teachers learn from the images with a label, and answer for the others."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource, training_batches
from infantxray.stage_two import inference as diagnosis
from infantxray.stage_two import linear_teacher, transfer
from infantxray.training.sharding import DataParallel

_log = logging.getLogger(__name__)

_SEEDS_BETWEEN_TEACHERS = 10_000  # So that no teacher repeats one of another run.


def num_labelled(config) -> int:
    """How many images of a mixed batch are drawn from the labelled ones."""
    share = round(config.batch_size * config.labelled_fraction)
    return min(max(share, 1), config.batch_size - 1)


def wants_teacher(config, card, images: ImageSource) -> bool:
    """Whether a teacher comes first. Where every image has its label it has nothing to say."""
    if not (config.self_training.teacher_steps or config.self_training.linear_probe):
        return False
    if not card.classes:
        raise DataError(
            "config.self_training teaches conditions, and no training image has a label"
        )
    if (images.labels >= 0).all():
        _log.info(
            "every training image has a label: no teacher is needed; a longer training may pay "
            "(config.train_steps)"
        )
        return False
    return True


def teachers_images(config) -> int:
    """How many images teachers draw; 0 without teachers.

    Who learns without them draws these besides, so that both draw equally many.
    """
    teaching = config.self_training
    return teaching.teachers * teaching.teacher_steps * num_labelled(config)


def ask_teachers(
    config,
    folder: str,
    card,
    labelled: ImageSource,
    images: ImageSource,
    validation: ImageSource,
    predictor,
    fit: Callable,
) -> np.ndarray:
    """The conditions of all training images in the teachers' mean opinion, float32 `[N, K]`.

    The teacher is a linear probe, or teachers are fine-tuned. Such a one is an ordinary model that
    learns from the labelled images alone, in a folder of its own under `teachers`; they differ by
    their seed. What they say is kept there, so that a run which is stopped and started again goes
    on with the same answers.

    Args:
      config: of the student.
      folder: its workdir.
      card: of its model, and of the teachers'.
      labelled: the training images with a label.
      images: all training images.
      validation: images that a linear probe is scored on, for the log.
      predictor: variables and images -> answers.
      fit: trains a model: (settings, workdir, batches, steps) -> None.
    """
    folder = os.path.join(folder, "teachers")
    os.makedirs(folder, exist_ok=True)
    answers = os.path.join(folder, "soft_labels.npy")
    if os.path.exists(answers):
        return np.load(answers)
    if config.self_training.linear_probe:
        model, variables = transfer.untrained_model(config, card)
        opinion = linear_teacher.answer(config, model, variables, labelled, images, validation)
    else:
        opinion = _ask_fine_tuned(config, folder, card, labelled, images, predictor, fit)
    with open(answers + ".tmp", "wb") as file:
        np.save(file, opinion)
    os.replace(answers + ".tmp", answers)
    _log.info("student: learns from %d images", len(images))
    return opinion


def _ask_fine_tuned(config, folder, card, labelled, images, predictor, fit) -> np.ndarray:
    """`ask_teachers` where teachers are fine-tuned, each in a folder below this one."""
    settings = copy.deepcopy(config)
    # As many as a student sees, rounded up to what all devices share.
    settings.batch_size = DataParallel().evaluation_batch_size(num_labelled(config))
    settings.accumulate_steps = 1
    steps, count = config.self_training.teacher_steps, config.self_training.teachers
    opinions = []
    for i in range(count):
        settings.seed = config.seed + _SEEDS_BETWEEN_TEACHERS * i
        place = os.path.join(folder, str(i))
        os.makedirs(place, exist_ok=True)
        _log.info(
            "teacher %d of %d: %d steps, %.0f times through %d labelled images, in %s",
            i + 1,
            count,
            steps,
            steps * settings.batch_size / len(labelled),
            len(labelled),
            place,
        )
        card.write(place)
        batches = training_batches(
            labelled, settings.batch_size, seed=settings.seed, num_threads=config.data.num_threads
        )
        fit(settings, place, batches, steps)
        variables, _ = diagnosis.restore(place, card)
        predictions, _ = predictor(variables, images)
        opinions.append(predictions.probabilities)
    return np.mean(opinions, axis=0, dtype=np.float32)
