"""The jitted training step of both stages, with gradient accumulation and a moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState

PyTree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained: a model, its loss and its validation.

    Attributes:
      init: key -> variables of the model, `{"params": ..., "batch_stats": ...}`.
      weights: batch -> weight of each example in each term of the loss, `{name: [B]}`; 0 where
        the term does not apply (an unknown label, padding).
      losses: params, batch_stats, batch, key -> value of each example in each term,
        `{name: [B]}`, and the updated batch_stats.
      coefficients: the loss is the sum over terms of coefficient times weighted mean.
      evaluate: variables -> validation metrics; NaN where one cannot be computed.
      statistics: variables -> batch_stats to evaluate and save, see `batch_norm`; None = the
        running statistics.
      after_step: params and batch_stats after the losses -> batch_stats; called once a step,
        whatever the number of parts. None = nothing changes.
    """

    init: Callable[[jax.Array], PyTree]
    weights: Callable[[Batch], dict[str, jax.Array]]
    losses: Callable[[PyTree, PyTree, Batch, jax.Array], tuple[dict[str, jax.Array], PyTree]]
    coefficients: Mapping[str, float]
    evaluate: Callable[[PyTree], dict[str, float]]
    statistics: Callable[[PyTree], PyTree] | None = None
    after_step: Callable[[PyTree, PyTree], PyTree] | None = None


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    sharding: DataParallel,
    *,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> Any:
    """Builds the jitted update.

    Args:
      task: the model and its loss.
      tx: the optimizer.
      sharding: the devices that share a batch.
      accumulate_steps: number of parts that a batch is processed in, to save memory. BatchNorm
        normalises each part alone, and its running statistics move once a part.
      ema_decay: decay of the moving average of the parameters; 0 = no average.

    Returns:
      A jitted function (state, batch, key) -> (state, metrics). It donates the old state.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        # Means are taken over the whole batch before it is split into parts, so that a part with
        # fewer labels has less weight. A term without any label is zero, not NaN.
        scale = {
            name: weight / jnp.where(weight.sum() > 0, weight.sum(), 1.0)
            for name, weight in task.weights(batch).items()
        }

        def loss_fn(
            params: PyTree, batch_stats: PyTree, batch: Batch, scale: Metrics, key: jax.Array
        ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            values, batch_stats = task.losses(params, batch_stats, batch, key)
            terms = {name: (values[name] * scale[name]).sum() for name in scale}
            loss = sum(task.coefficients[name] * value for name, value in terms.items())
            return jnp.asarray(loss), (terms, batch_stats)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate_steps == 1:
            (loss, (terms, batch_stats)), grads = gradient(
                state.params, state.batch_stats, batch, scale, key
            )
        else:
            loss, terms, batch_stats, grads = _accumulate(
                gradient, state, batch, scale, key, accumulate_steps, sharding
            )
        if task.after_step is not None:
            batch_stats = task.after_step(state.params, batch_stats)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if ema_decay:
            # The usual debiasing: an average over few steps must not remember the random start.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema,
        )
        metrics = {f"train/{name}": value for name, value in terms.items()}
        metrics |= {"train/loss": loss, "train/gradient_norm": optax.tree.norm(grads)}
        return state, metrics

    return jax.jit(
        step,
        in_shardings=(sharding.replicated, sharding.batch, sharding.replicated),
        out_shardings=(sharding.replicated, sharding.replicated),
        donate_argnums=0,
    )


def _accumulate(
    gradient: Callable[..., Any],
    state: TrainState,
    batch: Batch,
    scale: Metrics,
    key: jax.Array,
    accumulate_steps: int,
    sharding: DataParallel,
) -> tuple[jax.Array, Metrics, PyTree, PyTree]:
    """The gradient of a whole batch, computed part by part to save memory."""

    def parts(x: jax.Array) -> jax.Array:
        # Every part takes examples from every device, so that none moves between devices.
        x = x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding.micro_batches)

    def body(carry: PyTree, part: PyTree) -> tuple[PyTree, None]:
        sums, batch_stats = carry
        index, part_batch, part_scale = part
        (loss, (terms, batch_stats)), grads = gradient(
            state.params, batch_stats, part_batch, part_scale, jax.random.fold_in(key, index)
        )
        return (jax.tree.map(jnp.add, sums, (loss, terms, grads)), batch_stats), None

    zeros = (
        jnp.zeros(()),
        {name: jnp.zeros(()) for name in scale},
        jax.tree.map(jnp.zeros_like, state.params),
    )
    ((loss, terms, grads), batch_stats), _ = jax.lax.scan(
        body,
        (zeros, state.batch_stats),
        (jnp.arange(accumulate_steps), jax.tree.map(parts, batch), jax.tree.map(parts, scale)),
    )
    return loss, terms, batch_stats, grads
