"""The report's figures, with matplotlib, as PNG: colour-blind safe and readable in grey print."""

from __future__ import annotations

import os

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infantxray.evaluation.metrics import Predictions, roc_curve
from infantxray.evaluation.saliency import Example

# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")
RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 130,
    "legend.frameon": False,
}


def draw_all(
    folder: str,
    predictions: Predictions,
    summary: dict,
    history: list[dict],
    examples: list[Example],
) -> dict[str, str]:
    """Draws whatever the predictions allow into `folder`; returns `{name: path}` in page order."""
    os.makedirs(folder, exist_ok=True)
    figures: dict[str, Figure] = {}
    with mpl.rc_context(RC):
        if history:
            figures["learning_curves"] = learning_curves(history)
        if (predictions.label >= 0).any():
            matrix = np.array(summary["confusion_matrix"])
            figures["confusion_matrix"] = confusion_figure(matrix, predictions.classes)
            if summary["roc_auc"] is not None:
                figures["roc"] = roc_figure(predictions, summary)
            figures["calibration"] = calibration_figure(summary["calibration"])
        if summary["age_mae_months"] is not None:
            figures["age"] = age_figure(predictions)
        if examples:
            figures["saliency"] = saliency_figure(examples)
        paths = {}
        for name, figure in figures.items():
            paths[name] = os.path.join(folder, f"{name}.png")
            figure.savefig(paths[name], bbox_inches="tight", facecolor="white")
    return paths


def learning_curves(history: list[dict]) -> Figure:
    """Training loss, and the validation figures, by step."""
    aged = any(row.get("validation/age_mae_months") is not None for row in history)
    figure = Figure(figsize=(10 if aged else 8, 3.2), layout="constrained")
    panels = figure.subplots(1, 3 if aged else 2)
    left, middle = panels[:2]

    def curve(axes, name, label, i):
        points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        if points:
            marker = "." if len(points) < 40 else None
            axes.plot(*zip(*points, strict=True), marker=marker, color=COLOURS[i], label=label)

    terms = ("train/loss", "train/cross_entropy", "train/age_mse", "train/age_distribution",
             "validation/loss")  # fmt: skip
    for i, name in enumerate(terms):
        curve(left, name, name.replace("_", " "), i)
    left.set(xlabel="step", ylabel="loss", title="Loss")
    for i, name in enumerate(("accuracy", "f1", "roc_auc")):
        curve(middle, f"validation/{name}", name.replace("_", " "), i)
    middle.set(xlabel="step", ylim=(0, 1), title="Validation")
    if aged:
        curve(panels[-1], "validation/age_mae_months", "mean absolute error", 3)
        panels[-1].set(xlabel="step", ylabel="months", title="Validation, age")
        panels[-1].set_ylim(bottom=0)
    for axes in panels:
        if axes.lines:  # Below, where a legend hides no line.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def confusion_figure(matrix: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Counts, coloured by the share of the true class."""
    k = len(classes)
    side = 2.0 + 0.36 * k
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(k):
        for j in range(k):
            colour = "white" if share[i, j] > 0.55 else "black" if matrix[i, j] else "#999999"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(k), classes, rotation=45, ha="right")
    axes.set_yticks(range(k), classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    return figure


def roc_figure(predictions: Predictions, summary: dict) -> Figure:
    """One curve a class against the rest."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    known = predictions.label >= 0
    for k, name in enumerate(predictions.classes):
        area = summary["per_class"][name]["roc_auc"]
        if area is not None:
            curve = roc_curve(predictions.label[known] == k, predictions.probabilities[known, k])
            axes.plot(
                *curve,
                color=COLOURS[k % len(COLOURS)],
                linestyle=_STYLES[k // len(COLOURS) % len(_STYLES)],
                label=f"{name} ({area:.2f})",
            )
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", title="class (area)")
    return figure


def calibration_figure(calibration: dict) -> Figure:
    """Accuracy against stated confidence, with how many images stand behind each point."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, label="perfect")
    bins = calibration["bins"]
    confidence = [b["confidence"] for b in bins]
    accuracy = [b["accuracy"] for b in bins]
    axes.plot(confidence, accuracy, marker="o", color=COLOURS[0], label="model")
    for b in bins:
        axes.annotate(
            str(b["n"]), (b["confidence"], b["accuracy"]), (4, -9), textcoords="offset points",
            fontsize=7,
        )  # fmt: skip
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
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
    axes.scatter(true, predicted, s=8, alpha=0.5, color=COLOURS[0], edgecolors="none")
    axes.set(xlabel="age (months)", ylabel="predicted age (months)")
    return figure


def saliency_figure(examples: list[Example]) -> Figure:
    """Images with their Grad-CAM."""
    columns = min(6, len(examples))
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.25 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, example in zip(grid, examples, strict=False):
        axes.imshow(example.image, cmap="gray", vmin=0, vmax=255)
        axes.imshow(example.saliency, cmap="inferno", alpha=0.45 * example.saliency)
        if example.box:
            box = example.box
            corner, width, height = (box.x0 - 0.5, box.y0 - 0.5), box.x1 - box.x0, box.y1 - box.y0
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=COLOURS[5]))
        right = example.truth == example.predicted
        axes.set_title(
            f"{example.truth}\n{'✓' if right else '✗ ' + example.predicted} "
            f"{example.probability:.0%}",
            fontsize=7,
            color="black" if right else "#B03000",
        )
    return figure
