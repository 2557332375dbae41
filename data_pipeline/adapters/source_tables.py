"""CSV tables of public data sets: columns by name, ages and boxes."""

from __future__ import annotations

import csv
import gzip
import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.ages import MAX_AGE_MONTHS, is_zero_years, parse_age
from data_pipeline.cells import NO_VALUE, in_short, rewritten
from data_pipeline.errors import DataError
from data_pipeline.records import Box

_log = logging.getLogger(__name__)

ADULT_MONTHS = 18 * 12.0
OLDEST_CHILD_MONTHS = 20 * 12.0
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def read_table(name: str, path: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """Columns of a CSV file by name, stripped. Unpacks gzip.

    Optional columns that are missing come back empty. Tables that a spreadsheet saved with
    semicolons or tabs are read too, with their decimal commas; `114.0` is read as `114`. Logs ids
    that a spreadsheet has rewritten.

    Args:
      name: the adapter, for messages.
      path: the file.
      columns: what to read; a leading `?` marks an optional column.

    Raises:
      DataError: the file cannot be read, lacks a column, or ends within a row.
    """
    wanted = [column.removeprefix("?") for column in columns]
    table: dict[str, list[str]] = {column: [] for column in wanted}
    header, separator, rows = _open_table(name, path)
    missing = [c for c in columns if not c.startswith("?") and c not in header]
    if missing:
        raise DataError(
            f"{name}: {path} has no column {missing[0]!r} (columns found: "
            f"{', '.join(header[:20]) or 'none'})"
        )
    places = [(table[c].append, header.index(c) if c in header else -1) for c in wanted]
    short = count = 0
    row: list[str] = []
    for row in rows:
        short += len(row) < len(header)
        count += 1
        for append, at in places:
            append(_cell(row[at]) if 0 <= at < len(row) else "")
    if short == 1 and len(row) < len(header):
        raise DataError(
            f"{name}: {path} ends within a row ({len(row)} values for {len(header)} columns): the "
            "file was cut short; copy it again"
        )
    if short:
        _log.warning(
            "%s: %s: %d of %d rows have fewer values than the header; the others are taken as "
            "unknown",
            name,
            path.name,
            short,
            count,
        )
    for column, cells in table.items():
        if separator == ";":
            cells[:] = [c.replace(",", ".") if _DECIMAL_COMMA.fullmatch(c) else c for c in cells]
        found = rewritten([cell for cell in cells if "E+" in cell])
        if found:
            _log.warning("%s: %s, column %s: %s", name, path.name, column, in_short(found))
    return table


def _cell(text: str) -> str:
    """A cell without blanks, and without the `.0` that a program has added to a whole number."""
    text = text.strip()
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _open_table(name: str, path: Path) -> tuple[list[str], str, Iterator[list[str]]]:
    """The names of a table's columns, its separator, and its rows without empty ones.

    Raises:
      DataError: the file cannot be read as text, or is not valid CSV, now or further on.
    """
    opener = gzip.open if path.suffix == ".gz" else open

    def rows() -> Iterator[list[str]]:
        try:
            with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
                first = next(file, "")
                if first.lower().startswith("sep="):
                    first = next(file, "")
                separator = max(",;\t", key=first.count)
                yield [separator]
                # Not strict, a quote that is never closed takes the rows that follow with it.
                lines = itertools.chain([first], file)
                yield from csv.reader(lines, strict=True, delimiter=separator)
        except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
            raise DataError(f"{name}: {path} cannot be read as CSV ({error})") from None

    found = rows()
    (separator,) = next(found)
    header = [" ".join(cell.split()) for cell in next(found, [])]  # In one line, for messages.
    while header and not header[-1]:  # NIH's ends in a comma in some releases.
        header.pop()
    return header, separator, (row for row in found if row)


def read_boxes(name: str, path: Path) -> dict[str, list[Box]]:
    """Boxes of every image in a table of VinDr: `image_id, class_name, x_min, ..., y_max`.

    In pixels of the stored image; rows without numbers (`No finding`) have no box.

    Raises:
      DataError: see `read_table`.
    """
    ends = ("x_min", "y_min", "x_max", "y_max")
    table = read_table(name, path, ("image_id", "class_name", *ends))
    boxes: dict[str, list[Box]] = {}
    corners = zip(*(map(number, table[end]) for end in ends), strict=True)
    for image, label, (x0, y0, x1, y1) in zip(
        table["image_id"], table["class_name"], corners, strict=True
    ):
        if x0 < x1 and y0 < y1:
            boxes.setdefault(image, []).append(Box(x0, y0, x1, y1, label))
    return boxes


def table_columns(name: str, path: Path) -> list[str]:
    """The names of a table's columns, stripped.

    Raises:
      DataError: the file cannot be read as text.
    """
    return _open_table(name, path)[0]


def ages_in_months(
    name: str, cells: Sequence[str], months: float, oldest: float = MAX_AGE_MONTHS
) -> list[float]:
    """Ages in months of a column. Values outside 0 to `oldest` are unknown; logs how many.

    In a data set of children so is a whole number of zero years: it may be any age up to a year.

    Args:
      name: the adapter, for messages.
      cells: numbers, or ages with their unit such as `058Y`.
      months: the unit of numbers without one.
      oldest: the highest plausible age, in months.
    """
    numbers = [number(cell) for cell in cells]
    children = oldest <= OLDEST_CHILD_MONTHS
    whole = children and months == 12 and all(x.is_integer() for x in numbers if x == x)
    ages, wrong = [], []
    for cell, plain in zip(cells, numbers, strict=True):
        age = plain * months
        if math.isnan(age):
            known = parse_age(cell)
            age = math.nan if known is None else known
        no_year = (whole and plain == 0) or (children and is_zero_years(cell))
        usable = 0 <= age <= oldest and not no_year
        ages.append(age if usable else math.nan)
        if cell and not usable and cell.casefold() not in NO_VALUE:
            wrong.append(cell)
    if wrong:
        _log.warning(
            "%s: %d ages are taken as unknown, such as %s: they are not between 0 and %g months, "
            "or are 0 whole years",
            name,
            len(wrong),
            ", ".join(map(repr, dict.fromkeys(wrong[:3]))),
            oldest,
        )
    return ages


def number(text: str) -> float:
    """A number, or NaN for anything else."""
    try:
        return float(text.replace("_", "x"))  # Python reads 1_5 as 15.
    except ValueError:
        return math.nan
