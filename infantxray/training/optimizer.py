"""AdamW or SGD with warm-up and cosine decay."""

from __future__ import annotations

import jax
import optax


def learning_rate_schedule(settings, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `settings.learning_rate`, then cosine to zero at `total_steps`."""
    warmup_steps = round(settings.warmup_fraction * total_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(total_steps, warmup_steps + 1),
    )


def create_optimizer(
    settings, total_steps: int, *, encoder_factor: float = 1.0, freeze_encoder: bool = False
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`.

    Args:
      settings: `config.optimizer`.
      total_steps: length of the schedule.
      encoder_factor: multiplies the learning rate of the subtree `encoder`.
      freeze_encoder: leave the subtree `encoder` as it is.
    """
    schedule = learning_rate_schedule(settings, total_steps)

    def branch(factor: float) -> optax.GradientTransformation:
        steps = []
        if settings.name == "adamw":
            steps.append(optax.scale_by_adam())
        else:
            steps.append(optax.trace(decay=0.9, nesterov=True))
        if settings.weight_decay:
            steps.append(optax.add_decayed_weights(settings.weight_decay, mask=_is_kernel))
        steps.append(optax.scale_by_learning_rate(lambda step: factor * schedule(step)))
        return optax.chain(*steps)

    branches = {
        "encoder": optax.set_to_zero() if freeze_encoder else branch(encoder_factor),
        "rest": branch(1.0),
    }
    optimizer = optax.partition(
        branches,
        lambda params: {
            name: jax.tree.map(lambda _: "encoder" if name == "encoder" else "rest", subtree)  # noqa: B023
            for name, subtree in params.items()
        },
    )
    if settings.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optimizer)
    return optimizer


def _is_kernel(params):
    """True for kernels: biases and the scales of normalisation are not decayed."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
