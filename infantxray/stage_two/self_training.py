"""Self-training: a teacher learns from the labelled images and labels the others softly."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline import files
from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource, training_batches
from infantxray.evaluation.metrics import classification, findings_metrics
from infantxray.features.classifiers import probe
from infantxray.features.extraction import Extractor, Features, encoder_variables, pooled_map
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import transfer
from infantxray.stage_two.inference import Predictor, restore
from infantxray.training import checkpoints, processes
from infantxray.training.augment import Augmentation
from infantxray.training.loop import LoopSettings
from infantxray.training.sharding import DataParallel

_log = logging.getLogger(__name__)

_SOFT_LABELS = "soft_labels.npy"
_SEEDS_BETWEEN_TEACHERS = 10_000  # So that no teacher repeats one of another run.
# With few images a probe overfits: it sees each of them augmented as well, and is penalised a
# hundred times as much as one that only measures a representation.
_AUGMENTED_COPIES = 16
_MOST_FEATURES = 50_000
_L2 = 1.0


@dataclasses.dataclass(frozen=True)
class Teaching:
    """Which teacher labels the unlabelled images.

    Attributes:
      linear_probe: the teacher is a linear probe of the frozen encoder.
      teacher_steps: or it is fine-tuned for so many steps; 0 = it is not.
      teachers: number of fine-tuned teachers with different seeds, whose mean is used.
    """

    linear_probe: bool = False
    teacher_steps: int = 0
    teachers: int = 1

    @property
    def is_on(self) -> bool:
        return self.linear_probe or self.teacher_steps > 0

    def images_drawn(self, num_labelled: int) -> int:
        """Images that fine-tuned teachers draw; runs without teachers draw as many more."""
        return self.teachers * self.teacher_steps * num_labelled


def num_labelled(batch_size: int, labelled_fraction: float) -> int:
    """How many images of a mixed batch are drawn from the labelled ones."""
    return min(max(round(batch_size * labelled_fraction), 1), batch_size - 1)


def is_needed(teaching: Teaching, classes: tuple[str, ...], images: ImageSource) -> bool:
    """Whether there is a teacher, and an unlabelled image to label.

    Raises:
      DataError: there is a teacher, and nothing that it could learn.
    """
    if not teaching.is_on:
        return False
    if not classes:
        raise DataError(
            "config.self_training needs labelled images, and no training image has a label"
        )
    if images.has_condition.all():
        _log.info(
            "every training image has a label: self-training is skipped; longer training may help "
            "(config.train_steps)"
        )
        return False
    return True


def soft_labels(folder: str, compute: Callable[[str], np.ndarray]) -> np.ndarray:
    """The teacher's probabilities for all training images, float32 `[N, K]`.

    They are kept in `teachers/soft_labels.npy`, so that a resumed run uses the same ones.

    Args:
      folder: the workdir of the student.
      compute: folder for the teachers -> probabilities.
    """
    folder = os.path.join(folder, "teachers")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, _SOFT_LABELS)
    if os.path.exists(path):
        files.verify_checksums(folder, [_SOFT_LABELS])
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to ask again") from None
    probabilities = compute(folder)
    with files.replaced(path, "wb") as file:
        np.save(file, probabilities)
    files.write_checksums(folder, [_SOFT_LABELS])
    _log.info("student: learns from %d images", len(probabilities))
    return probabilities


def set_aside_damaged(folder: str) -> None:
    """`checkpoints.set_aside_damaged` for a student's workdir and those of its teachers."""
    for place in (folder, *glob.glob(os.path.join(glob.escape(folder), "teachers", "[0-9]*"))):
        checkpoints.set_aside_damaged(place)


def ask_linear_probe(
    spec: ModelSpec,
    pretrained: str,
    labelled: ImageSource,
    images: ImageSource,
    validation: ImageSource,
    *,
    augmentation: Augmentation,
    batch_size: int,
    num_threads: int,
    seed: int,
) -> np.ndarray:
    """Probabilities by a linear probe of the encoder that the student starts from.

    Args:
      spec: of the model.
      pretrained: see `transfer.check_stage_one`.
      labelled: the training images with a label.
      images: all training images.
      validation: images that the probe is scored on, for the log.
      augmentation: of the labelled images, which the probe sees unchanged as well.
      batch_size: images at a time.
      num_threads: that decode.
      seed: of random weights and of the augmentation.

    Returns:
      float32 `[N, K]`.
    """
    model, variables = transfer.untrained_model(spec, pretrained, seed)
    encoder = encoder_variables(variables)

    def extractor(changes: Augmentation | None) -> Extractor:
        function = pooled_map(
            model.encoder, mean=spec.input_mean, std=spec.input_std, changes=changes
        )
        return Extractor(function, batch_size=batch_size, num_threads=num_threads)

    plain, augmented = extractor(None), extractor(augmentation)
    copies = min(_AUGMENTED_COPIES, _MOST_FEATURES // len(labelled))
    parts = [plain(labelled, encoder)]
    parts += [augmented(labelled, encoder, seed * _AUGMENTED_COPIES + i) for i in range(copies)]
    train = Features.concatenate(parts)

    def predict(features: Features) -> np.ndarray:
        return probe(train, features, spec.classes, l2=_L2, ages=False).probabilities

    if validation.has_condition.any():
        scored = plain(validation, encoder)
        if scored.findings is None:
            found = classification(predict(scored), scored.label)
        else:
            found = findings_metrics(predict(scored), scored.findings)
        _log.info(
            "teacher: a linear probe on %d images, each unchanged and in %d augmented copies; "
            "validation ROC AUC %.3f, accuracy %.3f",
            len(labelled),
            copies,
            found["roc_auc"] if found["roc_auc"] is not None else np.nan,
            found["accuracy"],
        )
    return predict(plain(images, encoder)).astype(np.float32)


def ask_fine_tuned(
    folder: str,
    spec: ModelSpec,
    teaching: Teaching,
    labelled: ImageSource,
    images: ImageSource,
    predictor: Predictor,
    *,
    loop_settings: LoopSettings,
    num_labelled: int,
    num_threads: int,
    fit: Callable[[LoopSettings, str, Any], object],
) -> np.ndarray:
    """Mean probabilities of fine-tuned teachers, each trained in a folder below this one.

    Args:
      folder: where the teachers' workdirs go.
      spec: of the model.
      teaching: how many teachers, and how long.
      labelled: the training images with a label.
      images: all training images.
      predictor: applies the model.
      loop_settings: of the student.
      num_labelled: labelled images in a batch of the student; the teachers' batch size.
      num_threads: that decode.
      fit: trains a model: (settings, workdir, batches).

    Returns:
      float32 `[N, K]`.
    """
    size = DataParallel().evaluation_batch_size(num_labelled)
    opinions = []
    for i in range(teaching.teachers):
        settings = dataclasses.replace(
            loop_settings,
            batch_size=size,
            accumulate_steps=1,
            seed=loop_settings.seed + _SEEDS_BETWEEN_TEACHERS * i,
            total_steps=teaching.teacher_steps,
        )
        place = os.path.join(folder, str(i))
        os.makedirs(place, exist_ok=True)
        _log.info(
            "teacher %d of %d: %d steps, %.0f epochs of %d labelled images, in %s",
            i + 1,
            teaching.teachers,
            settings.total_steps,
            settings.total_steps * size / len(labelled),
            len(labelled),
            place,
        )
        spec.write(place)
        batches = training_batches(
            labelled,
            size,
            seed=settings.seed,
            num_threads=num_threads,
            part=processes.part(),
        )
        fit(settings, place, batches)
        predictions, _ = predictor(restore(place, spec)[0], images)
        opinions.append(predictions.probabilities)
    return np.asarray(np.mean(opinions, axis=0, dtype=np.float32))
