"""Figures of one run, and what all figures share: PNG at 300 dpi and SVG, light and dark.

Colours are Okabe and Ito's, which are distinct for every kind of colour vision. Lines and marks
also differ in style, so that figures can be read in grey print.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from infantxray.evaluation.localisation import Example
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import page

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_VECTOR_POINTS = 2000  # More are drawn as pixels within the SVG.
_RC: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # A class may be called "$".
    "svg.fonttype": "none",
    "image.interpolation": "none",
}
_DARK: dict[str, Any] = {
    "figure.facecolor": "#16181b",
    "axes.facecolor": "#16181b",
    "savefig.facecolor": "#16181b",
    "text.color": "#e6e6e6",
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#e6e6e6",
    "xtick.color": "#c8c8c8",
    "ytick.color": "#c8c8c8",
}
_FONT = "DejaVu Sans"  # Comes with matplotlib.
_USELESS_FONTS = ("LastResort", "Last Resort", "Blank", "Emoji")


def save(
    folder: str, name: str, draw: Callable[[], Figure], words: Iterable[str] = ()
) -> tuple[str, str]:
    """Draws `<name>.png`, `<name>.svg` and `<name>_dark.svg` into `folder`.

    Args:
      folder: is made where it is missing.
      name: name of the files.
      draw: makes the figure.
      words: names in it that users chose, for which fonts are looked up.

    Returns:
      The paths of the light and the dark SVG.
    """
    os.makedirs(folder, exist_ok=True)
    fixed: dict[str, Any] = {
        "font.family": fonts_for("".join(words)) or [_FONT],
        "svg.hashsalt": name,
    }
    paths = []
    for suffix, colours in (("", {}), ("_dark", _DARK)):
        style: Any = {**_RC, **colours, **fixed}
        with mpl.rc_context(style):
            figure = draw()
            paths.append(os.path.join(folder, f"{name}{suffix}.svg"))
            figure.savefig(paths[-1], bbox_inches="tight", metadata={"Date": None}, dpi=150)
            if not suffix:
                figure.set_layout_engine("none")  # It has been laid out.
                path = os.path.join(folder, f"{name}.png")
                figure.savefig(path, bbox_inches="tight", dpi=300)
    return paths[0], paths[1]


@functools.cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def fonts_for(text: str) -> list[str] | None:
    """Families of this machine that together have every letter of a text; None if some lack."""
    families = [_FONT]
    missing = set(map(ord, text)) - _letters(font_manager.findfont(_FONT)) - {ord("\n")}
    for font in font_manager.fontManager.ttflist if missing else ():
        if any(word in font.name for word in _USELESS_FONTS) or font.name in families:
            continue
        if missing & _letters(font.fname):
            families.append(font.name)
            missing -= _letters(font.fname)
    return None if missing else families


def class_labels(classes: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Names that the fonts of this machine can write, and a legend of the others.

    Returns:
      The names, where some cannot be written numbers instead; and `(number, name)` of these.
    """
    shown, legend = [], []
    for k, name in enumerate(classes, start=1):
        writable = fonts_for(name) is not None
        shown.append(name if writable else f"#{k}")
        legend += [] if writable else [(f"#{k}", name)]
    return tuple(shown), legend


def colour(i: int) -> str:
    """The i-th colour; on dark pages black becomes white, and blue lighter."""
    value = COLOURS[i % len(COLOURS)]
    if value == "#0072B2" and ink() == _DARK["text.color"]:
        return "#4C9BE8"  # Contrast of 6.1 instead of 3.4.
    return ink() if value == "#000000" else value


def line_style(i: int) -> str:
    return _STYLES[i // len(COLOURS) % len(_STYLES)]


def marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]


def ink() -> str:
    return str(mpl.rcParams["text.color"])


def beside(axes: Axes, **options: Any) -> None:
    """A legend to the right of the axes."""
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", **options)


def square(axes: Axes, **options: Any) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", **options)


_LOSSES = {
    "train/loss": "training loss",
    "train/cross_entropy": "training cross-entropy",
    "train/age_mse": "training age MSE",
    "train/age_distribution": "training age distribution",
    "validation/loss": "validation loss",
}


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss, and validation metrics, by step; panels without a curve are left out."""
    panels = {
        "Loss": ("loss", _LOSSES),
        "Validation": ("score", {n: page.NAMES[n] for n in ("accuracy", "f1", "roc_auc")}),
        "Validation, age": ("months", {"age_mae_months": page.NAMES["age_mae_months"]}),
    }
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, (_, names) in panels.items():
        for name, label in names.items():
            key = name if names is _LOSSES else f"validation/{name}"
            points = [(row["step"], row[key]) for row in history if row.get(key) is not None]
            # Without an age head the loss is the cross-entropy: one curve.
            if points and points not in found.get(title, {}).values():
                found.setdefault(title, {})[label] = points
    figure = Figure(figsize=(max(3.6 * len(found), 4), 3.2), layout="constrained")
    grid = figure.subplots(1, max(len(found), 1), squeeze=False).ravel()
    for axes, (title, lines) in zip(grid, found.items(), strict=False):
        ylabel, names = panels[title]
        for label, points in lines.items():
            place = list(names.values()).index(label)
            marker = "." if len(points) < 40 else None
            axes.plot(*zip(*points, strict=True), color=colour(place), marker=marker, label=label)
        axes.set(xlabel="step", ylabel=ylabel, title=title)
        if ylabel == "score":
            axes.set_ylim(0, 1)
        elif ylabel == "months":
            axes.set_ylim(bottom=0)
        finish_curves(axes)
    return figure


def finish_curves(axes: Axes) -> None:
    """Starts the axis where the first curve starts; a legend below."""
    if axes.lines:
        steps = np.concatenate([line.get_xdata() for line in axes.lines])
        if steps.min() < steps.max():
            axes.set_xlim(steps.min(), steps.max())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)


def confusion_figure(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Confusion matrices, a panel each, coloured by the share of the true class.

    Args:
      matrices: `{title: [K, K]}`, rows are the truth; counts (int), or shares (float) that are
        written in per cent.
      classes: names of the K classes.
    """
    columns = min(len(matrices), 2)
    rows = -(-len(matrices) // columns)
    side = 2.2 + 0.34 * len(classes)
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for axes in grid[len(matrices) :]:
        axes.axis("off")
    for axes, (title, matrix) in zip(grid, matrices.items(), strict=False):
        counted = np.issubdtype(matrix.dtype, np.integer)
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1) if counted else matrix
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*share.shape):
            ink = "white" if share[i, j] > 0.55 else "black" if share[i, j] > 0.005 else "#767676"
            text = f"{matrix[i, j]}" if counted else f"{100 * matrix[i, j]:.0f}"
            if counted or share[i, j] >= 0.005:
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        axes.set(title=title, xlabel="predicted" if counted else "predicted (% of the true)")
        axes.spines[:].set_visible(False)
    for axes in grid[::columns]:
        axes.set(ylabel="true")
    return figure


def roc_figure(predictions: Predictions) -> Figure:
    """One curve a class against the rest, with its area."""
    from sklearn.metrics import roc_curve  # Takes most of a second.

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for k, positive, score in each_class(predictions):
        false, true, _ = roc_curve(positive, score)
        label = f"{predictions.classes[k]} ({np.trapezoid(true, false):.2f})"
        axes.plot(false, true, color=colour(k), linestyle=line_style(k), label=label)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    square(axes, xlabel="false positive rate", ylabel="true positive rate")
    beside(axes, title="class (area)")
    return figure


def reliability(calibrations: Mapping[str, Mapping[str, Any]], counts: bool = False) -> Figure:
    """Accuracy against confidence of `{label: calibration}`; with the images of each bin."""
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, label="perfect")
    for i, (label, found) in enumerate(calibrations.items()):
        points = [(b["confidence"], b["accuracy"]) for b in found["bins"]]
        error = found["expected_calibration_error"]
        axes.plot(*zip(*points, strict=True), marker=marker(i), color=colour(i),
                  label=f"{label}, error {error:.3f}")  # fmt: skip
        for b, point in zip(found["bins"] if counts else (), points, strict=False):
            axes.annotate(f"{b['n']:,}", point, (5, -9), textcoords="offset points", fontsize=7)
    square(axes, xlabel="confidence", ylabel="accuracy")
    beside(axes)
    return figure


def age_figure(predictions: Predictions) -> Figure:
    """Predicted against true age."""
    figure = Figure(figsize=(4.4, 4), layout="constrained")
    axes = figure.subplots()
    true, predicted = predictions.age_months, predictions.age_predicted_months
    known = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[known], predicted[known]
    limits = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(limits, limits, color="#999999", linewidth=0.8)
    axes.scatter(true, predicted, s=8, alpha=0.5, color=colour(0), edgecolors="none",
                 rasterized=len(true) > _VECTOR_POINTS)  # fmt: skip
    axes.set(xlabel="age, months", ylabel="predicted age, months")
    return figure


def saliency_figure(examples: Sequence[Example], *, both: bool = True) -> Figure:
    """Images; below each the saliency of the predicted, then of the true condition.

    Without `both` that of one finding, which is the same.
    """
    columns = min(6, len(examples))
    rows = -(-len(examples) // columns)
    labels = ("image", "predicted", "true") if both else ("image", "saliency")
    height = len(labels)
    size = (1.75 * columns + 0.3, (5.6 if both else 3.9) * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(height * rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for i, example in enumerate(examples):
        top, column = height * (i // columns), i % columns
        right = example.truth == example.predicted
        maps = (None, example.predicted_map, example.true_map)[:height]
        for axes, found, label in zip(grid[top : top + height, column], maps, labels, strict=True):
            axes.imshow(_overlaid(example.image, found))
            for x0, y0, x1, y1 in example.boxes:
                corner = (x0 - 0.5, y0 - 0.5)
                frame = Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=COLOURS[5])
                axes.add_patch(frame)
            if column == 0:
                axes.set_ylabel(label)
        answer = "correct" if right else f"taken for\n{example.predicted}"
        grid[top, column].set_title(
            f"{example.truth}\n{answer}, {example.probability:.0%}",
            fontsize=7, color=ink() if right else colour(1),
        )  # fmt: skip
    return figure


def _overlaid(image: np.ndarray, found: np.ndarray | None) -> np.ndarray:
    """A grey image `[S, S]` under a saliency map `[S, S]`: `[S, S, 3]` in [0, 1]."""
    grey = np.repeat(image[..., None] / 255.0, 3, axis=2)
    if found is None:
        return grey
    # Blended here: an SVG has one opacity an image, not one a pixel.
    share = 0.6 * found[..., None]
    return (1 - share) * grey + share * mpl.colormaps["inferno"](found)[..., :3]


def each_class(run: Predictions) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
    """Number, truth (bool) and score of each class that some images have and some have not."""
    for k in range(len(run.classes)):
        known, present = run.outcome(k)
        positive = present[known]
        if positive.any() and not positive.all():
            yield k, positive, run.probabilities[known, k]


def renamed(examples: Sequence[Example], names: Mapping[str, str]) -> list[Example]:
    """Examples with other names of their classes."""
    return [
        dataclasses.replace(e, truth=names[e.truth], predicted=names[e.predicted]) for e in examples
    ]
