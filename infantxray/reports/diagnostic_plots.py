"""Figures of diagnostic accuracy: precision-recall, net benefit, calibration and probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import plots
from infantxray.reports.plots import Axes, Figure

Curves = Mapping[str, Mapping[str, Any]]  # `{finding: {curve: ...}}` of `diagnostics.findings`.
_COLUMNS = 3


def precision_recall(predictions: Predictions) -> Figure:
    """One precision-recall curve a class; its area, and its prevalence as the baseline."""
    from sklearn.metrics import precision_recall_curve  # Takes most of a second.

    figure = Figure(figsize=(6.8, 4), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(predictions.classes):
        scores = Scores.of_class(predictions, k)
        if scores.missing():
            continue
        precision, recall, _ = precision_recall_curve(scores.positive, scores.score)
        share = scores.positive.mean()
        area = float(-np.sum(np.diff(recall) * precision[:-1]))
        style: dict[str, Any] = {
            "color": plots.colour(k),
            "linestyle": ("-", "--", ":")[k // 7 % 3],
        }
        axes.step(
            recall, precision, where="post", label=f"{name} ({area:.2f}; {share:.2f})", **style
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    axes.legend(
        bbox_to_anchor=(1.02, 1), loc="upper left", title="class (area; prevalence)", fontsize=8
    )
    return figure


def _grid(curves: Curves, draw: Callable[[Axes, Mapping[str, Any]], None]) -> Figure:
    """A panel for each finding, with one legend."""
    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    size = (2.7 * columns + 1.2 * (columns == 1), 2.4 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(curves) :]:
        axes.axis("off")
    for axes, (name, found) in zip(grid, curves.items(), strict=False):
        draw(axes, found)
        axes.set_title(name, fontsize=9)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def net_benefit(curves: Curves) -> Figure:
    """Decision curves: the model beside acting on all, on none, and ridge on pixels."""

    def draw(axes: Axes, found: Mapping[str, Any]) -> None:
        rows = found["net_benefit"]
        at = [row["threshold"] for row in rows]
        lines = {"model": "model", "baseline": "ridge on pixels", "all": "act on all"}
        for i, (key, label) in enumerate(lines.items()):
            if key in rows[0]:
                values = [row[key]["value"] for row in rows]
                style = ("-", "--", ":")[i]
                axes.plot(at, values, color=plots.colour(i), linestyle=style, label=label)
        low = [row["model"]["low"] for row in rows]
        high = [row["model"]["high"] for row in rows]
        axes.fill_between(at, low, high, color=plots.colour(0), alpha=0.2, linewidth=0)
        axes.axhline(0, color="#808080", linewidth=0.8, label="act on none")
        shown = [row[key]["value"] for key in lines if key in rows[0] for row in rows]
        reach = max(*shown, 0.02)
        axes.set(xlim=(0, 1), ylim=(-0.35 * reach, 1.15 * reach))
        axes.set_xlabel("threshold probability", fontsize=8)
        axes.set_ylabel("net benefit", fontsize=8)

    return _grid(curves, draw)


def calibration(curves: Curves) -> Figure:
    """Smoothed calibration curves with their bands, of findings that have one."""

    def draw(axes: Axes, found: Mapping[str, Any]) -> None:
        smooth = found["calibration"]
        axes.plot([0, 1], [0, 1], color="#808080", linewidth=0.8, label="perfect")
        axes.plot(smooth["predicted"], smooth["observed"], color=plots.colour(0), label="model")
        axes.fill_between(
            smooth["predicted"], smooth["low"], smooth["high"], color=plots.colour(0), alpha=0.2,
            linewidth=0, label="95 % band",
        )  # fmt: skip
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("predicted probability", fontsize=8)
        axes.set_ylabel("observed share", fontsize=8)

    return _grid(curves, draw)


def probabilities(curves: Curves) -> Figure:
    """Distribution of the predicted probabilities, with and without the finding."""

    def draw(axes: Axes, found: Mapping[str, Any]) -> None:
        edges = found["probabilities"]["edges"]
        sides = (("positive", 1, "with the finding"), ("negative", 0, "without"))
        for side, i, label in sides:
            values = found["probabilities"][side]
            share = np.array(values["counts"]) / max(values["n"], 1)
            sign = 1 if side == "positive" else -1
            axes.stairs(
                sign * share, edges, baseline=0, fill=True, color=plots.colour(i), label=label
            )
        axes.axhline(0, color="#808080", linewidth=0.6)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
        axes.set_xlabel("predicted probability", fontsize=8)
        axes.set_ylabel("share of images", fontsize=8)

    return _grid(curves, draw)
