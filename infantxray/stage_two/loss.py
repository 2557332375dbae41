"""What stage two minimises: the cross-entropy of conditions and the error of ages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from infantxray.models.diagnosis import age_bins
from infantxray.runs import workdir
from infantxray.stage_two import inference as diagnosis
from infantxray.training import augment, loop, losses


def make_task(config, card: workdir.ModelCard, labels: np.ndarray, validate) -> loop.Task:
    """L = CE + α·MSE (Equation 4), each over the images whose label or age is known.

    Args:
      config: of stage two.
      card: of the model.
      labels: of the training images, int `[N]`, for the class weights.
      validate: variables -> metrics.
    """
    model = diagnosis.build_model(card, freeze_encoder=config.freeze_encoder)
    class_weights = jnp.asarray(_class_weights(config.class_weights, labels, len(card.classes)))
    age_term = f"age_{config.age_loss}"
    has_age = card.age_mean_months is not None
    learned = config.age_weighting == "uncertainty" and has_age and bool(card.classes)

    def weights(batch):
        result = {}
        if card.classes:
            weight = (batch["label"] >= 0) * class_weights[jnp.maximum(batch["label"], 0)]
            if "soft_label" in batch:
                taught = (batch["soft_label"] * class_weights[None, :]).sum(-1)
                weight = jnp.where(batch["label"] >= 0, weight, taught)
            result["cross_entropy"] = weight * batch["mask"]
        if has_age:
            result[age_term] = jnp.isfinite(batch["age_months"]) * batch["mask"]
        return result

    def compute(params, batch_stats, batch, key):
        image = augment.augment(augment.to_intensity(batch["image"]), key, config.augment)
        inner = {name: tree for name, tree in params.items() if name != "task_weighting"}
        outputs, updated = model.apply(
            {"params": inner, "batch_stats": batch_stats},
            augment.normalise(image),
            train=True,
            age=_standardised_age(card, batch) if card.age_film else None,
            mutable=["batch_stats"],
        )
        terms = loss_terms(card, outputs, batch, class_weights)
        if learned:
            terms = losses.weigh_by_uncertainty(terms, params["task_weighting"]["log_variance"])
        return terms, updated.get("batch_stats", batch_stats)

    def init(key):
        variables = diagnosis.init_variables(model, card.preprocessing.image_size, key)
        if learned:
            log_variance = {name: jnp.zeros(()) for name in ("cross_entropy", age_term)}
            variables["params"]["task_weighting"] = {"log_variance": log_variance}
        return variables

    coefficients = {"cross_entropy": 1.0} if card.classes else {}
    if has_age:
        coefficients[age_term] = config.age_weight if card.classes and not learned else 1.0

    def log_weights(step, state, writer):
        del writer
        if not learned or step % config.log_every_steps:
            return {}
        log_variance = jax.device_get(state.params["task_weighting"]["log_variance"])
        return {f"train/weight_{name}": float(np.exp(-s)) for name, s in log_variance.items()}

    return loop.Task(
        init=init,
        weights=weights,
        losses=compute,
        coefficients=coefficients,
        evaluate=validate,
        on_step=log_weights,
    )


def _standardised_age(card: workdir.ModelCard, batch) -> jax.Array:
    return (batch["age_months"] - card.age_mean_months) / card.age_std_months


def loss_terms(
    card: workdir.ModelCard, outputs, batch, class_weights: jax.Array
) -> dict[str, jax.Array]:
    """Each image's cross-entropy and age loss, `{name: [B]}`, unmasked.

    An image with a teacher's `soft_label` and no label of its own is compared with the former.
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
        terms["age_distribution"] = losses.age_distribution(
            outputs["age_logits"],
            outputs["age"],
            _standardised_age(card, batch),
            jnp.asarray(age_bins(card.age_range)),
        )
    elif "age" in outputs:
        terms["age_mse"] = losses.squared_error(outputs["age"], _standardised_age(card, batch))
    return terms


def _class_weights(how: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weight of each class in the loss, `[K]`: ones, or inverse to how often it occurs."""
    counts = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.float32)
    if how == "none":
        return np.ones_like(counts)
    return counts.sum() / (num_classes * np.maximum(counts, 1.0))
