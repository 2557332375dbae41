"""The figures of a study, with matplotlib: PNG and SVG, for light and for dark pages.

Colours are Okabe and Ito's, told apart with every kind of colour vision; lines also differ in
their markers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.metrics import confusion_matrix, pr_curve, roc_curve
from infantxray.reports.figures import COLOURS, RC
from infantxray.reports.tables import NAMES
from infantxray.studies.results import Model

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FIGURES = ("accuracy", "recall", "precision", "f1", "roc_auc")
_STYLES = ("-", "--", ":")
_MOST_BANDS = 4
_GRID = np.linspace(0, 1, 101)
_DARK = {
    "figure.facecolor": "#16181b",
    "axes.facecolor": "#16181b",
    "savefig.facecolor": "#16181b",
    "text.color": "#e6e6e6",
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#e6e6e6",
    "xtick.color": "#c8c8c8",
    "ytick.color": "#c8c8c8",
}


def save(folder: str, name: str, draw: Callable[[], Figure]) -> tuple[str, str]:
    """Draws a figure into `folder` as PNG and SVG; returns the paths of a light and a dark PNG."""
    paths = []
    for suffix, colours in (("", {}), ("_dark", _DARK)):
        # Text stays text and ids do not change from run to run.
        fixed = {"svg.fonttype": "none", "svg.hashsalt": name}
        with mpl.rc_context({**RC, **colours, **fixed}):
            figure = draw()
            paths.append(os.path.join(folder, f"{name}{suffix}.png"))
            figure.savefig(paths[-1], bbox_inches="tight")
            if not suffix:
                path = os.path.join(folder, f"{name}.svg")
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    return paths[0], paths[1]


def performance(rows: dict[str, dict[str, Estimate]]) -> Figure:
    """Every figure of every encoder, with its interval (the paper's Figure 7)."""
    figure = Figure(figsize=(max(6.0, 1.1 * len(rows) + 2.5), 3.6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(_FIGURES):
        estimates = [row[name] for row in rows.values()]
        x = np.arange(len(rows)) + 0.07 * (i - 2)
        _bars(axes, x, estimates, i, NAMES[name])
    axes.set_xticks(range(len(rows)), list(rows))
    axes.tick_params(axis="x", labelrotation=30 if len(rows) > 4 else 0)
    axes.set(ylim=(0, 1), ylabel="score", xlim=(-0.5, len(rows) - 0.5))
    axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def _bars(axes, x, estimates: Sequence[Estimate], i: int, label: str) -> None:
    mean = np.array([e.mean for e in estimates])
    error = np.abs([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
    axes.errorbar(
        x,
        mean,
        np.nan_to_num(error),
        marker=_MARKERS[i % len(_MARKERS)],
        color=colour(i),
        label=label,
        capsize=2,
        linestyle=_style(i),
        linewidth=1.2 if len(x) > 1 else 0,
        elinewidth=1.0,
    )


def ablation(
    rows: dict[str, dict[str, tuple[Estimate, np.ndarray]]],
    name: str,
    lines: dict[str, float],
) -> Figure:
    """Bars of one figure by encoder and variant, with intervals and seeds (Figure 8).

    Args:
      rows: `{encoder: {variant: (estimate, value of each seed)}}`.
      name: of the figure.
      lines: baselines, drawn as horizontal lines.
    """
    variants = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    figure = Figure(
        figsize=(max(6.0, 0.42 * len(rows) * len(variants) + 3), 3.4), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(variants)
    for i, variant in enumerate(variants):
        for j, row in enumerate(rows.values()):
            if variant not in row or not np.isfinite(row[variant][0].mean):
                continue
            estimate, seeds = row[variant]
            x = j + (i - (len(variants) - 1) / 2) * width
            label = variant if j == 0 else None
            axes.bar(x, estimate.mean, 0.92 * width, color=colour(i), alpha=0.75, label=label)
            if np.isfinite(estimate.low):
                error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
                axes.errorbar(x, estimate.mean, error, color=_ink(), capsize=3, linewidth=1)
            spots = x + np.linspace(-0.2, 0.2, len(seeds)) * width
            axes.plot(spots, seeds, ".", color=_ink(), markersize=4)
    for style, (label, value) in zip(("--", ":"), lines.items(), strict=False):
        axes.axhline(value, color="#888888", linestyle=style, linewidth=1, label=label)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.tick_params(axis="x", labelrotation=30 if len(rows) > 4 else 0)
    axes.set(ylabel=NAMES[name])
    axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def confusion(models: Sequence[Model]) -> Figure:
    """Shares of each true condition, mean over seeds, an encoder a panel (Figure 4)."""
    classes = models[0].predictions[0].classes
    columns = min(len(models), 2)
    rows = -(-len(models) // columns)
    side = 2.2 + 0.3 * len(classes)
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for axes in grid[len(models) :]:
        axes.axis("off")
    for axes, model in zip(grid, models, strict=False):
        shares = []
        for run in model.predictions:
            known = run.label >= 0
            predicted = run.probabilities[known].argmax(1)
            counts = confusion_matrix(run.label[known], predicted, len(classes))
            shares.append(counts / np.maximum(counts.sum(1, keepdims=True), 1))
        share = np.mean(shares, axis=0)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*share.shape):
            if share[i, j] >= 0.005:
                ink = "white" if share[i, j] > 0.55 else "black"
                text = f"{100 * share[i, j]:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        axes.set(title=model.encoder, xlabel="predicted (% of the true)")
        axes.spines[:].set_visible(False)
    grid[0].set(ylabel="true")
    return figure


def curves(models: dict[str, Model]) -> Figure:
    """Macro ROC and precision-recall curves; bands hold all seeds."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (label, model) in enumerate(models.items()):
        for axes, kind in ((left, _roc), (right, _precision_recall)):
            seeds = [kind(run) for run in model.predictions]
            _band(axes, _GRID, seeds, i, label, band=len(models) <= _MOST_BANDS)
    left.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    prevalence = 1 / len(next(iter(models.values())).predictions[0].classes)
    right.axhline(prevalence, color="#999999", linewidth=0.8)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.legend(loc="upper right", fontsize=8)
    return figure


def _band(axes, x, seeds: Sequence[np.ndarray], i: int, label: str, band: bool = True) -> None:
    values = np.stack(seeds)
    marker = "." if len(x) < 40 else None
    axes.plot(x, values.mean(0), color=colour(i), linestyle=_style(i), marker=marker, label=label)
    if len(values) > 1 and band:
        axes.fill_between(x, values.min(0), values.max(0), color=colour(i), alpha=0.2, linewidth=0)


def _each_class(run):
    known = run.label >= 0
    for k in range(len(run.classes)):
        positive = run.label[known] == k
        if positive.any() and not positive.all():
            yield positive, run.probabilities[known, k]


def _roc(run) -> np.ndarray:
    """True positive rate on a grid of false positive rates, mean over the conditions."""
    found = []
    for positive, score in _each_class(run):
        false, true = roc_curve(positive, score)
        found.append(np.interp(_GRID, false, true))
    return _mean_curve(found)


def _mean_curve(found: list[np.ndarray]) -> np.ndarray:
    return np.mean(found, axis=0) if found else np.full(_GRID.shape, np.nan)


def _precision_recall(run) -> np.ndarray:
    """Precision on a grid of recalls, mean over the conditions."""
    found = []
    for positive, score in _each_class(run):
        recall, precision = pr_curve(positive, score)
        # The best precision at this recall or more: the usual interpolation.
        best = np.maximum.accumulate(precision[::-1])[::-1]
        found.append(best[np.searchsorted(recall, _GRID).clip(max=len(best) - 1)])
    return _mean_curve(found)


def reliability(models: dict[str, Model]) -> Figure:
    """Accuracy against confidence, all seeds together."""
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for i, (label, model) in enumerate(models.items()):
        scores = calibration(
            np.concatenate([run.probabilities for run in model.predictions]),
            np.concatenate([run.label for run in model.predictions]),
        )
        axes.plot(
            [b["confidence"] for b in scores["bins"]],
            [b["accuracy"] for b in scores["bins"]],
            marker=_MARKERS[i % len(_MARKERS)],
            color=colour(i),
            label=f"{label}, error {scores['expected_calibration_error']:.3f}",
        )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def learning(panels: dict[str, dict[str, list[list[tuple[int, float]]]]]) -> Figure:
    """Curves by step, `{panel: {label: one list of (step, value) a seed}}`.

    Bands hold all seeds. A label has the same colour in all panels, those of the last panel first.
    """
    names = dict.fromkeys(label for lines in reversed(panels.values()) for label in lines)
    place = {label: i for i, label in enumerate(names)}
    columns = len(panels) if len(panels) < 4 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.2 * rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for label, seeds in lines.items():
            # Steps that every seed has: one may have stopped early.
            steps = sorted(set.intersection(*(set(dict(points)) for points in seeds)))
            values = [np.array([dict(points)[step] for step in steps]) for points in seeds]
            if steps:
                shaded = len(lines) <= _MOST_BANDS
                _band(axes, steps, values, place[label], label, band=shaded)
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def by_labels(lines: dict[str, list[tuple[float, Estimate]]], name: str) -> Figure:
    """One figure against the share of labels."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (label, points) in enumerate(lines.items()):
        aside = 1.06 ** (i - (len(lines) - 1) / 2)  # So that intervals do not hide one another.
        at = [100 * fraction * aside for fraction, _ in points]
        _bars(axes, at, [e for _, e in points], i, label)
    axes.set(xscale="log", xlabel="training patients with labels, %", ylabel=NAMES[name])
    ticks = sorted({100 * fraction for points in lines.values() for fraction, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def colour(i: int) -> str:
    """The i-th colour; black becomes white on dark pages."""
    value = COLOURS[i % len(COLOURS)]
    return _ink() if value == "#000000" else value


def _style(i: int) -> str:
    return _STYLES[i // len(COLOURS) % len(_STYLES)]


def _ink() -> str:
    return mpl.rcParams["text.color"]
