"""CSV files that are safe to open in a spreadsheet, written whole or not at all.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula (CSV injection). Names
of patients, labels and files come from outside, so such text is written after an apostrophe, which
`restore` removes. Numbers are not changed.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_pipeline.files import replaced

# Full-width signs are formulas too, in East Asian editions.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def neutralise(text: str) -> str:
    """Text that no spreadsheet takes for a formula; `restore` reads it back."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def restore(cell: str) -> str:
    """The text that `neutralise` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes a table; the file appears, or is replaced, when all rows are written.

    Args:
      path: the CSV file.
      header: names of the columns.
      rows: cells; text is neutralised, everything else is written as `str` gives it.
    """
    with replaced(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([neutralise(name) for name in header])
        for row in rows:
            writer.writerow([neutralise(c) if isinstance(c, str) else c for c in row])


def read_csv(path: str | os.PathLike[str]) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a table that `write_csv` wrote, and its rows as text.

    Raises:
      OSError: the file cannot be read.
      csv.Error: it is not valid CSV.
    """
    rows = _restored(path)
    return next(rows, []), rows


def _restored(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file, strict=True):
            yield [restore(cell) for cell in row]
