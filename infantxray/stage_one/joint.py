"""Joint training: several objectives share one encoder; the loss is their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from infantxray.models.encoders.layers import repeat_pixels
from infantxray.stage_one.objectives import Objective
from infantxray.training.train_step import Batch, Metrics, Task

PyTree = Any


def join(tasks: Mapping[str, Task], weights: Mapping[str, float]) -> Task:
    """One task that trains the encoder of several.

    The parameters are `{"encoder": ..., NAME: {...}}`, with the heads of each task below its name.
    Each task has separate running statistics of normalisation, because tasks show the encoder
    different images (masked, augmented). The statistics below `encoder` are those of the first
    task.

    Args:
      tasks: by name, in order. One alone is returned as it is. Names of their terms differ.
      weights: weights of each task's loss.

    Returns:
      A task that reports, beside the metrics of each, `A+B`: the weighted sum of the metrics
      called `A` and `B`.
    """
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    names = tuple(tasks)

    def init(key: jax.Array) -> PyTree:
        parts = {name: dict(task.init(key)) for name, task in tasks.items()}
        params = {name: dict(part["params"]) for name, part in parts.items()}
        encoders = [part.pop("encoder") for part in params.values()]
        stats = {name: dict(part.get("batch_stats", {})) for name, part in parts.items()}
        return {
            "params": {"encoder": encoders[0], **params},
            "batch_stats": _with_statistics({}, stats, names),
        }

    def task_weights(batch: Batch) -> Metrics:
        return {term: w for task in tasks.values() for term, w in task.weights(batch).items()}

    def losses(params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        terms: Metrics = {}
        updated: dict[str, PyTree] = {}
        for number, (name, task) in enumerate(tasks.items()):
            own = own_variables(variables, name, names)
            values, updated[name] = task.losses(
                own["params"], own["batch_stats"], batch, jax.random.fold_in(key, number)
            )
            terms |= values
        return terms, _with_statistics(batch_stats, updated, names)

    def after_step(params: PyTree, batch_stats: PyTree) -> PyTree:
        variables = {"params": params, "batch_stats": batch_stats}
        updated: dict[str, PyTree] = {}
        for name, task in tasks.items():
            own = own_variables(variables, name, names)
            updated[name] = own["batch_stats"]
            if task.after_step is not None:
                updated[name] = task.after_step(own["params"], own["batch_stats"])
        return _with_statistics(batch_stats, updated, names)

    def evaluate(variables: PyTree) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, task in tasks.items():
            found |= task.evaluate(own_variables(variables, name, names))
        total = sum(weights[name] * found.get(name, math.nan) for name in names)
        return {"+".join(names): total, **found}

    return Task(
        init=init,
        weights=task_weights,
        losses=losses,
        coefficients={
            term: weights[name] * value
            for name, task in tasks.items()
            for term, value in task.coefficients.items()
        },
        evaluate=evaluate,
        after_step=after_step,
    )


def own_variables(variables: PyTree, name: str, names: tuple[str, ...]) -> PyTree:
    """The variables of one task, as without joining.

    Args:
      variables: variables of the joint task.
      name: name of the task.
      names: names of all tasks; one alone has its variables.
    """
    if len(names) == 1:
        return variables
    params, stats = variables["params"], variables.get("batch_stats", {})
    own = dict(stats.get(name, {}))
    if name == names[0] and "encoder" in stats:
        own["encoder"] = stats["encoder"]
    return {"params": {"encoder": params["encoder"], **params[name]}, "batch_stats": own}


def _with_statistics(
    before: PyTree, updated: Mapping[str, PyTree], names: tuple[str, ...]
) -> PyTree:
    """`batch_stats` of the joint task; an empty dictionary of a task is left out."""
    first = dict(updated[names[0]])
    result = {**before}
    if "encoder" in first:
        result["encoder"] = first.pop("encoder")
    for name in names:
        own = first if name == names[0] else dict(updated[name])
        if own:
            result[name] = own
    return result


def panels(
    objectives: Mapping[str, Objective], variables: PyTree, image: jax.Array, names: tuple[str, ...]
) -> tuple[jax.Array, ...]:
    """The panels of several objectives, enlarged to one size.

    Args:
      objectives: by name; supervision has no panels.
      variables: variables of the joint task.
      image: `[B, H, W, 1]`, intensities in [0, 1].
      names: names of all tasks.
    """
    drawn = [
        picture
        for name, objective in objectives.items()
        for picture in objective.panels(own_variables(variables, name, names), image)
    ]
    side = math.lcm(*(picture.shape[1] for picture in drawn))
    return tuple(repeat_pixels(picture, side // picture.shape[1]) for picture in drawn)
