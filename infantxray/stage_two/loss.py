"""The loss of stage two: cross-entropy of conditions and error of ages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import DataError
from infantxray.models.diagnosis import age_bins
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import build_model, init_variables
from infantxray.training import augment, losses, mixup
from infantxray.training.augment import Augmentation
from infantxray.training.batch_norm import PreciseStatistics
from infantxray.training.hooks import Moment
from infantxray.training.train_step import Task

PyTree = Any

_CONTEXT_HIDDEN = 0.1  # Share of the images whose sex and view are hidden in training.
# Streams of random numbers, apart from those of the augmentation: its keys are `fold_in` of the
# same key with the number of the example, which is below that of any stream.
_CONTEXT_STREAM, _VIEW_STREAM, _MIXUP_STREAM = (2**31 - 1 - n for n in range(3))


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How the terms of the loss are computed and weighed.

    Attributes:
      age_weight: α of Equation 4.
      age_loss: `"mse"` (Equation 3), or `"distribution"`, see `losses.age_distribution`.
      age_weighting: `"fixed"` by α, or `"uncertainty"`, see `losses.weigh_by_uncertainty`.
      class_weights: `"none"`, or `"balanced"`, the inverse frequency of each class; where an image
        may have several findings, that of their presence and absence.
      freeze_encoder: train the heads alone.
      mixup: α of the Beta distribution of MixUp, see `training.mixup`; 0 = off.
      consistency: weight of the disagreement between two augmented views of an image, see
        `losses.disagreement`; 0 = off, one view. The other terms are means over both views.
    """

    age_weight: float = 0.8
    age_loss: str = "mse"
    age_weighting: str = "fixed"
    class_weights: str = "none"
    freeze_encoder: bool = False
    mixup: float = 0.0
    consistency: float = 0.0

    @property
    def age_term(self) -> str:
        return f"age_{self.age_loss}"


def make_task(
    spec: ModelSpec,
    settings: LossSettings,
    augmentation: Augmentation,
    labels: np.ndarray,
    validate: Callable[[PyTree], dict[str, float]],
    statistics: Callable[..., PreciseStatistics] | None = None,
) -> Task:
    """L = CE + α·MSE (Equation 4), each over the images whose label or age is known.

    Where an image may have several findings, CE is the binary cross-entropy of one sigmoid each,
    over all known findings of the batch.

    Args:
      spec: specification of the model.
      settings: settings of the loss.
      augmentation: augmentation of training images.
      labels: of the training images, int `[N]`, or their findings, `[N, K]`, for the class weights.
      validate: variables -> metrics.
      statistics: makes the BatchNorm statistics for evaluation from a forward pass; None = the
        running statistics.

    Raises:
      DataError: the loss compares conditions, and there are none.
    """
    if settings.consistency and not spec.classes:
        raise DataError("config.consistency compares predicted conditions, and there are no labels")
    model = build_model(spec, freeze_encoder=settings.freeze_encoder)
    if spec.multi_label:
        class_weights = jnp.asarray(_finding_weights(settings.class_weights, labels))
    else:
        count = len(spec.classes)
        class_weights = jnp.asarray(_class_weights(settings.class_weights, labels, count))
    age_term = settings.age_term
    learned = learns_weights(spec, settings)

    def weights(batch: Any) -> dict[str, jax.Array]:
        result = {}
        if spec.multi_label:
            weight = finding_targets(batch, class_weights)[1].sum(-1)
            result["cross_entropy"] = weight * batch["mask"]
        elif spec.classes:
            weight = (batch["label"] >= 0) * class_weights[jnp.maximum(batch["label"], 0)]
            if "soft_label" in batch:
                taught = (batch["soft_label"] * class_weights[None, :]).sum(-1)
                weight = jnp.where(batch["label"] >= 0, weight, taught)
            result["cross_entropy"] = weight * batch["mask"]
        if spec.has_age:
            result[age_term] = jnp.isfinite(batch["age_months"]) * batch["mask"]
        if settings.consistency:
            result["consistency"] = batch["mask"]
        return result

    def forward(
        params: PyTree, batch_stats: PyTree, batch: Any, image: jax.Array, context: Any
    ) -> tuple[Any, PyTree]:
        """Outputs in training mode for intensities `[B, S, S, 1]`, and the updated batch_stats."""
        inner = {name: tree for name, tree in params.items() if name != "task_weighting"}
        outputs, updated = model.apply(
            {"params": inner, "batch_stats": batch_stats},
            augment.normalise(image, spec.input_mean, spec.input_std),
            train=True,
            age=spec.standardise_age(batch["age_months"]) if spec.age_film else None,
            context=context,
            mutable=["batch_stats"],
        )
        return outputs, updated.get("batch_stats", batch_stats)

    def view(
        params: PyTree, batch_stats: PyTree, batch: Any, keys: tuple[jax.Array, ...]
    ) -> tuple[Any, dict[str, jax.Array], PyTree]:
        """Outputs and terms of one augmented view, by the keys of the augmentation and MixUp."""
        image = augment.augment(augment.to_intensity(batch["image"]), keys[0], augmentation)
        context = _shown(batch["context"], keys[0]) if spec.context else None
        if not settings.mixup:
            outputs, batch_stats = forward(params, batch_stats, batch, image, context)
            return outputs, loss_terms(spec, outputs, batch, class_weights), batch_stats
        mixing = mixup.draw(keys[1], len(image), settings.mixup)
        outputs, batch_stats = forward(params, batch_stats, batch, mixing.mix(image), context)
        terms = mixing.terms(lambda out: loss_terms(spec, out, batch, class_weights), outputs)
        return outputs, terms, batch_stats

    def compute(params: PyTree, batch_stats: PyTree, batch: Any, key: jax.Array) -> Any:
        mixing_key = jax.random.fold_in(key, _MIXUP_STREAM)  # Both views mix the same pairs.
        outputs, terms, batch_stats = view(params, batch_stats, batch, (key, mixing_key))
        apart = None
        if settings.consistency:
            keys = (jax.random.fold_in(key, _VIEW_STREAM), mixing_key)
            other, more, batch_stats = view(params, batch_stats, batch, keys)
            terms = {name: (value + more[name]) / 2 for name, value in terms.items()}
            apart = losses.disagreement(outputs["logits"], other["logits"], spec.multi_label)
        if learned:
            terms = losses.weigh_by_uncertainty(terms, params["task_weighting"]["log_variance"])
        if apart is not None:
            terms["consistency"] = apart
        return terms, batch_stats

    def plain_statistics(params: PyTree, batch_stats: PyTree, batch: Any) -> PyTree:
        image, context = augment.to_intensity(batch["image"]), batch.get("context")
        return forward(params, batch_stats, batch, image, context)[1]

    def init(key: jax.Array) -> PyTree:
        variables = init_variables(model, spec.preprocessing.image_size, key)
        if learned:
            log_variance = {name: jnp.zeros(()) for name in ("cross_entropy", age_term)}
            variables["params"]["task_weighting"] = {"log_variance": log_variance}
        return variables

    coefficients = {"cross_entropy": 1.0} if spec.classes else {}
    if spec.has_age:
        coefficients[age_term] = settings.age_weight if spec.classes and not learned else 1.0
    if settings.consistency:
        coefficients["consistency"] = settings.consistency
    return Task(
        init=init,
        weights=weights,
        losses=compute,
        coefficients=coefficients,
        evaluate=validate,
        # A frozen encoder keeps the statistics that it came with.
        statistics=statistics(plain_statistics)
        if statistics and not settings.freeze_encoder
        else None,
    )


def learns_weights(spec: ModelSpec, settings: LossSettings) -> bool:
    """Whether the weights of the terms are parameters."""
    return settings.age_weighting == "uncertainty" and spec.has_age and bool(spec.classes)


class TaskWeights:
    """A hook that logs the learned weights of the terms, in the place of 1 and α."""

    def __init__(self, every_steps: int):
        self._every_steps = every_steps

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        if not moment.every(self._every_steps):
            return {}
        log_variance = jax.device_get(moment.state.params["task_weighting"]["log_variance"])
        weights = losses.uncertainty_weights(log_variance)
        return {f"train/weight_{name}": float(weight) for name, weight in weights.items()}


def loss_terms(
    spec: ModelSpec, outputs: Mapping[str, jax.Array], batch: Any, class_weights: jax.Array
) -> dict[str, jax.Array]:
    """Each image's cross-entropy and age loss, `{name: [B]}`, unmasked.

    An image without a label is compared with the teacher's `soft_label`, where there is one.
    """
    terms = {}
    if "logits" in outputs and spec.multi_label:
        target, weight = finding_targets(batch, class_weights)
        each = losses.binary_cross_entropy(outputs["logits"], target)
        terms["cross_entropy"] = (each * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1e-12)
    elif "logits" in outputs:
        terms["cross_entropy"] = losses.cross_entropy(outputs["logits"], batch["label"])
        if "soft_label" in batch:
            # Weighed class by class, as labels are: a weight of the whole image would leave the
            # minimum where the teacher put it.
            target = batch["soft_label"] * class_weights[None, :]
            target /= target.sum(-1, keepdims=True)
            taught = losses.soft_cross_entropy(outputs["logits"], target)
            terms["cross_entropy"] = jnp.where(batch["label"] >= 0, terms["cross_entropy"], taught)
    if "age_logits" in outputs:
        assert spec.age_range is not None
        terms["age_distribution"] = losses.age_distribution(
            outputs["age_logits"],
            outputs["age"],
            spec.standardise_age(batch["age_months"]),
            jnp.asarray(age_bins(spec.age_range)),
        )
    elif "age" in outputs:
        age = spec.standardise_age(batch["age_months"])
        terms["age_mse"] = losses.squared_error(outputs["age"], age)
    return terms


def finding_targets(batch: Any, class_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets and weights of the findings of a batch, `[B, K]` each.

    The weight of an unknown finding is 0. An image without any known finding is compared with the
    teacher's `soft_label`, where there is one.

    Args:
      batch: batch with `findings`.
      class_weights: `[2, K]`, of absence and of presence.
    """
    target, known = batch["findings"], jnp.isfinite(batch["findings"])
    if "soft_label" in batch:
        taught = ~known.any(-1, keepdims=True)
        target, known = jnp.where(taught, batch["soft_label"], target), known | taught
    target = jnp.where(known, target, 0.0)
    present = target * class_weights[None, 1]
    weight = (1 - target) * class_weights[None, 0] + present
    # A teacher's presence and absence are weighed apart, as labels are: a weight of the finding
    # would leave the minimum where the teacher put it. A label stays 0 or 1.
    return present / jnp.maximum(weight, 1e-12), known * weight


def _shown(context: jax.Array, key: jax.Array) -> jax.Array:
    """Further inputs, hidden in some images, so that the model also works without them."""
    key = jax.random.fold_in(key, _CONTEXT_STREAM)
    return context * jax.random.bernoulli(key, 1 - _CONTEXT_HIDDEN, (len(context), 1))


def _finding_weights(how: str, findings: np.ndarray) -> np.ndarray:
    """Weights of absence and presence of each finding, `[2, K]`."""
    counts = np.stack([(findings == value).sum(0) for value in (0, 1)]).astype(np.float32)
    if how == "none":
        return np.ones_like(counts)
    return counts.sum(0) / (2 * np.maximum(counts, 1.0))


def _class_weights(how: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weight of each class in the loss, `[K]`: ones, or the inverse of its frequency."""
    counts = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.float32)
    if how == "none":
        return np.ones_like(counts)
    return counts.sum() / (num_classes * np.maximum(counts, 1.0))
