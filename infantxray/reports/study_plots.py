"""Figures of a study: metrics by encoder and variant, curves over seeds, and metrics by labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import page, plots
from infantxray.reports.plots import Axes, Figure

_SCORES = ("accuracy", "recall", "precision", "f1", "roc_auc")
_MOST_BANDS = 4
_GRID = np.linspace(0, 1, 101)


def _error_bars(
    axes: Axes, x: Any, estimates: Sequence[Estimate], i: int, label: str, line: bool
) -> None:
    mean = np.array([e.mean for e in estimates])
    error = np.abs([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
    axes.errorbar(x, mean, np.nan_to_num(error), marker=plots.marker(i), color=plots.colour(i),
                  label=label, capsize=2, elinewidth=1.0, linewidth=1.2,
                  linestyle=plots.line_style(i) if line else "none")  # fmt: skip


def _name_encoders(axes: Axes, encoders: Sequence[str]) -> None:
    axes.set_xticks(range(len(encoders)), list(encoders))
    axes.tick_params(axis="x", labelrotation=30 if len(encoders) > 4 else 0)


def performance(rows: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Every metric of every encoder, with its interval (the paper's Figure 7)."""
    figure = Figure(figsize=(max(6.0, 1.1 * len(rows) + 2.5), 3.6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(_SCORES):
        x = np.arange(len(rows)) + 0.1 * (i - 2)
        estimates = [row[name] for row in rows.values()]
        _error_bars(axes, x, estimates, i, page.NAMES[name], line=False)
    _name_encoders(axes, list(rows))
    axes.set(ylim=(0, 1), ylabel="score", xlim=(-0.5, len(rows) - 0.5))
    plots.beside(axes)
    return figure


def ablation(
    rows: Mapping[str, Mapping[str, tuple[Estimate, np.ndarray]]],
    name: str,
    lines: Mapping[str, float],
) -> Figure:
    """Bars of one metric by encoder and variant, with intervals and seeds (Figure 8).

    Args:
      rows: `{encoder: {variant: (estimate, value of each seed)}}`.
      name: name of the metric.
      lines: baselines, drawn as horizontal lines.
    """
    variants = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    size = (max(6.0, 0.42 * len(rows) * len(variants) + 3), 3.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    width, named = 0.8 / len(variants), set()
    for j, row in enumerate(rows.values()):
        for i, variant in enumerate(variants):
            if variant not in row or not np.isfinite(row[variant][0].mean):
                continue
            estimate, seeds = row[variant]
            x = j + (i - (len(variants) - 1) / 2) * width
            label = None if variant in named else variant
            named.add(variant)
            axes.bar(x, estimate.mean, 0.92 * width, color=plots.colour(i), alpha=0.75, label=label)
            if np.isfinite(estimate.low):
                error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
                axes.errorbar(x, estimate.mean, error, color=plots.ink(), capsize=3, linewidth=1)
            spots = x + np.linspace(-0.2, 0.2, len(seeds)) * width
            axes.plot(spots, seeds, ".", color=plots.ink(), markersize=4)
    for style, (label, value) in zip(("--", ":"), lines.items(), strict=False):
        axes.axhline(value, color="#888888", linestyle=style, linewidth=1, label=label)
    _name_encoders(axes, list(rows))
    axes.set(ylabel=page.NAMES[name])
    plots.beside(axes)
    return figure


def curves(models: Mapping[str, Sequence[Predictions]]) -> Figure:
    """Macro ROC and precision-recall curves of `{label: one run a seed}`; bands hold all seeds."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (label, runs) in enumerate(models.items()):
        for axes, kind in ((left, _roc), (right, _precision_recall)):
            found = [[kind(p, s) for _, p, s in plots.each_class(run)] for run in runs]
            seeds = [np.mean(f, axis=0) if f else np.full(_GRID.shape, np.nan) for f in found]
            _band(axes, _GRID, seeds, i, label, band=len(models) <= _MOST_BANDS)
    left.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    shares = [
        positive.mean() for _, positive, _ in plots.each_class(next(iter(models.values()))[0])
    ]
    if shares:
        right.axhline(float(np.mean(shares)), color="#999999", linewidth=0.8)
    plots.square(left, xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    plots.square(right, xlabel="recall", ylabel="precision", title="Precision and recall")
    right.legend(loc="upper right", fontsize=8)
    return figure


def _band(
    axes: Axes, x: Any, seeds: Sequence[np.ndarray], i: int, label: str, band: bool = True
) -> None:
    values = np.stack(seeds)
    marker = "." if len(x) < 40 else None
    axes.plot(
        x,
        values.mean(0),
        color=plots.colour(i),
        linestyle=plots.line_style(i),
        marker=marker,
        label=label,
    )
    if len(values) > 1 and band:
        axes.fill_between(
            x, values.min(0), values.max(0), color=plots.colour(i), alpha=0.2, linewidth=0
        )


def _roc(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """True positive rate on a grid of false positive rates."""
    false, true, _ = roc_curve(positive, score)
    return np.interp(_GRID, false, true)


def _precision_recall(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Precision on a grid of recalls: the best at this recall or more."""
    precision, recall, _ = precision_recall_curve(positive, score)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return best[np.searchsorted(recall, _GRID).clip(max=len(best) - 1)]


def learning(panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, float]]]]]) -> Figure:
    """Curves by step, `{panel: {label: one list of (step, value) a seed}}`.

    Bands hold all seeds. A label has the same colour in all panels, those of the last panel first.
    """
    names = dict.fromkeys(label for lines in reversed(list(panels.values())) for label in lines)
    place = {label: i for i, label in enumerate(names)}
    columns = len(panels) if len(panels) < 4 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for label, seeds in lines.items():
            # Steps that every seed has: one may have stopped early.
            steps = sorted(set.intersection(*(set(dict(points)) for points in seeds)))
            values = [np.array([dict(points)[step] for step in steps]) for points in seeds]
            if steps:
                _band(axes, steps, values, place[label], label, band=len(lines) <= _MOST_BANDS)
        axes.set(title=title, xlabel="step")
        plots.finish_curves(axes)
    return figure


def by_labels(lines: Mapping[str, Sequence[tuple[float, Estimate]]], name: str) -> Figure:
    """One metric against the share of labels."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (label, points) in enumerate(lines.items()):
        aside = 1.06 ** (i - (len(lines) - 1) / 2)  # So that intervals do not hide one another.
        at = [100 * fraction * aside for fraction, _ in points]
        _error_bars(axes, at, [e for _, e in points], i, label, line=True)
    axes.set(xscale="log", xlabel="training patients with labels, %", ylabel=page.NAMES[name])
    ticks = sorted({100 * fraction for points in lines.values() for fraction, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    plots.beside(axes)
    return figure
