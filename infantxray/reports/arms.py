"""Arms of a study: labels used in stage one, and the step at which stage two stops improving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infantxray.reports.page import number
from infantxray.reports.study_sections import history
from infantxray.reports.tables import Table
from infantxray.runs.settings import HIGHER_IS_BETTER
from infantxray.studies.plan import Run
from infantxray.studies.results import Results

_CLOSE = 0.01  # Relative to the best value: improvements below that are noise.


def arms(results: Results, runs: Sequence[Run], best_metric: str) -> Table:
    """One row for each arm and share of the labels; steps are means over seeds.

    Args:
      results: of the study.
      runs: of its plan, by number.
      best_metric: the validation metric that chooses checkpoints.
    """
    rows: list[list[Any]] = []
    for model in results.models:
        objective = _objective(model.runs[0], runs)
        labels = "none" if "supervised" not in objective.split("+") else "source"
        found = [_improvement(history(run), best_metric) for run in model.runs]
        known = [row for row in found if row is not None]
        close, best, last, value = np.mean(known, axis=0) if known else (np.nan,) * 4
        steps = [f"{x:,.0f}" if np.isfinite(x) else "–" for x in (close, best, last)]
        batch = model.runs[0].settings["batch_size"]
        rate = model.runs[0].settings["optimizer"]["learning_rate"]
        rows.append(
            [
                model.encoder,
                model.name,
                f"{model.label_fraction:.0%}",
                objective or "–",
                labels,
                *steps,
                number(value, best_metric) if known else "–",
                f"{batch} at {rate:g}",
            ]
        )
    return Table(
        "arms",
        "Arms",
        "What stage one learned from: images alone (none), or labels of the source data as well. "
        "Where stage two stops improving, by the validation metric that chooses the checkpoint: "
        f"the first evaluation within {_CLOSE:.0%} of the best one, the best one, and the last "
        "step; means over seeds.",
        [
            "Encoder",
            "Variant",
            "Labels",
            "Objective of stage one",
            "Labels used in stage one",
            "Close to best, step",
            "Best, step",
            "Last step",
            "Best on validation",
            "Batch and learning rate",
        ],
        rows,
    )


def _objective(run: Run, runs: Sequence[Run]) -> str:
    """The objective of the stage one that a run starts from; empty for random weights."""
    return str(runs[run.needs[0]].settings["objective"]) if run.needs else ""


def _improvement(
    rows: Sequence[dict[str, Any]], best_metric: str
) -> tuple[float, float, float, float] | None:
    """Steps of the first evaluation close to the best, the best and the last; the best value."""
    name = f"validation/{best_metric}"
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return None
    steps, values = np.array(points, dtype=float).T
    signed = values if best_metric in HIGHER_IS_BETTER else -values
    best = int(signed.argmax())
    close = int(np.argmax(signed >= signed[best] - _CLOSE * abs(signed[best])))
    return steps[close], steps[best], steps[-1], values[best]
