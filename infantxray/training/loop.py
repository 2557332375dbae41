"""The training loop: the only one, for both stages."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from data_pipeline.errors import UserError
from infantxray.training import checkpoints, optimizer, writers
from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState
from infantxray.training.stopping import StopOnSignal

PyTree = Any
Batch = Mapping[str, jax.Array]

_log = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """The loss or its gradient became NaN or infinite."""


class Interrupted(UserError):
    """The run was asked to stop; it saved where it was."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What the loop has to know of a stage.

    Attributes:
      init: key -> variables of the model, `{"params": ..., "batch_stats": ...}`.
      weights: batch -> weight of each example in each term of the loss, `{name: [B]}`, 0 where
        the term does not apply (an unknown label, padding).
      losses: params, batch_stats, batch, key -> value of each example in each term,
        `{name: [B]}`, and the updated batch_stats.
      coefficients: the loss is the sum over terms of coefficient times weighted mean.
      evaluate: variables -> validation metrics; NaN where one cannot be computed.
      on_step: called with the step and the state after every update and once before the first;
        what it returns are scalars to log. It decides by itself which steps it has work at.
    """

    init: Callable[[jax.Array], PyTree]
    weights: Callable[[Batch], dict[str, jax.Array]]
    losses: Callable[..., tuple[dict[str, jax.Array], PyTree]]
    coefficients: Mapping[str, float]
    evaluate: Callable[[PyTree], dict[str, float]]
    on_step: Callable[[int, TrainState, writers.Writer], dict[str, float]] = lambda *_: {}


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds beside the training state, as JSON.

    Attributes:
      data: state of the batch iterator.
      best: the best value so far of the metric that the best checkpoint is chosen by.
      best_step: and the step it was reached at.
      evals_since_best: evaluations without a better one.
      finished: nothing is left to do.
    """

    data: dict
    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    finished: bool = False


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    sharding: DataParallel,
    *,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update: state, batch, key -> state, metrics. The old state is donated."""

    def step(state: TrainState, batch: Batch, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        weights = task.weights(batch)
        # The means are over the whole batch, also where it is divided: a part of it that holds
        # fewer labels then counts for less. Without any label a term is zero, not NaN.
        scale = {
            name: weight / jnp.where(weight.sum() > 0, weight.sum(), 1.0)
            for name, weight in weights.items()
        }

        def loss_fn(params, batch_stats, batch, scale, key):
            values, batch_stats = task.losses(params, batch_stats, batch, key)
            terms = {name: (values[name] * scale[name]).sum() for name in scale}
            loss = sum(task.coefficients[name] * value for name, value in terms.items())
            return loss, (terms, batch_stats)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate_steps == 1:
            (loss, (terms, batch_stats)), grads = gradient(
                state.params, state.batch_stats, batch, scale, key
            )
        else:
            loss, terms, batch_stats, grads = _accumulate(
                gradient, state, batch, scale, key, accumulate_steps, sharding
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if ema_decay:
            # The usual debiasing: an average over few steps must not remember the random start.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        state = state.replace(
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


def _accumulate(gradient, state, batch, scale, key, accumulate_steps, sharding):
    """Gradient of the whole batch from parts of it, one after another, to save memory."""

    def parts(x):
        # Every part takes examples from every device, so that none moves between devices.
        x = x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding.micro_batches)

    def body(carry, part):
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


def fit(
    config,
    workdir: str,
    task: Task,
    batches,
    *,
    total_steps: int,
    best_metric: str | None,
    lower_is_better: bool,
    initialise: Callable[[PyTree], PyTree] = lambda variables: variables,
    learning_rate_factors: Callable[[PyTree], PyTree | None] = lambda params: None,
    ema_decay: float = 0.0,
    early_stopping_evals: int = 0,
) -> tuple[TrainState, Progress]:
    """Trains, or goes on training, until `total_steps`.

    Args:
      config: reads `seed, batch_size, accumulate_steps, optimizer, *_every_steps`.
      workdir: checkpoints, TensorBoard files and `history.jsonl` go there.
      task: what to train.
      batches: a Grain iterator over training batches.
      total_steps: how many updates in all.
      best_metric: the validation metric that the best checkpoint is chosen by, of equals the
        last; None: the latest counts as the best, and nothing stops early.
      lower_is_better: of that metric.
      initialise: changes the fresh variables, such as by restoring an encoder. Not called when
        the run is resumed.
      learning_rate_factors: parameters -> `factors` of `create_optimizer`.
      ema_decay: of the moving average of the parameters; 0 = none.
      early_stopping_evals: stop after so many evaluations without a new best; 0 = never.

    Returns:
      The final state and progress.

    Raises:
      NonFiniteLossError: the loss or its gradient became NaN or infinite.
      Interrupted: SIGTERM or SIGINT came; what was done is saved.
    """
    sharding = DataParallel()
    sharding.check_batch_size(config.batch_size, config.accumulate_steps)
    schedule = optimizer.learning_rate_schedule(config.optimizer, total_steps)
    base_key = jax.random.key(config.seed)
    init_key, step_key = jax.random.split(base_key)
    factors = learning_rate_factors(jax.eval_shape(task.init, init_key)["params"])
    tx = optimizer.create_optimizer(config.optimizer, total_steps, factors)
    manager = checkpoints.Checkpoints(workdir)

    def create(variables) -> TrainState:
        return TrainState.create(variables, tx, ema=ema_decay > 0)

    progress = Progress(data=batches.get_state())
    if manager.latest_step is None:
        variables = initialise(jax.jit(task.init)(init_key))
        state = jax.jit(create, out_shardings=sharding.replicated)(variables)
    else:
        abstract = jax.eval_shape(lambda: create(task.init(init_key)))
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.replicated),
            abstract,
        )
        state, saved = manager.restore(abstract)
        progress = Progress(**saved)
        if best_metric is None:
            progress = dataclasses.replace(progress, best=None, best_step=0, evals_since_best=0)
        batches.set_state(progress.data)
        _log.info("resumed at step %d", int(state.step))
    start = int(state.step)
    train_step = make_train_step(
        task, tx, sharding, accumulate_steps=config.accumulate_steps, ema_decay=ema_decay
    )
    # A run that starts afresh logs step 0 again.
    history = writers.History(os.path.join(workdir, "history.jsonl"), start or -1)
    writer = writers.create_writer(workdir)
    if start == 0:
        _describe(state.params, writer, config)
    pending: list[dict[str, jax.Array]] = []  # Metrics of recent steps, still on the devices.
    bar = _progress_bar(start, total_steps)
    clock = _Clock(config.batch_size)

    def log(step: int, scalars: Mapping[str, float]) -> None:
        if scalars:
            writer.write_scalars(step, scalars)
            history.write(step, scalars)

    def flush(step: int) -> None:
        """Fetches the metrics of recent steps, stops where they are not finite, and logs them."""
        if not pending:
            return
        rows = jax.device_get(pending)
        bad = [
            step - len(rows) + 1 + i
            for i, row in enumerate(rows)
            # A finite loss can have an infinite slope: then the parameters are ruined already.
            if not np.isfinite(row["train/loss"] + row["train/gradient_norm"])
        ]
        if bad:
            raise NonFiniteLossError(
                f"the loss or its gradient is not finite at {_name_steps(bad)}; lower "
                f"config.optimizer.learning_rate ({config.optimizer.learning_rate:g})"
                + (", or use config.dtype=float32" if config.dtype != "float32" else "")
                + f"; the last good checkpoint is step {manager.latest_step or 'none'}"
            )
        pending.clear()
        scalars = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        scalars["train/learning_rate"] = float(schedule(step - 1))
        scalars["train/images_per_second"] = clock.images_per_second()
        log(step, scalars)
        bar.set_postfix_str(
            f"loss {scalars['train/loss']:.4f}, {scalars['train/images_per_second']:.0f} images/s"
        )

    def save(step: int) -> None:
        # The iterator advances only after the checkpoint that does not count its next batch.
        progress.data = batches.get_state()
        with clock.paused():
            manager.save(step, state, dataclasses.asdict(progress))

    def evaluate(step: int) -> None:
        with clock.paused():
            metrics = task.evaluate(state.eval_variables)
        log(step, {f"validation/{name}": value for name, value in metrics.items()})
        value = metrics.get(best_metric, math.nan)
        before = math.nan if progress.best is None else progress.best
        better = math.isfinite(value) and not (
            value > before if lower_is_better else value < before
        )
        if better and value != before:
            progress.evals_since_best = 0
        elif best_metric is not None:
            progress.evals_since_best += 1
        if better:
            progress.best, progress.best_step = value, step
        if metrics:
            text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            _log.info("step %d: validation %s%s", step, text, " (best)" if better else "")

    with contextlib.ExitStack() as stack:
        stack.callback(manager.close)
        stack.callback(writer.close)
        stack.callback(bar.close)
        stop = stack.enter_context(StopOnSignal())
        if start == 0:
            log(0, task.on_step(0, state, writer))
        for step in itertools.count(start + 1):
            if progress.finished or step > total_steps:
                break
            batch = sharding.put(next(batches))
            state, metrics = train_step(state, batch, step_key)
            pending.append(metrics)
            bar.update()
            if step == start + 1:
                jax.block_until_ready(metrics)  # The compilation is not counted as training.
                clock.restart()
            clock.step()
            last = step == total_steps
            if step % config.log_every_steps == 0 or last:
                flush(step)
            with clock.paused():
                log(step, task.on_step(step, state, writer))
            evaluated = step % config.eval_every_steps == 0 or last
            if evaluated:
                flush(step)
                evaluate(step)
                tired = 0 < early_stopping_evals <= progress.evals_since_best
                if tired and not last:
                    _log.info(
                        "stopped early: %d evaluations without a better %s",
                        early_stopping_evals,
                        best_metric,
                    )
                progress.finished = last or tired
            stopping = stop.requested  # Read once: it may come at any moment.
            due = step % config.checkpoint_every_steps == 0
            if evaluated or due or stopping:
                flush(step)
                save(step)
            if stopping and not progress.finished:
                raise Interrupted(
                    f"stopped at step {step} of {total_steps}, saved; the same command goes on"
                )
        writer.flush()
    if progress.best is None and best_metric is not None:
        _log.warning(
            "no evaluation gave a finite %s: the latest checkpoint counts as the best", best_metric
        )
    return state, progress


def _name_steps(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    shown = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
    return f"steps {shown}"


def _describe(params: PyTree, writer: writers.Writer, config) -> None:
    """Logs the parameters, whole in TensorBoard and by group in the terminal."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    writer.write_texts(0, {"parameters": f"```\n{table}\n```", "config": f"```\n{config}\n```"})
    for name, subtree in params.items():
        count = sum(leaf.size for leaf in jax.tree.leaves(subtree))
        _log.info("%-20s %12s parameters", name, f"{count:,}")


def _progress_bar(start: int, total_steps: int) -> tqdm.tqdm:
    return tqdm.tqdm(
        initial=start,
        total=total_steps,
        unit="step",
        dynamic_ncols=True,
        # In a log file every refresh is a line: few are enough there.
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        smoothing=0.1,
    )


class _Clock:
    """Images a second of training itself, without evaluation, checkpoints and compilation."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self._steps = 0
        self._started = time.perf_counter()

    def step(self) -> None:
        self._steps += 1

    def images_per_second(self) -> float:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rate = self._steps * self._batch_size / seconds
        self.restart()
        return rate

    @contextlib.contextmanager
    def paused(self):
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before
