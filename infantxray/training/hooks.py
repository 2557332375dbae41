"""Hooks of the training loop: logging, validation and checkpoints.

A hook is called after every update, in order, and returns scalars to log. It decides at which steps
it has work. Stages add hooks of the same shape, such as panels of reconstructions or a linear
probe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tqdm

from data_pipeline.errors import UserError
from infantxray.training import processes
from infantxray.training.checkpoints import Checkpoints
from infantxray.training.state import TrainState
from infantxray.training.waiting import waiting

PyTree = Any
Scalars = Mapping[str, float]

_log = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """The loss or its gradient became NaN or infinite."""


@dataclasses.dataclass
class Progress:
    """The part of a checkpoint that is not the training state; saved as JSON.

    Attributes:
      data: state of the batch iterator.
      best: best value so far of the metric that chooses the best checkpoint.
      best_step: the step of that value.
      evals_since_best: evaluations since then.
      finished: whether training has ended.
    """

    data: dict[str, Any]
    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    finished: bool = False


@dataclasses.dataclass(frozen=True)
class Moment:
    """The state of training that a hook sees.

    Attributes:
      step: number of updates made; 0 before the first.
      state: the training state after that update.
      progress: changed in place by hooks.
      write_images: writes images of a step to TensorBoard; scalars are returned instead.
      last: whether this is the last step of the schedule.
      stopping: whether a signal asked the run to stop after this step.
    """

    step: int
    state: TrainState
    progress: Progress
    write_images: Callable[[int, Mapping[str, np.ndarray]], None]
    last: bool = False
    stopping: bool = False

    def every(self, steps: int) -> bool:
        """Whether this step is a multiple of `steps`; never where `steps` is 0."""
        return steps > 0 and self.step % steps == 0


class Hook(Protocol):
    def __call__(self, moment: Moment) -> Scalars: ...


@dataclasses.dataclass
class Pause:
    """Whether a block of `Clock.paused` was a pause."""

    counts: bool = False


class Clock:
    """Measures images per second of training alone, without evaluation and checkpoints."""

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
    def paused(self) -> Iterator[Pause]:
        """Leaves out what happens in the block, if `counts` of its `Pause` is set to true.

        A hook without work must not count: on a CPU the devices compute while it is called.
        """
        before, pause = time.perf_counter(), Pause()
        yield pause
        if pause.counts:
            self._started += time.perf_counter() - before


class MetricsLog:
    """Fetches the metrics of recent steps, checks that they are finite, and logs their means.

    Args:
      due: moment -> whether to fetch now. Must be true wherever a checkpoint is saved, so that
        no state with a loss of NaN is ever saved.
      schedule: step -> learning rate.
      clock: measures the speed.
      bar: the progress bar, which shows loss and speed.
      advice: end of the message of `NonFiniteLossError`.
    """

    def __init__(
        self,
        due: Callable[[Moment], bool],
        schedule: Callable[[int], Any],
        clock: Clock,
        bar: Any,
        advice: Callable[[], str],
    ):
        self._due, self._schedule, self._clock, self._bar = due, schedule, clock, bar
        self._advice = advice
        self._pending: list[dict[str, jax.Array]] = []  # Still on the devices.

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)

    def __call__(self, moment: Moment) -> Scalars:
        if not self._pending or not self._due(moment):
            return {}
        rows = jax.device_get(self._pending)
        first = moment.step - len(rows) + 1
        # A finite loss can have an infinite gradient, which ruins the parameters.
        bad = [
            first + i
            for i, row in enumerate(rows)
            if not np.isfinite(row["train/loss"] + row["train/gradient_norm"])
        ]
        if bad:
            raise NonFiniteLossError(
                f"the loss or its gradient is not finite at {_name_steps(bad)}; {self._advice()}"
            )
        self._pending.clear()
        scalars = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        scalars["train/learning_rate"] = float(self._schedule(moment.step - 1))
        scalars["train/images_per_second"] = rate = self._clock.images_per_second()
        self._bar.set_postfix_str(f"loss {scalars['train/loss']:.4f}, {rate:.0f} images/s")
        return scalars


class Validation:
    """Evaluates the model, remembers the best step, and ends training early.

    Args:
      due: moment -> whether to evaluate now.
      evaluate: variables -> metrics.
      best_metric: the metric that chooses the best checkpoint (the latest of equals); None =
        the latest checkpoint, without early stopping.
      lower_is_better: direction of that metric.
      early_stopping_evals: evaluations without a new best after which training stops; 0 = never.
      least_steps: steps before which training does not stop early.
    """

    def __init__(
        self,
        due: Callable[[Moment], bool],
        evaluate: Callable[[PyTree], dict[str, float]],
        best_metric: str | None,
        lower_is_better: bool,
        early_stopping_evals: int,
        least_steps: int = 0,
    ):
        self._due, self._evaluate, self._best_metric = due, evaluate, best_metric
        self._lower_is_better = lower_is_better
        self._early_stopping_evals = early_stopping_evals
        self._least_steps = least_steps

    def __call__(self, moment: Moment) -> Scalars:
        if not self._due(moment):
            return {}
        with waiting("validation"):
            metrics = self._evaluate(moment.state.eval_variables)
        better = self._compare(metrics, moment)
        if metrics:
            text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            _log.info("step %d: validation %s%s", moment.step, text, " (best)" if better else "")
        progress = moment.progress
        tired = 0 < self._early_stopping_evals <= progress.evals_since_best
        tired = tired and moment.step >= self._least_steps
        if tired and not moment.last:
            _log.info(
                "stopped early: %d evaluations without a better %s",
                self._early_stopping_evals,
                self._best_metric,
            )
        progress.finished = moment.last or tired
        return {f"validation/{name}": value for name, value in metrics.items()}

    def _compare(self, metrics: dict[str, float], moment: Moment) -> bool:
        """Updates the best value so far; returns whether this one is as good or better."""
        if self._best_metric is None:
            return False
        progress = moment.progress
        value = metrics.get(self._best_metric, math.nan)
        before = math.nan if progress.best is None else progress.best
        worse = value > before if self._lower_is_better else value < before
        better = math.isfinite(value) and not worse
        progress.evals_since_best = (
            0 if better and value != before else progress.evals_since_best + 1
        )
        if better:
            progress.best, progress.best_step = value, moment.step
        return better


class Saving:
    """Saves checkpoints.

    Args:
      due: moment -> whether to save now.
      checkpoints: the checkpoints of the run.
      batches: the iterator whose state is saved with the parameters.
    """

    def __init__(self, due: Callable[[Moment], bool], checkpoints: Checkpoints, batches: Any):
        self._due, self._checkpoints, self._batches = due, checkpoints, batches

    def __call__(self, moment: Moment) -> Scalars:
        if self._due(moment):
            # Advance the iterator only after this checkpoint, which does not count the next batch.
            moment.progress.data = self._batches.get_state()
            self._checkpoints.save(moment.step, moment.state, dataclasses.asdict(moment.progress))
        return {}


def progress_bar(start: int, total_steps: int) -> Any:
    return tqdm.tqdm(
        initial=start,
        total=total_steps,
        unit="step",
        dynamic_ncols=True,
        # In a log file every refresh is a line.
        mininterval=0.5 if sys.stderr.isatty() else 4.5,
        disable=not processes.is_main(),
        smoothing=0.1,
    )


def _name_steps(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    return f"steps {', '.join(map(str, steps[:5]))}" + (", ..." if len(steps) > 5 else "")
