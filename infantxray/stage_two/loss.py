"""The loss of stage two: cross-entropy of conditions and error of ages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infantxray.models.diagnosis import age_bins
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import build_model, init_variables
from infantxray.training import augment, losses
from infantxray.training.augment import Augmentation
from infantxray.training.hooks import Moment
from infantxray.training.train_step import Task

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How the terms of the loss are computed and weighed.

    Attributes:
      age_weight: α of Equation 4.
      age_loss: `"mse"` (Equation 3), or `"distribution"`, see `losses.age_distribution`.
      age_weighting: `"fixed"` by α, or `"uncertainty"`, see `losses.weigh_by_uncertainty`.
      class_weights: `"none"`, or `"balanced"`, the inverse frequency of each class.
      freeze_encoder: train the heads alone.
    """

    age_weight: float = 0.8
    age_loss: str = "mse"
    age_weighting: str = "fixed"
    class_weights: str = "none"
    freeze_encoder: bool = False

    @property
    def age_term(self) -> str:
        return f"age_{self.age_loss}"


def make_task(
    spec: ModelSpec,
    settings: LossSettings,
    augmentation: Augmentation,
    labels: np.ndarray,
    validate: Callable[[PyTree], dict[str, float]],
) -> Task:
    """L = CE + α·MSE (Equation 4), each over the images whose label or age is known.

    Args:
      spec: of the model.
      settings: of the loss.
      augmentation: of training images.
      labels: of the training images, int `[N]`, for the class weights.
      validate: variables -> metrics.
    """
    model = build_model(spec, freeze_encoder=settings.freeze_encoder)
    class_weights = jnp.asarray(_class_weights(settings.class_weights, labels, len(spec.classes)))
    age_term = settings.age_term
    learned = learns_weights(spec, settings)

    def weights(batch: Any) -> dict[str, jax.Array]:
        result = {}
        if spec.classes:
            weight = (batch["label"] >= 0) * class_weights[jnp.maximum(batch["label"], 0)]
            if "soft_label" in batch:
                taught = (batch["soft_label"] * class_weights[None, :]).sum(-1)
                weight = jnp.where(batch["label"] >= 0, weight, taught)
            result["cross_entropy"] = weight * batch["mask"]
        if spec.has_age:
            result[age_term] = jnp.isfinite(batch["age_months"]) * batch["mask"]
        return result

    def compute(params: PyTree, batch_stats: PyTree, batch: Any, key: jax.Array) -> Any:
        image = augment.augment(augment.to_intensity(batch["image"]), key, augmentation)
        inner = {name: tree for name, tree in params.items() if name != "task_weighting"}
        outputs, updated = model.apply(
            {"params": inner, "batch_stats": batch_stats},
            augment.normalise(image, spec.input_mean, spec.input_std),
            train=True,
            age=spec.standardise_age(batch["age_months"]) if spec.age_film else None,
            mutable=["batch_stats"],
        )
        terms = loss_terms(spec, outputs, batch, class_weights)
        if learned:
            terms = losses.weigh_by_uncertainty(terms, params["task_weighting"]["log_variance"])
        return terms, updated.get("batch_stats", batch_stats)

    def init(key: jax.Array) -> PyTree:
        variables = init_variables(model, spec.preprocessing.image_size, key)
        if learned:
            log_variance = {name: jnp.zeros(()) for name in ("cross_entropy", age_term)}
            variables["params"]["task_weighting"] = {"log_variance": log_variance}
        return variables

    coefficients = {"cross_entropy": 1.0} if spec.classes else {}
    if spec.has_age:
        coefficients[age_term] = settings.age_weight if spec.classes and not learned else 1.0
    return Task(
        init=init, weights=weights, losses=compute, coefficients=coefficients, evaluate=validate
    )


def learns_weights(spec: ModelSpec, settings: LossSettings) -> bool:
    """Whether the weights of the terms are parameters."""
    return settings.age_weighting == "uncertainty" and spec.has_age and bool(spec.classes)


class TaskWeights:
    """A hook that logs the learned weights of the terms."""

    def __init__(self, every_steps: int):
        self._every_steps = every_steps

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        if not moment.every(self._every_steps):
            return {}
        log_variance = jax.device_get(moment.state.params["task_weighting"]["log_variance"])
        return {f"train/weight_{name}": float(np.exp(-s)) for name, s in log_variance.items()}


def loss_terms(
    spec: ModelSpec, outputs: Mapping[str, jax.Array], batch: Any, class_weights: jax.Array
) -> dict[str, jax.Array]:
    """Each image's cross-entropy and age loss, `{name: [B]}`, unmasked.

    An image without a label is compared with the teacher's `soft_label`, where there is one.
    """
    terms = {}
    if "logits" in outputs:
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


def _class_weights(how: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weight of each class in the loss, `[K]`: ones, or the inverse of its frequency."""
    counts = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.float32)
    if how == "none":
        return np.ones_like(counts)
    return counts.sum() / (num_classes * np.maximum(counts, 1.0))
