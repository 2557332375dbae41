"""Tables that are the same on the page, as CSV, as Markdown and as LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from infantxray.evaluation.intervals import Estimate
from infantxray.reports.page import NAMES, NOTHING, number, slug

__all__ = ["NAMES", "NOTHING", "Difference", "Table", "number", "p_text"]

SIGNIFICANT = 0.05
_FOLDED = 40  # Rows.
_PHONE = 46  # Characters of a line on a phone.
_GAP = 2  # Characters between two columns.


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference.

    Attributes:
      estimate: the difference, with the uncorrected p-value.
      p_holm: corrected.
    """

    estimate: Estimate
    p_holm: float


Cell = Any  # str, int, Estimate or Difference.


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      name: name of its files.
      title: a heading.
      caption: how to read it.
      header: of the columns.
      rows: cells: text, counts, `Estimate` or `Difference`.
      foreign: indices of the rows that come from elsewhere, such as the paper's.
      alarms: indices (row, column) of the cells to mark.
    """

    name: str
    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    foreign: frozenset[int] = frozenset()
    alarms: frozenset[tuple[int, int]] = frozenset()
    kind = "table"

    @property
    def anchor(self) -> str:
        return self.name

    @property
    def folded(self) -> bool:
        """Whether the page hides it behind a summary."""
        return len(self.rows) > _FOLDED

    @property
    def scrolls(self) -> bool:
        """Whether the table is wider than a phone, about; headers and the first column wrap."""
        total = 0
        for j, name in enumerate(self.header):
            texts = [part for row in self.rows for part in _parts(row[j], name)]
            words = [word for text in [name, *(texts if j == 0 else ())] for word in text.split()]
            total += max(map(len, [*words, *(texts if j else ())]), default=0) + _GAP
        return total > _PHONE

    @property
    def left(self) -> list[bool]:
        """Whether each column is aligned to the left: the leading columns of text."""
        text = [all(isinstance(row[j], str) for row in self.rows) for j in range(len(self.header))]
        lead = text.index(False) if False in text else len(text)
        return [j < max(lead, 1) for j in range(len(text))]

    def filled(self) -> Table:
        """The table without columns that no row fills, such as ages where none is known."""
        keep = [j for j in range(len(self.header)) if any(_is_known(row[j]) for row in self.rows)]
        return dataclasses.replace(
            self,
            header=[self.header[j] for j in keep],
            rows=[[row[j] for j in keep] for row in self.rows],
        )

    def write(self, folder: str) -> None:
        """Writes `<name>.csv`, `.md` and `.tex`; CSV has a column for each number, known or not."""
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, self.name)
        with open(path + ".csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self._long())
        shown = self.filled()
        for suffix, text in ((".md", shown.markdown()), (".tex", shown.latex())):
            with open(path + suffix, "w", encoding="utf-8") as file:
                file.write(text)

    def _long(self) -> list[list]:
        parts = []
        for j in range(len(self.header)):
            kinds = {type(row[j]) for row in self.rows}
            parts.append(
                ("", "_sd", "_low", "_high", "_p", "_p_holm")
                if Difference in kinds
                else ("", "_sd", "_low", "_high")
                if Estimate in kinds
                else ("",)
            )
        head = [
            slug(name) + part
            for name, columns in zip(self.header, parts, strict=True)
            for part in columns
        ]
        rows = []
        for row in self.rows:
            cells = []
            for cell, columns in zip(row, parts, strict=True):
                values = _numbers(cell)
                cells += [*values, *[""] * (len(columns) - len(values))][: len(columns)]
            rows.append(cells)
        return [head, *rows]

    def markdown(self) -> str:
        rows = [
            [
                f"**{text}**" if _is_bold(cell) else text
                for cell, text in zip(row, self.plain(row), strict=True)
            ]
            for row in self.rows
        ]
        lines = [self.header, ["---"] * len(self.header), *rows]
        body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in lines)
        return f"**{self.title}.** {self.caption}\n\n{body}\n"

    def latex(self) -> str:
        rows = [
            [
                f"\\textbf{{{_latex(text)}}}" if _is_bold(cell) else _latex(text)
                for cell, text in zip(row, self.plain(row), strict=True)
            ]
            for row in self.rows
        ]
        body = " \\\\\n".join(map(" & ".join, rows))
        head = " & ".join(f"\\textbf{{{_latex(name)}}}" for name in self.header)
        columns = "l" + "r" * (len(self.header) - 1)
        return (
            "% Needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n\\small\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body} \\\\\n"
            "\\bottomrule\n\\end{tabular}\n"
            f"\\caption{{{_latex(self.title)}. {_latex(self.caption)}}}\n"
            f"\\label{{tab:{self.name}}}\n\\end{{table}}\n"
        )

    def plain(self, row: Sequence[Cell]) -> list[str]:
        """The cells of a row as text."""
        return [_plain(cell, name) for cell, name in self._named(row)]

    def markup(self) -> list[dict[str, Any]]:
        """The rows for a page: classes of each row; classes and lines of each cell."""
        rows, above, left = [], None, self.left
        for i, row in enumerate(self.rows):
            marks = ["foreign"] * (i in self.foreign) + ["new"] * (row[0] != above)
            cells = []
            for j, (cell, name) in enumerate(self._named(row)):
                first, *rest = (part for part in _parts(cell, name) if part)
                classes = ["left"] * left[j] + ["alarm"] * ((i, j) in self.alarms)
                again = j == 0 and row[0] == above and sum(left) > 1
                cells.append(
                    {
                        "first": "" if again else first,
                        "rest": rest,
                        "bold": _is_bold(cell),
                        "classes": " ".join(classes),
                    }
                )
            above = row[0]
            rows.append({"classes": " ".join(marks), "cells": cells})
        return rows

    def _named(self, row: Sequence[Cell]):
        return zip(row, self.header, strict=True)


def _is_bold(cell: Cell) -> bool:
    return isinstance(cell, Difference) and cell.p_holm < SIGNIFICANT


def _is_known(cell: Cell) -> bool:
    if isinstance(cell, Difference):
        cell = cell.estimate
    return math.isfinite(cell.mean) if isinstance(cell, Estimate) else cell != NOTHING


def p_text(p: float) -> str:
    return NOTHING if not math.isfinite(p) else "p < .001" if p < 0.001 else f"p = {p:.3f}"


def _numbers(cell: Cell) -> list:
    if isinstance(cell, Difference):
        return [*_numbers(cell.estimate), _csv(cell.estimate.p), _csv(cell.p_holm)]
    if isinstance(cell, Estimate):
        return [_csv(v) for v in (cell.mean, cell.sd, cell.low, cell.high)]
    return ["" if cell == NOTHING else cell]


def _csv(value: float) -> str:
    # Ten digits do not depend on the order in which a machine adds.
    return f"{value:.10g}" if math.isfinite(value) else ""


def _parts(cell: Cell, name: str) -> list[str]:
    """A metric; then its interval; then its p-value."""
    if isinstance(cell, Difference):
        e = cell.estimate
        if not math.isfinite(e.mean):
            return [NOTHING]
        return [number(e.mean, name, sign=True), _interval(e, name, True), p_text(cell.p_holm)]
    if isinstance(cell, Estimate):
        if not math.isfinite(cell.mean):
            return [NOTHING]
        spread = f" ± {number(cell.sd, name)}" if math.isfinite(cell.sd) else ""
        return [number(cell.mean, name) + spread, _interval(cell, name)]
    return [f"{cell:,}" if isinstance(cell, int) else str(cell) or NOTHING]


def _interval(estimate: Estimate, name: str, sign: bool = False) -> str:
    if not math.isfinite(estimate.low):
        return ""
    return f"[{number(estimate.low, name, sign)}, {number(estimate.high, name, sign)}]"


def _plain(cell: Cell, name: str) -> str:
    return " ".join(part for part in _parts(cell, name) if part)


_LATEX = {"&": "\\&", "%": "\\%", "_": "\\_", "#": "\\#", "$": "\\$", "±": "$\\pm$", "−": "$-$"}
_LATEX |= {"–": "--", "×": "$\\times$", "<": "$<$", ">": "$>$", "~": "\\textasciitilde{}"}
_LATEX |= {"{": "\\{", "}": "\\}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
