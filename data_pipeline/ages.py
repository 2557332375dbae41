"""Ages in tables: cells with and without units, codes for unknown, units of columns."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

_log = logging.getLogger(__name__)

MAX_AGE_MONTHS = 130 * 12.0
_DAY, _WEEK = 12 / 365.25, 84 / 365.25
_MONTHS_IN = {
    **dict.fromkeys(("d", "day", "days", "일"), _DAY),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks", "주"), _WEEK),
    **dict.fromkeys(("m", "mo", "mos", "mth", "mths", "month", "months", "개월"), 1.0),
    **dict.fromkeys(("y", "yr", "yrs", "year", "years", "세", "살"), 12.0),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_AGE_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\.?,?\s*")
# Codes for an unknown age. Some of them can be ages too, of schoolchildren or of adults.
_NEVER_AGES = frozenset({-1.0, -9.0, -99.0, -999.0, 9998.0, 9999.0, 99999.0})
SELDOM_AGES = (88.0, 99.0, 777.0, 888.0, 999.0)

# What a column of ages is called before its unit, letters alone.
_AGE_NAMES = ("patientage", "age", "나이", "연령")
_AGE_WORDS = {"age", "ages", "patientage", "birth", "birthdate", "birthday", "dob"}
_AGE_EVENTS = ("atexam", "atexamination", "atstudy", "atimaging", "atscan", "atvisit")
# Columns of ages and their unit in months, the finest first. In `age` each cell states its own.
AGE_UNITS = {
    "age_days": _DAY,
    "age_weeks": _WEEK,
    "age_months": 1.0,
    "age": math.nan,
    "age_years": 12.0,
}
_EXPECTED = "an age with its unit (6 months, 2y, 018D), or empty, from 0 to 130 years"
_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}", re.ASCII)
_SEPARATED = (
    "either a fraction or a number with a separator of thousands; write numbers without separator "
    "(1229), and fractions with fewer or more than three digits (1.23)"
)
_CODE = f"a usual code for an unknown age; expected {_EXPECTED}"
# Columns must agree: how much less, and more, the finer one may be, in units of the coarser one.
_ROUNDED = (-0.55, 1.05)


def parse_age(cell: str, months: float = 1.0) -> float | None:
    """Months of a plain number, or of `6 months`, `006M`, `2y`, `18 d`, `1 year 3 months`.

    NaN for an empty cell; None if the cell is not an age from 0 to 130 years.

    Args:
      cell: the text.
      months: the unit of a plain number.
    """
    if not cell or cell.casefold() == "nan":
        return math.nan
    if is_number(cell):
        age = float(cell) * months
    else:
        age, at, text = 0.0, 0, unicodedata.normalize("NFC", cell).casefold()
        while at < len(text):
            part = _AGE_PART.match(text, at)
            if part is None or part[2] not in _MONTHS_IN:
                return None
            age += float(part[1]) * _MONTHS_IN[part[2]]
            at = part.end()
    return age if 0 <= age <= MAX_AGE_MONTHS else None


def age_column(name: str) -> float | None:
    """The unit of a column of ages, in months, by the column's name.

    `age_days`, `Age (weeks)`, `age_at_exam_months`, `PatientAgeInYears`. NaN for `age` or
    `PatientAge` alone; None for any other name.
    """
    letters = "".join(filter(str.isalpha, unicodedata.normalize("NFC", name).casefold()))
    for prefix in _AGE_NAMES:
        if letters.startswith(prefix):
            rest = letters.removeprefix(prefix)
            event = next((e for e in reversed(_AGE_EVENTS) if rest.startswith(e)), "")
            unit = rest.removeprefix(event).removeprefix("in")
            if not unit:
                return math.nan
            # An m may be male.
            return _MONTHS_IN.get(unit) if unit != "m" else None
    return None


def names_an_age(name: str) -> bool:
    """Whether one of the words of a column's name is `age`, or it is a date of birth."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return not _AGE_WORDS.isdisjoint(map(str.lower, words))


def is_number(cell: str) -> bool:
    """Whether the cell is a plain number, with digits and a point."""
    return _NUMBER.fullmatch(cell) is not None


def is_zero_years(cell: str) -> bool:
    """Whether the cell is an age of zero whole years, `0y`, which can mean any age up to a year."""
    part = _AGE_PART.fullmatch(cell.casefold())
    return part is not None and not part[1].strip("0") and _MONTHS_IN.get(part[2]) == 12.0


def is_never_an_age(cell: str) -> bool:
    """Whether the cell is a usual code for an unknown age, such as -1 or 9999."""
    return is_number(cell) and float(cell) in _NEVER_AGES


def age_codes(ages: Iterable[float]) -> list[float]:
    """Ages that are codes for unknown: 999, 888 or 777, and 99 or 88 if repeated.

    A code is more than twice as high as every other age.
    """
    known = [age for age in ages if not math.isnan(age)]
    others = [age for age in known if age not in SELDOM_AGES]
    oldest = max(others, default=0.0)
    codes = [code for code in SELDOM_AGES if 2 * oldest < code and code in known]
    return [code for code in codes if code > 100 or (others and known.count(code) > 1)]


def states_unit(cell: str) -> bool:
    """Whether the cell is an age with its unit."""
    age = parse_age(cell)
    return not is_number(cell) and age is not None and not math.isnan(age)


def read_ages(
    columns: Mapping[str, Sequence[str]], refuse: Callable[[str, str, str, int], None], name: str
) -> list[float] | None:
    """Ages in months from all columns of ages of a table, the finest unit first.

    A whole number of zero years is unknown, because it can mean any age up to a year.

    Args:
      columns: cells by the names in `AGE_UNITS`.
      refuse: called with column, reason, value and row for each cell that cannot be used.
      name: name of the table, for messages.

    Returns:
      One age a row, NaN where it is unknown; None if there is no column.
    """
    ages: list[float] | None = None
    before, zero = "", set[int]()
    for column, unit in AGE_UNITS.items():
        if column not in columns:
            continue
        known, whole_zero = _in_months(columns[column], column, unit, refuse)
        zero |= whole_zero
        if ages is None:
            ages, before = known, column
            continue
        size = 12.0 if math.isnan(unit) else unit
        for row, (finer, coarser) in enumerate(zip(ages, known, strict=True)):
            if math.isnan(finer):
                ages[row] = coarser
            elif not math.isnan(coarser) and not (
                _ROUNDED[0] * size <= finer - coarser <= _ROUNDED[1] * size
            ):
                value = f"{columns[column][row]}, and {before} is {columns[before][row]}"
                refuse(column, "these are different ages; write the whole age once", value, row)
    lost = sum(math.isnan(ages[row]) for row in zero) if ages else 0
    if lost:
        _log.warning(
            "%s: an age of 0 years is taken as unknown, in %d rows; write ages below a year in "
            "age_months or age_days",
            name,
            lost,
        )
    return ages


def _in_months(
    cells: Sequence[str], column: str, unit: float, refuse: Callable[[str, str, str, int], None]
) -> tuple[list[float], set[int]]:
    """Ages of a column, and the rows with zero whole years."""
    parsed = {cell: parse_age(cell, unit if unit == unit else 1.0) for cell in set(cells)}
    numbers = {cell: float(cell) for cell in parsed if is_number(cell)}
    codes = age_codes(numbers.get(cell, parsed[cell] or 0.0) for cell in cells)
    coded = {c for c in numbers if numbers[c] in codes or is_never_an_age(c)}
    thousands = _with_thousands(numbers, unit)
    # Where some ages have fractions, 0 is a newborn.
    whole = all(number.is_integer() for number in numbers.values())
    ages, zero = [], set()
    for row, cell in enumerate(cells):
        age = parsed[cell]
        if cell in coded:
            refuse(column, _CODE, cell, row)
        elif cell in thousands:
            refuse(column, _SEPARATED, cell, row)
        elif cell in numbers and math.isnan(unit):
            refuse(column, "a number without a unit, unlike others in this column", cell, row)
        elif age is None:
            units = "" if unit != unit else f"a number of {column.partition('_')[2]}, "
            refuse(column, f"expected {units}{_EXPECTED}", cell, row)
        elif is_zero_years(cell) or (cell in numbers and age == 0 and unit == 12 and whole):
            age = math.nan
            zero.add(row)
        ages.append(math.nan if age is None else age)
    return ages, zero


def _with_thousands(numbers: Mapping[str, float], unit: float) -> set[str]:
    """Cells that may be whole numbers with a separator of thousands, `1.229` days.

    That is so if every fraction in the column has three digits, is an age without its point too,
    and stands beside whole numbers. In days the whole numbers may be missing.
    """
    fractions = {cell for cell in numbers if "." in cell}
    whole = any(number >= 1 for cell, number in numbers.items() if cell not in fractions)
    if not all(
        _THOUSANDS.fullmatch(cell) and 1000 * numbers[cell] * unit <= MAX_AGE_MONTHS
        for cell in fractions
    ):
        return set()
    uneven = unit == _DAY and any(not numbers[cell].is_integer() for cell in fractions)
    return fractions if whole or uneven else set()
