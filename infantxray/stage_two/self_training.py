"""Self-training: a teacher learns from the labelled images and gives soft labels to the others."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
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

_SEEDS_BETWEEN_TEACHERS = 10_000  # So that no teacher repeats one of another run.
_SEEDS_BETWEEN_ROUNDS = 1_000_000
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
      committee: further encoders, joined by +, see `transfer.check_stage_one`; the teacher is then
        the mean of the probes of all of them.
      teacher_steps: steps of a fine-tuned teacher; 0 = no fine-tuned teacher.
      teachers: number of fine-tuned teachers with different seeds; their mean is used.
      rounds: number of students in turn: each student but the last teaches the next one (Xie et
        al., "Self-training with Noisy Student", CVPR 2020).
    """

    linear_probe: bool = False
    committee: str = ""
    teacher_steps: int = 0
    teachers: int = 1
    rounds: int = 1

    @property
    def is_on(self) -> bool:
        return self.linear_probe or self.teacher_steps > 0

    @property
    def members(self) -> list[str]:
        """Where the further encoders come from."""
        return [place for place in files.split_places(self.committee) if place]

    def images_drawn(self, num_labelled: int) -> int:
        """Images that fine-tuned teachers draw. Runs without teachers draw as many in addition."""
        return self.teachers * self.teacher_steps * num_labelled


def num_labelled(batch_size: int, labelled_fraction: float) -> int:
    """How many images of a mixed batch are drawn from the labelled ones."""
    return min(max(round(batch_size * labelled_fraction), 1), batch_size - 1)


def is_needed(teaching: Teaching, classes: tuple[str, ...], images: ImageSource) -> bool:
    """Whether there are a teacher and an unlabelled image.

    Raises:
      DataError: there is a teacher, but no label to learn from.
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


def fingerprint(
    images: ImageSource, spec: ModelSpec, teaching: Teaching, *, pretrained: str, seed: int
) -> str:
    """A checksum of what a teacher's labels follow from.

    Args:
      images: all training images; their paths, order, labels and ages count.
      spec: specification of the model.
      teaching: which teachers.
      pretrained: where the student's encoder comes from.
      seed: of the run.
    """
    settings = {
        "spec": dataclasses.asdict(spec),
        "teaching": dataclasses.asdict(teaching),
        "pretrained": pretrained,
        "seed": seed,
        "images": images.records.image_path.tolist(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for values in (images.labels, images.findings, images.records.age_months):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def soft_labels(
    folder: str, compute: Callable[[str], np.ndarray], fingerprint: str, round_number: int = 1
) -> np.ndarray:
    """The teacher's probabilities for all training images, float32 `[N, K]`.

    They are stored in `teachers/`, so that a resumed run uses the same labels, with the
    `fingerprint`: labels of other images or settings are computed again.

    Args:
      folder: the workdir of the student.
      compute: folder for the teachers -> probabilities.
      fingerprint: what the labels follow from.
      round_number: of the student that learns from them, from 1.
    """
    folder = os.path.join(folder, "teachers")
    name = "soft_labels" if round_number == 1 else f"soft_labels_{round_number}"
    path = os.path.join(folder, f"{name}.npy")
    if not processes.from_main(processes.is_main() and _are_stored(folder, name, fingerprint)):
        os.makedirs(folder, exist_ok=True)
        probabilities = compute(folder)
        with processes.main_first():
            if processes.is_main():
                files.remove_checksums(folder)
                with files.replaced(path, "wb") as file:
                    np.save(file, probabilities)
                values = {"fingerprint": fingerprint}
                files.write_json(os.path.join(folder, f"{name}.json"), values, checksum=True)
                listed = sorted(map(os.path.basename, _places(folder, "soft_labels*.npy")))
                files.write_checksums(folder, listed)
    files.verify_checksums(folder, [f"{name}.npy"])
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to ask again") from None


def _are_stored(folder: str, name: str, fingerprint: str) -> bool:
    """Whether soft labels of this fingerprint are stored; removes those of another one."""
    try:
        recorded = files.read_json(os.path.join(folder, f"{name}.json"))["fingerprint"]
    except (OSError, DataError, KeyError):
        return False  # Also those of earlier versions: their teachers are asked again.
    if recorded == fingerprint:
        return os.path.exists(os.path.join(folder, f"{name}.npy"))
    _log.warning("%s is of other images, labels or settings: starting again", folder)
    for path in _places(folder, "soft_labels*", files.CHECKSUMS, "[0-9]*", "student[0-9]*"):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    return False


def _places(folder: str, *patterns: str) -> list[str]:
    """The files and folders in a folder by patterns of their names."""
    return [p for name in patterns for p in glob.glob(os.path.join(glob.escape(folder), name))]


def teach_students(
    folder: str,
    ask: Callable[[str], np.ndarray],
    images: ImageSource,
    *,
    spec: ModelSpec,
    teaching: Teaching,
    pretrained: str,
    predictor: Predictor,
    loop_settings: LoopSettings,
    fit: Callable[[LoopSettings, str, Any], object],
    batches: Callable[[ImageSource], Any],
) -> None:
    """Sets `images.soft_labels` to those of the last round; trains the students before the last.

    Args:
      folder: the workdir of the last student.
      ask: folder for the teachers -> probabilities for the first student, float32 `[N, K]`.
      images: all training images.
      spec: specification of the model.
      teaching: which teachers, and the number of rounds.
      pretrained: where the student's encoder comes from.
      predictor: applies a student.
      loop_settings: of every student.
      fit: trains a model: (settings, workdir, batches).
      batches: training images -> batches of a student.
    """

    origin = fingerprint(images, spec, teaching, pretrained=pretrained, seed=loop_settings.seed)

    def labels(round_number: int) -> np.ndarray:
        def from_student(place: str) -> np.ndarray:
            images.soft_labels = labels(round_number - 1)
            settings = dataclasses.replace(
                loop_settings, seed=loop_settings.seed + _SEEDS_BETWEEN_ROUNDS * (round_number - 1)
            )
            place = os.path.join(place, f"student{round_number - 1}")
            os.makedirs(place, exist_ok=True)
            _log.info("student %d of %d, in %s", round_number - 1, teaching.rounds, place)
            spec.write(place)
            fit(settings, place, batches(images))
            predictions, _ = predictor(restore(place, spec)[0], images)
            return np.asarray(predictions.probabilities, np.float32)

        compute = ask if round_number == 1 else from_student
        return soft_labels(folder, compute, origin, round_number)

    images.soft_labels = labels(teaching.rounds)
    _log.info("student: learns from %d images", len(images))


def set_aside_damaged(folder: str) -> None:
    """`checkpoints.set_aside_damaged` for a student's workdir and those of its teachers."""
    for place in (folder, *glob.glob(os.path.join(glob.escape(folder), "teachers", "*", ""))):
        checkpoints.set_aside_damaged(place)


def ask_linear_probes(
    spec: ModelSpec,
    places: Sequence[str],
    labelled: ImageSource,
    images: ImageSource,
    validation: ImageSource,
    *,
    augmentation: Augmentation,
    batch_size: int,
    num_threads: int,
    seed: int,
) -> np.ndarray:
    """Mean probabilities by linear probes of frozen encoders, such as the student's own.

    Args:
      spec: specification of the model.
      places: where the encoders come from, see `transfer.check_stage_one`.
      labelled: the training images with a label.
      images: all training images.
      validation: images that the probes are scored on, for the log.
      augmentation: augmentation of the labelled images, which the probes see unchanged as well.
      batch_size: images at a time.
      num_threads: number of decoding threads.
      seed: seed of random weights and of the augmentation.

    Returns:
      float32 `[N, K]`.
    """
    copies = min(_AUGMENTED_COPIES, _MOST_FEATURES // len(labelled))

    def score(who: str, probabilities: np.ndarray) -> None:
        if scored.findings is None:
            found = classification(probabilities, scored.label)
        else:
            found = findings_metrics(probabilities, scored.findings)
        _log.info(
            "teacher: %s on %d images, each unchanged and in %d augmented copies; validation "
            "ROC AUC %.3f, accuracy %.3f",
            who,
            len(labelled),
            copies,
            found["roc_auc"] if found["roc_auc"] is not None else np.nan,
            found["accuracy"],
        )

    taught, checked = [], []
    for place in places:
        other = ModelSpec.read(place).encoder if transfer.is_workdir(place) else spec.encoder
        own = transfer.with_input_scale(dataclasses.replace(spec, encoder=other), place)
        model, variables = transfer.untrained_model(own, place, seed)
        encoder = encoder_variables(variables)
        plain, augmented = (
            Extractor(
                pooled_map(model.encoder, mean=own.input_mean, std=own.input_std, changes=changes),
                batch_size=batch_size,
                num_threads=num_threads,
            )
            for changes in (None, augmentation)
        )
        parts = [plain(labelled, encoder)]
        parts += [augmented(labelled, encoder, seed * _AUGMENTED_COPIES + i) for i in range(copies)]
        train = Features.concatenate(parts)

        def predict(features: Features, train: Features = train) -> np.ndarray:
            return probe(train, features, spec.classes, l2=_L2, ages=False).probabilities

        if validation.has_condition.any():
            scored = plain(validation, encoder)
            checked.append(predict(scored))
            score(f"a linear probe of {place or 'random weights'}", checked[-1])
        seen = plain(images, encoder)
        answers = predict(seen)
        # An unreadable image gets the mean, which is not used: training puts another in its place.
        taught.append(np.tile(answers.mean(axis=0), (len(images), 1)))
        taught[-1][seen.rows] = answers
    if len(checked) > 1:
        score(f"the mean of {len(checked)} linear probes", np.mean(checked, axis=0))
    return np.mean(taught, axis=0).astype(np.float32)


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
      spec: specification of the model.
      teaching: how many teachers, and how long.
      labelled: the training images with a label.
      images: all training images.
      predictor: applies the model.
      loop_settings: of the student.
      num_labelled: labelled images in a batch of the student; the teachers' batch size.
      num_threads: number of decoding threads.
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
