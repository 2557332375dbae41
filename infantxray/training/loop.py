"""The training loop of both stages."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from data_pipeline.errors import UserError
from infantxray.models.initialisation import initialise
from infantxray.training import hooks as loop_hooks
from infantxray.training import optimizer, processes, writers
from infantxray.training.checkpoints import Checkpoints, is_set_aside
from infantxray.training.hooks import Clock, Hook, Moment, NonFiniteLossError, Progress
from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState
from infantxray.training.stopping import StopOnSignal
from infantxray.training.train_step import Batch, Task, make_train_step
from infantxray.training.waiting import waiting

__all__ = ["Interrupted", "LoopSettings", "NonFiniteLossError", "Progress", "Task", "fit"]

PyTree = Any

_log = logging.getLogger(__name__)


class Interrupted(UserError):
    """A signal stopped the run after it had saved a checkpoint."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Length and rhythm of a training run.

    Attributes:
      total_steps: number of updates.
      batch_size: images of an update, over all devices.
      optimizer: see `OptimizerSettings`.
      seed: seed of the initial parameters and of all that is random in training.
      accumulate_steps: number of parts that a batch is processed in.
      log_every_steps, eval_every_steps, checkpoint_every_steps: intervals. The last step is always
        logged, evaluated and saved, and every evaluation is followed by a checkpoint.
      best_metric: the validation metric that chooses the best checkpoint (the latest of equals);
        None = the latest checkpoint, without early stopping.
      lower_is_better: direction of that metric.
      early_stopping_evals: evaluations without a new best after which training stops; 0 = never.
      least_steps: steps before which training does not stop early.
      ema_decay: decay of the moving average of the parameters; 0 = no average.
    """

    total_steps: int
    batch_size: int
    optimizer: optimizer.OptimizerSettings = dataclasses.field(
        default_factory=optimizer.OptimizerSettings
    )
    seed: int = 0
    accumulate_steps: int = 1
    log_every_steps: int = 20
    eval_every_steps: int = 100
    checkpoint_every_steps: int = 100
    best_metric: str | None = "loss"
    lower_is_better: bool = True
    early_stopping_evals: int = 0
    least_steps: int = 0
    ema_decay: float = 0.0

    def logs(self, moment: Moment) -> bool:
        return moment.every(self.log_every_steps) or moment.last or self.saves(moment)

    def evaluates(self, moment: Moment) -> bool:
        return moment.every(self.eval_every_steps) or moment.last

    def saves(self, moment: Moment) -> bool:
        due = self.evaluates(moment) or moment.every(self.checkpoint_every_steps)
        return due or moment.stopping


def fit(
    task: Task,
    batches: Any,
    settings: LoopSettings,
    workdir: str,
    *,
    hooks: Sequence[Hook] = (),
    initialise: Callable[[PyTree], PyTree] = lambda variables: variables,
    learning_rate_factors: Callable[[PyTree], PyTree | None] = lambda params: None,
    description: str = "",
    advice: str = "",
) -> tuple[TrainState, Progress]:
    """Trains a model, or resumes where its workdir holds a checkpoint.

    Args:
      task: what to train.
      batches: a Grain iterator over training batches, or this process's part of them.
      settings: length and rhythm.
      workdir: checkpoints, TensorBoard files and `history.jsonl` go there.
      hooks: called before the first update and after every update.
      initialise: changes the fresh variables, such as by restoring an encoder. Not called when
        the run is resumed.
      learning_rate_factors: parameters -> `factors` of `create_optimizer`.
      description: text for TensorBoard, such as the configuration.
      advice: advice for a loss that is not finite.

    Returns:
      The final state and progress.

    Raises:
      NonFiniteLossError: the loss or its gradient became NaN or infinite.
      Interrupted: SIGTERM or SIGINT came, to any of the processes; a checkpoint was saved.
    """
    sharding = DataParallel()
    sharding.check_batch_size(settings.batch_size, settings.accumulate_steps)
    init_key, step_key = jax.random.split(jax.random.key(settings.seed))
    step_key = sharding.replicate(step_key)
    factors = learning_rate_factors(jax.eval_shape(task.init, init_key)["params"])
    tx = optimizer.create_optimizer(settings.optimizer, settings.total_steps, factors)
    train_step = make_train_step(
        task,
        tx,
        sharding,
        accumulate_steps=settings.accumulate_steps,
        ema_decay=settings.ema_decay,
    )
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        abstract = _abstract_state(task, tx, settings, sharding, init_key)
        compiling = stack.enter_context(_Compilation(train_step))

        def next_batch() -> Batch:
            return sharding.put(next(batches))

        first = None
        if checkpoints.latest_step is None:
            # A new run reads its first batch and compiles while it sets up the model.
            position = batches.get_state()
            first = compiling.start(abstract, next_batch, step_key)
        with waiting("setting up the model"):
            if first is None:
                state, progress = _resume(abstract, batches, settings, checkpoints)
            else:
                state = _new_state(task, tx, settings, sharding, initialise, init_key)
                progress = Progress(data=position)
            start = int(state.step)
            log = writers.ScalarLog(workdir, start) if processes.is_main() else writers.SilentLog()
            stack.callback(log.close)
        bar = loop_hooks.progress_bar(start, settings.total_steps)
        stack.callback(bar.close)
        clock = Clock(settings.batch_size)

        metrics_log = _metrics_log(settings, clock, bar, checkpoints, advice)
        validation = _validation(settings, task)
        saving = loop_hooks.Saving(settings.saves, checkpoints, batches)
        stop = stack.enter_context(StopOnSignal())
        compiled = None

        for step in range(start + 1, settings.total_steps + 1):
            if progress.finished:
                break
            if compiled is None:
                with waiting("compiling the training step"):
                    first = first or compiling.start(abstract, next_batch, step_key)
                    batch = first.result()
                    for hook in hooks if start == 0 else ():
                        log(0, hook(Moment(0, state, progress, log.write_images)))
                    compiled = compiling.result()
                clock.restart()
            else:
                batch = next_batch()
            state, metrics = compiled(state, batch, step_key)
            metrics_log.add(metrics)
            bar.update()
            clock.step()
            last = step == settings.total_steps
            moment = Moment(step, state, progress, log.write_images, last)
            log(step, metrics_log(moment))
            if step == 1:  # Not earlier: it may have to import TensorFlow.
                with clock.paused() as pause:
                    log.describe(state.params, description)
                    pause.counts = True
            if task.statistics is not None and settings.evaluates(moment):
                with clock.paused(), waiting("BatchNorm statistics"):
                    stats = task.statistics(state.eval_variables)
                state = dataclasses.replace(state, batch_stats=stats)
                moment = dataclasses.replace(moment, state=state)
            for hook in (*hooks, validation):
                with clock.paused() as pause:
                    scalars = hook(moment)
                    pause.counts = bool(scalars)
                    log(step, scalars)
            # Read once: a signal may come at any moment. Steps are checked before they are saved.
            stopping = stop.requested
            if processes.count() > 1:  # They agree where they wait for the devices anyway.
                stopping = settings.logs(moment) and processes.any_of(stopping)
            moment = dataclasses.replace(moment, stopping=stopping)
            log(step, metrics_log(moment))
            with clock.paused() as pause:
                saving(moment)
                pause.counts = settings.saves(moment)
            if moment.stopping and not progress.finished:
                raise Interrupted(
                    f"stopped at step {step} of {settings.total_steps} and saved; run the same "
                    "command again to resume"
                )
    if progress.best is None and settings.best_metric is not None:
        _log.warning(
            "no evaluation gave a finite %s: using the latest checkpoint", settings.best_metric
        )
    return state, progress


def _metrics_log(
    settings: LoopSettings, clock: Clock, bar: Any, checkpoints: Checkpoints, advice: str
) -> loop_hooks.MetricsLog:
    def explain_non_finite() -> str:
        rate, last = settings.optimizer.learning_rate, checkpoints.latest_step or "none"
        return (
            f"lower config.optimizer.learning_rate ({rate:g}){advice}; the last good "
            f"checkpoint is step {last}"
        )

    schedule = optimizer.learning_rate_schedule(settings.optimizer, settings.total_steps)
    return loop_hooks.MetricsLog(settings.logs, schedule, clock, bar, explain_non_finite)


def _validation(settings: LoopSettings, task: Task) -> loop_hooks.Validation:
    return loop_hooks.Validation(
        settings.evaluates,
        # All processes must stop at the same evaluation: one of them decides.
        lambda variables: processes.from_main(task.evaluate(variables)),
        settings.best_metric,
        settings.lower_is_better,
        settings.early_stopping_evals,
        settings.least_steps,
    )


class _Compilation:
    """Reads the first batch and compiles the training step for its shapes, in a thread."""

    def __init__(self, train_step: Any):
        self._train_step = train_step
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[Any] | None = None

    def __enter__(self) -> _Compilation:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def start(
        self, state: TrainState, next_batch: Callable[[], Batch], key: jax.Array
    ) -> Future[Batch]:
        """Starts both; the result is the first batch."""
        first = self._pool.submit(next_batch)  # The one thread of the pool compiles after this.
        self._future = self._pool.submit(self._work, state, first, key)
        return first

    def result(self) -> Any:
        """The compiled training step."""
        assert self._future is not None
        return self._future.result()

    def _work(self, state: TrainState, first: Future[Batch], key: jax.Array) -> Any:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            (state, first.result(), key),
        )
        started = time.perf_counter()
        compiled = self._train_step.lower(*shapes).compile()
        seconds = time.perf_counter() - started
        if seconds > 5:
            _log.info("compiled the training step in %.0f s", seconds)
        return compiled


def _create(variables: PyTree, tx: Any, settings: LoopSettings) -> TrainState:
    return TrainState.create(variables, tx, ema=settings.ema_decay > 0)


def _abstract_state(
    task: Task, tx: Any, settings: LoopSettings, sharding: DataParallel, init_key: jax.Array
) -> TrainState:
    """The shapes of the state."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.replicated),
        jax.eval_shape(lambda: _create(task.init(init_key), tx, settings)),
    )


def _new_state(
    task: Task,
    tx: Any,
    settings: LoopSettings,
    sharding: DataParallel,
    change: Callable[[PyTree], PyTree],
    init_key: jax.Array,
) -> TrainState:
    """A fresh state at step 0."""
    variables = change(initialise(task.init, init_key))
    if sharding.part.count > 1:
        variables = sharding.replicate(variables)
    create = jax.jit(
        functools.partial(_create, tx=tx, settings=settings), out_shardings=sharding.replicated
    )
    return create(variables)


def _resume(
    abstract: TrainState, batches: Any, settings: LoopSettings, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """The state of the latest checkpoint."""
    state, saved = checkpoints.restore(abstract)
    progress = Progress(**saved)
    if settings.best_metric is None:
        progress = dataclasses.replace(progress, best=None, best_step=0, evals_since_best=0)
    elif progress.best_step and is_set_aside(checkpoints.workdir, progress.best_step):
        _log.warning("step %d, the best so far, was damaged and is forgotten", progress.best_step)
        progress = dataclasses.replace(progress, best=None, best_step=0, evals_since_best=0)
    batches.set_state(progress.data)
    _log.info("resumed at step %d", int(state.step))
    return state, progress
