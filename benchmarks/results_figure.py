"""The README's figure of results, drawn from the tables of docs/results_chests.md.

    python benchmarks/results_figure.py

writes docs/images/results.png. It measures nothing: docs/results_chests.md has the command that
produced each table.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results_chests.md"
FIGURE = ROOT / "docs" / "images" / "results.png"
SHARES = ("2 %", "10 %", "100 %")
# First cell of a table's row -> name, color and marker in the figure.
STYLES = {
    "best": ("masked edges, self-training (best)", "#0b6e4f", "o"),
    "masked_hog": ("masked edges", "#0b6e4f", "o"),
    "paper": ("autoencoder (the paper)", "#c8553d", "s"),
    "l1": ("autoencoder (the paper)", "#c8553d", "s"),
    "random": ("random weights", "#4f5d75", "^"),
    "random weights": ("random weights", "#4f5d75", "^"),
    "the image at 32 x 32 pixels": ("raw pixels", "#b0a990", "D"),
}

Value = tuple[float, float, float]  # The mean and its 95 % interval.


def read_table(page: str, after: str) -> dict[str, list[list[Value]]]:
    """Values by row and cell, of the first table below the text `after`.

    Raises:
      ValueError: the page does not hold the text, or no table follows.
    """
    table = re.search(r"^\|.*(?:\n\|.*)*", page[page.index(after) :], flags=re.MULTILINE)
    if table is None:
        raise ValueError(f"no table follows {after!r}")
    rows = {}
    for line in table[0].splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[re.sub(r", the paper's$", "", name).strip("`")] = [
            [
                (float(mean), float(low), float(high))
                for mean, low, high in re.findall(
                    r"(\.\d+)\**(?: ± \.\d+)? \[(\.\d+), (\.\d+)\]", cell
                )
            ]
            for cell in cells
        ]
    return rows


def fine_tuned(page: str) -> dict[str, list[Value]]:
    """ROC AUC of stage two by arm, for each share of the labels."""
    places = ("### The arms, 2 %", "**10 %**, twelve seeds", "**All labels, equal budgets.**")
    tables = [read_table(page, place) for place in places]
    return {arm: [table[arm][2][0] for table in tables] for arm in ("best", "paper", "random")}


def frozen(page: str, after: str) -> dict[str, list[Value]]:
    """ROC AUC of linear probes by encoder, for each share of the labels."""
    rows = read_table(page, after)
    names = ("masked_hog", "l1", "random weights", "the image at 32 x 32 pixels")
    return {name: [rows[name][share][0] for share in range(len(SHARES))] for name in names}


def panels(page: str) -> dict[str, dict[str, list[Value]]]:
    """The values of each panel, by title."""
    return {
        "Children's chests, fine-tuned": fine_tuned(page),
        "Children's chests, frozen encoder": frozen(page, "**Children's chests**, ROC AUC"),
        "Infant phantom, frozen encoder": frozen(page, "**The phantom's infants**, 600 images"),
    }


def draw(ax: Axes, title: str, values: dict[str, list[Value]]) -> None:
    """Means with 95 % intervals, shifted a little so that the intervals do not overlap."""
    for place, (name, shares) in enumerate(values.items()):
        label, color, marker = STYLES[name]
        x = [share + 0.08 * (place - (len(values) - 1) / 2) for share in range(len(shares))]
        mean = [value[0] for value in shares]
        errors = [[v[0] - v[1] for v in shares], [v[2] - v[0] for v in shares]]
        ax.errorbar(
            x, mean, yerr=errors, label=label, color=color, marker=marker, markersize=5, capsize=2
        )
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xticks(range(len(SHARES)), SHARES)
    ax.set_xlabel("labelled patients")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIGURE)
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4.0), layout="constrained")
    for ax, panel in zip(axes, panels(PAGE.read_text(encoding="utf-8")).items(), strict=True):
        draw(ax, *panel)
    axes[1].sharey(axes[0])
    axes[0].set_ylim(0.72, 0.93)
    axes[0].set_ylabel("ROC AUC, 95 % interval")
    figure.savefig(parser.parse_args().output, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
