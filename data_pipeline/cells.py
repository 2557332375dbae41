"""Parsing of table cells: ages, sexes, splits, missing values, and ids that may mean the same."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

MAX_AGE_MONTHS = 130 * 12.0
SEXES = {
    **dict.fromkeys(("f", "female", "girl", "woman"), "F"),
    **dict.fromkeys(("m", "male", "boy", "man"), "M"),
    **dict.fromkeys(("", "u", "unknown", "o", "other"), ""),
}
# Usual names of splits, in lower case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "validate", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# How spreadsheets and statistics programs write an empty cell.
DASHES = frozenset({"-", "--", "---", "–", "—"})
NO_VALUE = DASHES | {"nan", "na", "n/a", "#n/a", "<na>", "null", ".", "?"}
# Placeholders for a patient's identifier, in lower case.
NOBODY = NO_VALUE | {
    *("anonymous", "anonymized", "anonymised", "anonym", "anon", "deidentified"),
    *("unknown", "none", "test", "xxx"),
}
# In any language of Excel (#VALUE!, #BEZUG!, #¡VALOR!), and of LibreOffice (Err:502).
_FORMULA_ERROR = re.compile(r"#¡?[^\W\d_]+[!?]|#DIV/0!|#N/[AD]|#NV|##+|Err:\d{3}", re.IGNORECASE)

_MONTHS_IN = {
    **dict.fromkeys(("d", "day", "days", "일"), 12 / 365.25),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks", "주"), 84 / 365.25),
    **dict.fromkeys(("m", "mo", "mos", "mth", "mths", "month", "months", "개월"), 1.0),
    **dict.fromkeys(("y", "yr", "yrs", "year", "years", "세", "살"), 12.0),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_AGE_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\.?,?\s*")
# Codes for an unknown age. Some of them can be ages too, of schoolchildren or of adults.
_NEVER_AGES = frozenset({-1.0, -9.0, -99.0, -999.0, 9998.0, 9999.0, 99999.0})
SELDOM_AGES = (88.0, 99.0, 777.0, 888.0, 999.0)

_THOUSANDS = re.compile(r"'?(\d{1,3}([,.])\d{3}(?:\2\d{3})*)")
_INTEGER = re.compile(r"'?(\d+)(?:[.,]0*)?")
SCIENTIFIC = re.compile(r"\d([.,]\d+)?e\+?\d{1,2}", re.IGNORECASE)


def is_formula_error(cell: str) -> bool:
    """Whether the cell is the error of a spreadsheet's formula, such as `#REF!`."""
    return cell[:1] in "#Ee" and _FORMULA_ERROR.fullmatch(cell) is not None


def parse_age(cell: str) -> float | None:
    """Months of a plain number, or of `6 months`, `006M`, `2y`, `18 d`, `1 year 3 months`.

    NaN for an empty cell; None for anything that is not an age from 0 to 130 years.
    """
    if not cell or cell.casefold() == "nan":
        return math.nan
    if _NUMBER.fullmatch(cell):
        age = float(cell)
    else:
        age, at, text = 0.0, 0, unicodedata.normalize("NFC", cell).casefold()
        while at < len(text):
            part = _AGE_PART.match(text, at)
            if part is None or part[2] not in _MONTHS_IN:
                return None
            age += float(part[1]) * _MONTHS_IN[part[2]]
            at = part.end()
    return age if 0 <= age <= MAX_AGE_MONTHS else None


def is_never_an_age(cell: str) -> bool:
    """Whether the cell is a usual code for an unknown age, such as -1 or 9999."""
    return _NUMBER.fullmatch(cell) is not None and float(cell) in _NEVER_AGES


def age_codes(ages: Iterable[float]) -> list[float]:
    """Ages that are codes for unknown: 999, 888 or 777, and 99 or 88 if repeated.

    A code is more than twice as high as every other age.
    """
    known = [age for age in ages if not math.isnan(age)]
    others = [age for age in known if age not in SELDOM_AGES]
    oldest = max(others, default=0.0)
    codes = [code for code in SELDOM_AGES if 2 * oldest < code and code in known]
    return [code for code in codes if code > 100 or (others and known.count(code) > 1)]


def join_findings(names: Iterable[str]) -> str:
    """One label of several findings, `a|b`: each once, in alphabetical order."""
    return "|".join(sorted({name.strip() for name in names} - {""}))


def spelled_apart(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that may mean the same.

    They differ by capitals, blanks or Unicode form alone, or are one number as spreadsheets write
    it: `114`, `114.0`, `00114`, `1.14E+02`.
    """
    groups = defaultdict(set)
    for name in names:
        groups[_folded(name)].add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def in_words(groups: Sequence[tuple[str, ...]]) -> str:
    """The first of some groups of names, for a message."""
    named = ", ".join(" and ".join(map(repr, group)) for group in groups[:3])
    return f"{named} and {len(groups) - 3:,} more" if len(groups) > 3 else named


def _folded(name: str) -> str:
    name = unicodedata.normalize("NFC", name).casefold()
    if not name.isprintable() or " " in name:
        name = "".join(c for c in name if c.isprintable() and not c.isspace())
    if not name[-1:].isdecimal() and not name.endswith((".", ",")):
        return name
    source, colon, last = name.rpartition(":")  # The source may stand before the id.
    return f"{source}{colon}{_plain_number(last)}"


def _plain_number(name: str) -> str:
    """A numeric id as plain digits, however a spreadsheet writes it."""
    if match := _THOUSANDS.fullmatch(name):
        name = match[1].replace(match[2], "")
    if match := _INTEGER.fullmatch(name):
        return match[1].lstrip("0") or "0"
    if SCIENTIFIC.fullmatch(name):
        value = float(name.replace(",", "."))
        return f"{value:.0f}" if value.is_integer() else name
    return name
