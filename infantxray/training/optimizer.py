"""AdamW or SGD with warm-up and cosine decay."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule.

    Attributes:
      name: `"adamw"`, or `"sgd"` (Nesterov momentum 0.9).
      learning_rate: at the end of the warm-up.
      warmup_fraction: of all steps.
      weight_decay: decoupled, on kernels alone; it is multiplied by the learning rate.
      clip_norm: largest norm of the whole gradient, without that of frozen parameters; 0 = no
        clipping.
      factor_without_batchnorm: multiplies the learning rate of encoders without BatchNorm.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    factor_without_batchnorm: float = 0.03


def learning_rate_schedule(settings: OptimizerSettings, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `settings.learning_rate`, then cosine to zero at `total_steps`."""
    warmup_steps = round(settings.warmup_fraction * total_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(total_steps, warmup_steps + 1),
    )


def create_optimizer(
    settings: OptimizerSettings, total_steps: int, factors: PyTree | None = None
) -> optax.GradientTransformation:
    """Creates the optimizer with its schedule.

    Args:
      settings: the optimizer and its schedule.
      total_steps: length of the schedule.
      factors: tree like the parameters, of numbers that multiply the learning rate; 0 freezes a
        parameter. None = 1 for all.
    """
    schedule = learning_rate_schedule(settings, total_steps)

    def branch(factor: float) -> optax.GradientTransformation:
        if factor == 0:
            return optax.set_to_zero()
        steps = []
        if settings.name == "adamw":
            steps.append(optax.scale_by_adam())
        else:
            steps.append(optax.trace(decay=0.9, nesterov=True))
        if settings.weight_decay:
            steps.append(optax.add_decayed_weights(settings.weight_decay, mask=_is_kernel))
        steps.append(optax.scale_by_learning_rate(lambda step: factor * schedule(step)))
        return optax.chain(*steps)

    if factors is None:
        optimizer = branch(1.0)
    else:
        values = sorted(set(jax.tree.leaves(factors)))
        names = jax.tree.map(lambda factor: f"{factor:g}", factors)
        optimizer = optax.partition({f"{value:g}": branch(value) for value in values}, names)
    if settings.clip_norm:
        optimizer = optax.chain(_clip(settings.clip_norm, factors), optimizer)
    return optimizer


def _clip(largest: float, factors: PyTree | None) -> optax.GradientTransformation:
    """Clips by the norm of the gradient of all parameters that learn, which `factors` tells."""
    clip = optax.clip_by_global_norm(largest)
    if factors is None or all(jax.tree.leaves(factors)):
        return clip

    def update(gradient: PyTree, params: PyTree) -> PyTree:
        learning = jax.tree.map(
            lambda g, factor: g if factor else jnp.zeros_like(g), gradient, factors
        )
        return clip.update(learning, clip.init(params))[0]

    return optax.stateless(update)  # Its state is that of `clip`: checkpoints stay readable.


def _is_kernel(params: PyTree) -> PyTree:
    """True for kernels: biases and the scales of normalisation are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
