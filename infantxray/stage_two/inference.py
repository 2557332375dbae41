"""Stage-two models in use: building, loading, and running one over images."""

from __future__ import annotations

import csv
import logging
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource, evaluation_batches
from data_pipeline.manifest import Records
from data_pipeline.splits import patient_keys
from infantxray.evaluation.metrics import Predictions
from infantxray.models import create_encoder
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.runs.workdir import ModelCard
from infantxray.training import augment, checkpoints
from infantxray.training.sharding import DataParallel

_log = logging.getLogger(__name__)


def build_model(card: ModelCard, *, freeze_encoder: bool = False) -> DiagnosisModel:
    """The network that a model card describes."""
    dtype = jnp.dtype(card.dtype)
    return DiagnosisModel(
        create_encoder(card.encoder, dtype=dtype),
        num_classes=len(card.classes),
        age_head=card.age_mean_months is not None,
        age_range=card.age_range,
        age_film=card.age_film,
        freeze_encoder=freeze_encoder,
        dtype=dtype,
    )


def init_variables(model: DiagnosisModel, image_size: int, key: jax.Array):
    """Fresh `params` and `batch_stats`."""
    return model.init(key, jnp.zeros((1, image_size, image_size, 1)), train=False)


def read_card(workdir: str) -> ModelCard:
    """The card of a stage-two model.

    Raises:
      UserError: the folder is not a workdir of stage two, or has no checkpoint yet.
    """
    card = ModelCard.read(workdir)
    if not card.classes and card.age_mean_months is None:
        raise UserError(
            f"{workdir} is a stage-one workdir, without a condition or age head; name the workdir "
            "of configs/finetune.py"
        )
    if not checkpoints.checkpoint_steps(workdir):
        raise UserError(f"{workdir} has no checkpoint yet; run configs/finetune.py to its end")
    return card


def restore(workdir: str, card: ModelCard):
    """The variables of the checkpoint that was best on the validation images, and its step."""
    model = build_model(card)
    abstract = jax.eval_shape(
        lambda: init_variables(model, card.preprocessing.image_size, jax.random.key(0))
    )
    step = checkpoints.best_step(workdir)
    variables, report = checkpoints.restore_variables(workdir, step, abstract)
    if report.new:
        raise checkpoints.CheckpointError(
            f"the checkpoint in {workdir} is of another version of this program: it lacks "
            f"{', '.join(report.new[:3])}; train it again"
        )
    _log.info("model of %s, step %d", workdir, step)
    return variables, step


class Predictor:
    """Runs a model over images, on all devices.

    Args:
      card: of the model.
      batch_size: images at a time.
      num_threads: for decoding.
      patient_ids: see `data_pipeline.splits.patient_keys`.
    """

    def __init__(
        self, card: ModelCard, *, batch_size: int, num_threads: int, patient_ids: str = "shared"
    ):
        self.card = card
        self.model = model = build_model(card)
        self._patient_ids = patient_ids
        self._sharding = DataParallel()
        self._batch_size = self._sharding.evaluation_batch_size(batch_size)
        self._num_threads = num_threads

        def apply(variables, image):
            x = augment.normalise(augment.to_intensity(image))
            outputs = model.apply(variables, x, train=False)
            outputs.pop("age_logits", None)
            if "logits" in outputs:
                outputs["probabilities"] = jax.nn.softmax(outputs.pop("logits"))
            return outputs

        self._apply = jax.jit(apply)

    def __call__(self, variables, source: ImageSource) -> tuple[Predictions, Records]:
        """Images -> `Predictions` and the records they belong to (without unreadable files)."""
        card = self.card
        variables = jax.device_put(variables, self._sharding.replicated)
        outputs, masks = [], []
        for batch in evaluation_batches(source, self._batch_size, num_threads=self._num_threads):
            image = jax.device_put(batch["image"], self._sharding.batch)
            outputs.append(jax.device_get(self._apply(variables, image)))
            masks.append(batch["mask"])
        keep = np.flatnonzero(np.concatenate(masks) > 0) if masks else np.zeros(0, int)

        def gather(name, shape):
            parts = [output[name] for output in outputs if name in output]
            return np.concatenate(parts)[keep] if parts else np.full(shape, np.nan, np.float32)

        records = source.records.take(keep)
        ages = gather("age", (len(keep),))
        if card.age_mean_months is not None:
            ages = ages * card.age_std_months + card.age_mean_months
        predictions = Predictions(
            classes=card.classes,
            probabilities=gather("probabilities", (len(keep), len(card.classes))),
            label=source.labels[keep],
            age_months=records.age_months,
            age_predicted_months=ages,
            patient=patient_keys(records, self._patient_ids),
        )
        return predictions, records


def write_predictions(path: str, predictions: Predictions, records: Records) -> None:
    """Writes `predictions.csv`; what is unknown is left empty."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "image_path",
                "patient_id",
                "label",
                "predicted",
                *(f"p_{name}" for name in predictions.classes),
                "age_months",
                "age_predicted_months",
            ]
        )
        for i in range(len(records)):
            probabilities = predictions.probabilities[i]
            writer.writerow(
                [
                    records.image_path[i],
                    records.patient_id[i],
                    records.label[i],
                    predictions.classes[int(probabilities.argmax())] if len(probabilities) else "",
                    *(f"{p:.7g}" for p in probabilities),
                    _number(records.age_months[i]),
                    _number(predictions.age_predicted_months[i]),
                ]
            )


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""


def write_bad_files(folder: str, bad_files) -> None:
    """Writes `bad_files.csv` where there are any."""
    bad_files.write(os.path.join(folder, "bad_files.csv"))
