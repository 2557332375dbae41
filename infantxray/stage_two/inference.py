"""Inference with stage-two models: building, restoring, and predicting for many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.evaluation.predictions import Predictions, concatenate
from infantxray.models import create_encoder
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.runs.model_spec import ModelSpec
from infantxray.training import augment, checkpoints, partial_restore
from infantxray.training.batches import map_batches
from infantxray.training.sharding import DataParallel

PyTree = Any

_MOST_MONTHS = 130 * 12


def build_model(spec: ModelSpec, *, freeze_encoder: bool = False) -> DiagnosisModel:
    """The network of a model specification."""
    dtype = jnp.dtype(spec.dtype)
    return DiagnosisModel(
        create_encoder(spec.encoder, dtype=dtype),
        num_classes=len(spec.classes),
        age_head=spec.has_age,
        age_range=spec.age_range,
        age_film=spec.age_film,
        num_context=len(spec.context),
        freeze_encoder=freeze_encoder,
        dtype=dtype,
    )


def init_variables(model: DiagnosisModel, image_size: int, key: jax.Array) -> PyTree:
    """Fresh `params` and `batch_stats`."""
    return model.init(key, jnp.zeros((1, image_size, image_size, 1)), train=False)


def read_spec(workdir: str) -> ModelSpec:
    """The specification of a stage-two model.

    Raises:
      UserError: the folder is not a workdir of stage two, or has no checkpoint yet.
    """
    spec = ModelSpec.read(workdir)
    if not spec.has_heads:
        raise UserError(
            f"{workdir} is a stage-one workdir, without a condition or age head; name the workdir "
            "of configs/finetune.py"
        )
    if not checkpoints.checkpoint_steps(workdir):
        raise UserError(f"{workdir} has no checkpoint yet; run configs/finetune.py to its end")
    return spec


def restore(workdir: str, spec: ModelSpec) -> tuple[PyTree, int]:
    """The variables of the best checkpoint, and its step."""
    model = build_model(spec)
    abstract = jax.eval_shape(
        lambda: init_variables(model, spec.preprocessing.image_size, jax.random.key(0))
    )
    step = checkpoints.best_step(workdir)
    variables, report = partial_restore.restore_variables(workdir, step, abstract)
    if report.new:
        raise checkpoints.CheckpointError(
            f"the checkpoint in {workdir} is of another version of this program: it lacks "
            f"{', '.join(report.new[:3])}; train it again"
        )
    return variables, step


def predict_function(spec: ModelSpec) -> Callable[..., dict[str, jax.Array]]:
    """The function from variables and images uint8 `[B, S, S, 1]` to the outputs of a model.

    Returns:
      A function, with the further inputs of `spec.context` `[B, D]` as an optional third argument,
      whose result has `features` `[B, C]` (pooled last maps), `probabilities` `[B, K]`
      where there are conditions, and `age` `[B]` (standardised) where there is an age head.
    """
    model = build_model(spec)

    def predict(
        variables: PyTree, image: jax.Array, context: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        x = augment.normalise(augment.to_intensity(image), spec.input_mean, spec.input_std)
        latent: Any = model.apply(variables, x, method=DiagnosisModel.latent)
        outputs: Any = model.apply(variables, latent, context=context, method=DiagnosisModel.heads)
        result = {"features": latent.mean(axis=(1, 2), dtype=jnp.float32)}
        if "logits" in outputs:
            squash = jax.nn.sigmoid if spec.multi_label else jax.nn.softmax
            result["probabilities"] = squash(outputs["logits"])
        if "age" in outputs:
            result["age"] = outputs["age"]
        return result

    return predict


def batch_context(source: ImageSource, image: jax.Array, start: int) -> jax.Array | None:
    """The context of a batch of `map_batches`, `[B, D]`, divided as its images, or None."""
    if source.context is None:
        return None
    rows = np.zeros((len(image), source.context.shape[1]), np.float32)
    here = source.context[start:][: len(image)]
    rows[: len(here)] = here
    sharding = DataParallel()
    return sharding.put(sharding.part.of(rows, len(rows)))


class ImplausiblePredictionError(UserError):
    """An impossible prediction: the weights are damaged, or training diverged."""


def check_plausible(spec: ModelSpec, predictions: Predictions, records: Records) -> None:
    """Raises `ImplausiblePredictionError` for the first impossible prediction.

    That is a probability or age that is not finite, or an age beyond ±130 years.
    """
    wrong = ~np.isfinite(predictions.probabilities).all(axis=1)
    what = "probabilities that are not finite"
    ages = predictions.age_predicted_months
    if not wrong.any() and spec.has_age:
        wrong = ~(np.abs(ages) <= _MOST_MONTHS)
        what = "an age beyond any human's"
    if wrong.any():
        at = int(np.argmax(wrong))
        value = f" ({ages[at]:.3g} months)" if "age" in what else ""
        raise ImplausiblePredictionError(
            f"the model predicts {what}{value} for {records.image_path[at]} and "
            f"{wrong.sum() - 1} more of this batch: its weights are damaged, or training diverged; "
            "train it again, with a lower config.optimizer.learning_rate"
        )


class Predictor:
    """Predicts conditions and ages for many images, on all devices.

    Args:
      spec: specification of the model.
      batch_size: images at a time on each device.
      num_threads: number of decoding threads.

    Attributes:
      model: the network.
    """

    def __init__(self, spec: ModelSpec, *, batch_size: int, num_threads: int):
        self.spec = spec
        self.model = build_model(spec)
        self._batch_size, self._num_threads = batch_size, num_threads
        self._apply = jax.jit(predict_function(spec))

    def outputs(
        self, variables: PyTree, source: ImageSource
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Outputs of `predict_function` batch by batch, and the rows of the readable images."""
        yield from map_batches(
            lambda image, start: self._apply(variables, image, batch_context(source, image, start)),
            source,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
        )

    def stream(
        self, variables: PyTree, source: ImageSource, *, check: bool = True
    ) -> Iterator[tuple[Predictions, Records]]:
        """Predictions batch by batch, in order, without unreadable images.

        Raises:
          ImplausiblePredictionError: a prediction is not finite, or an age beyond any human's.
            With `check=False` such predictions are returned.
        """
        for outputs, rows in self.outputs(variables, source):
            predictions, records = self._predictions(source, rows, outputs)
            if check:
                check_plausible(self.spec, predictions, records)
            yield predictions, records

    def _predictions(
        self, source: ImageSource, rows: np.ndarray, outputs: dict[str, np.ndarray]
    ) -> tuple[Predictions, Records]:
        spec, records = self.spec, source.records.take(rows)
        none = np.zeros((len(rows), len(spec.classes)), np.float32)
        ages = outputs.get("age", np.full(len(rows), np.nan, np.float32))
        predictions = Predictions(
            classes=spec.classes,
            probabilities=outputs.get("probabilities", none),
            label=source.labels[rows],
            age_months=records.age_months,
            age_predicted_months=spec.age_in_months(ages) if spec.has_age else ages,
            patient=records.patient,
            findings=self._findings(source, rows),
        )
        return predictions, records

    def _findings(self, source: ImageSource, rows: np.ndarray) -> np.ndarray | None:
        if not self.spec.multi_label:
            return None
        if source.findings is None:  # The labels of these images are not used, as in `predict`.
            return np.full((len(rows), len(self.spec.classes)), np.nan, np.float32)
        return source.findings[rows]

    def __call__(
        self, variables: PyTree, source: ImageSource, *, check: bool = True
    ) -> tuple[Predictions, Records]:
        """`Predictions` for all images, and the records they belong to; see `stream`."""
        return self.joined(source, self.stream(variables, source, check=check))

    def joined(
        self, source: ImageSource, stream: Iterable[tuple[Predictions, Records]]
    ) -> tuple[Predictions, Records]:
        """The batches of a `stream` of `source` as one."""
        parts = list(stream)
        if not parts:
            parts = [self._predictions(source, np.zeros(0, int), {})]
        records = Records.concatenate([records for _, records in parts])
        return concatenate([part for part, _ in parts]), records
