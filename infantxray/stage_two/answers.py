"""Predictions with calibration, prediction sets and intervals, of one model or an ensemble."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.evaluation.operating_points import OperatingPoint, read_points
from infantxray.evaluation.predictions import Predictions
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import batch_context, predict_function, read_spec, restore
from infantxray.stage_two.reconstruction import ReconstructionError
from infantxray.stage_two.trust import Judgement, Trust
from infantxray.stage_two.trust_fitting import for_workdir
from infantxray.training.augment import Augmentation, augment
from infantxray.training.batches import map_batches

_log = logging.getLogger(__name__)

PyTree = Any

# Changes that a patient's position makes. No flips: sides and gravity carry meaning.
_SMALL = Augmentation(rotation_degrees=5.0, scale=0.05, shift=0.03)


@dataclasses.dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
      spec: all that is needed to use the weights.
      variables: its parameters and statistics.
      trust: its calibration; None to use the model's own probabilities.
      step: step of the checkpoint.
      folder: the workdir.
      points: thresholds of its probabilities: those of `trust` if there are any or if it
        calibrates, else those of the run's report.
    """

    spec: ModelSpec
    variables: PyTree
    trust: Trust | None = None
    step: int = 0
    folder: str = ""
    points: tuple[OperatingPoint, ...] = ()

    def thresholds(self) -> dict[str, dict[str, float]]:
        """The thresholds `{rule: {condition: probability}}`."""
        found: dict[str, dict[str, float]] = {}
        for point in self.points:
            if point.finding in self.spec.classes:
                found.setdefault(point.rule, {})[point.finding] = min(point.threshold, 1.0)
        return found

    def positive(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Which probabilities `[N, K]` reach their threshold, `{rule: bool [N, K]}`."""
        return {
            rule: probabilities >= [limits.get(name, np.inf) for name in self.spec.classes]
            for rule, limits in self.thresholds().items()
        }


@dataclasses.dataclass(frozen=True)
class Answers:
    """Predictions for N images, with their calibration, sets and warnings.

    Attributes:
      predictions: calibrated.
      judgement: see `Judgement`. For an ensemble, the union of the members' sets and intervals,
        with at least the coverage of a member, the median distance, and the warnings of the
        majority; without one that a member lacks.
      positive: conditions at or above their threshold, by rule, bool `[N, K]`; for an ensemble, in
        more than half of the members.
      features: pooled last maps of the first model, `[N, C]`.
      constant: images of one grey value, bool `[N]`.
      reconstruction_error: of its stage one, `[N]`; None if it was not requested.
    """

    predictions: Predictions
    judgement: Judgement
    positive: dict[str, np.ndarray]
    features: np.ndarray
    constant: np.ndarray
    reconstruction_error: np.ndarray | None = None


def load_members(
    folders: Sequence[str], *, calibrate: bool = True, refit: bool = True
) -> tuple[Member, ...]:
    """Loads the models of an ensemble.

    Args:
      folders: workdirs of stage two.
      calibrate: use the calibration of the runs.
      refit: fit it for runs that have none, such as those of earlier versions.

    Raises:
      UserError: a folder is not such a workdir, or the models differ in conditions or in
        preprocessing.
    """
    members: list[Member] = []
    for folder in folders:
        spec = read_spec(folder)
        first = members[0].spec if members else spec
        names = ("classes", "preprocessing", "multi_label", "context")
        if any(getattr(spec, name) != getattr(first, name) for name in names):
            raise UserError(
                f"{folder} and {folders[0]} differ in conditions, preprocessing or inputs; the "
                "models of an ensemble must agree in them"
            )
        variables, step = restore(folder, spec)
        _log.info("model of %s, step %d", folder, step)
        trust = None
        if calibrate:
            trust = for_workdir(folder, spec, variables, refit=refit)
        calibrated = trust is not None and trust.temperature is not None
        points = trust.points if trust and (calibrated or trust.points) else read_points(folder)
        members.append(Member(spec, variables, trust, step, folder, tuple(points)))
    return tuple(members)


class Answerer:
    """Answers for many images, on all devices.

    Args:
      members: of the ensemble; one model is an ensemble too.
      batch_size: images at a time on each device.
      num_threads: number of decoding threads.
      augmentations: slightly rotated, scaled and shifted copies whose predictions are averaged
        with the image's own.
      reconstruction: of the autoencoder that the first model started from; None = do without.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        batch_size: int = 32,
        num_threads: int = 4,
        augmentations: int = 0,
        reconstruction: ReconstructionError | None = None,
    ):
        self.members, self.reconstruction = tuple(members), reconstruction
        self._how = {"batch_size": batch_size, "num_threads": num_threads}
        self._functions = [
            jax.jit(functools.partial(_averaged, predict_function(m.spec), augmentations))
            for m in self.members
        ]

    def stream(self, source: ImageSource) -> Iterator[tuple[Answers, Records]]:
        """Answers batch by batch, in order, without unreadable images.

        Memory does not grow with the number of images.
        """

        def answer(image: jax.Array, start: int) -> list[dict[str, jax.Array]]:
            return self.outputs(image, batch_context(source, image, start))

        for outputs, rows in map_batches(answer, source, **self._how):
            records = source.records.take(rows)
            yield self.answers(outputs, records, source.labels[rows]), records

    def outputs(
        self, image: jax.Array, context: jax.Array | None = None
    ) -> list[dict[str, jax.Array]]:
        """What each member predicts for images uint8 `[B, S, S, 1]` and further inputs `[B, D]`."""
        found = [
            function(member.variables, image, context)
            for function, member in zip(self._functions, self.members, strict=True)
        ]
        if self.reconstruction is not None:
            found[0] = found[0] | {"reconstruction": self.reconstruction(image)}
        return found

    def answers(
        self, outputs: Sequence[dict[str, np.ndarray]], records: Records, label: np.ndarray
    ) -> Answers:
        """Joins what the members predict.

        Args:
          outputs: of each member, without padding.
          records: the N images.
          label: int `[N]`, -1 = unknown.
        """
        n = len(label)
        judged, ages, votes = [], [], []
        for member, found in zip(self.members, outputs, strict=True):
            spec = member.spec
            months = np.full(n, np.nan, np.float32)
            if spec.has_age:
                months = np.asarray(spec.age_in_months(found["age"]), np.float32)
            none = np.zeros((n, len(spec.classes)), np.float32)
            ages.append(months)
            judged.append(
                (member.trust or Trust()).judge(
                    found.get("probabilities", none), months, found["features"]
                )
            )
            votes.append(member.positive(judged[-1].probabilities))
        sets = [j.in_set for j in judged if j.in_set is not None]
        unlike = [j.unlike_training for j in judged if j.unlike_training is not None]
        judgement = Judgement(
            np.asarray(np.mean([j.probabilities for j in judged], axis=0, dtype=np.float32)),
            np.any(sets, axis=0) if len(sets) == len(judged) else None,
            np.min([j.age_low_months for j in judged], axis=0),
            np.max([j.age_high_months for j in judged], axis=0),
            np.median([j.distance for j in judged], axis=0),
            np.mean(unlike, axis=0) > 0.5 if len(unlike) == len(judged) else None,
        )
        positive = {
            rule: np.mean([vote[rule] for vote in votes], axis=0) > 0.5
            for rule in votes[0]
            if all(rule in vote for vote in votes)
        }
        spec = self.members[0].spec
        predictions = Predictions(
            classes=spec.classes,
            probabilities=judgement.probabilities,
            label=label,
            age_months=records.age_months,
            age_predicted_months=np.asarray(np.mean(ages, axis=0, dtype=np.float32)),
            patient=records.patient,
            findings=np.full_like(judgement.probabilities, np.nan) if spec.multi_label else None,
        )
        features, errors = outputs[0]["features"], outputs[0].get("reconstruction")
        constant = outputs[0].get("constant", np.zeros(n, bool))
        return Answers(predictions, judgement, positive, features, constant, errors)


def _averaged(
    predict: Any, augmentations: int, variables: PyTree, image: jax.Array, context: Any
) -> PyTree:
    """Predictions for images `[B, S, S, 1]`, averaged over slightly moved copies.

    All images are moved alike, so a prediction does not depend on the rest of its batch.
    """
    outputs = predict(variables, image, context)
    for key in jax.random.split(jax.random.key(0), augmentations):
        keys = jnp.broadcast_to(key, (len(image),))
        moved = augment(image.astype(jnp.float32) / 255, keys, _SMALL)
        more = predict(variables, jnp.rint(moved * 255).astype(jnp.uint8), context)
        # Features, and so distances, are those of the image itself.
        outputs |= {k: outputs[k] + v for k, v in more.items() if k != "features"}
    mean = {k: v if k == "features" else v / (1 + augmentations) for k, v in outputs.items()}
    # Here, and not where images are read: each process reads a part of them.
    return mean | {"constant": image.min((1, 2, 3)) == image.max((1, 2, 3))}
