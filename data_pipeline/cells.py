"""Parsing of table cells: sexes, splits, missing values, and ids that may mean the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

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

_THOUSANDS = re.compile(r"'?(\d{1,3}([,.])\d{3}(?:\2\d{3})*)")
_INTEGER = re.compile(r"'?(\d+)(?:[.,]0*)?")
_SCIENTIFIC = re.compile(r"\d(?:[.,](\d+))?e\+?\d{1,2}", re.IGNORECASE)
# As a spreadsheet writes a number of twelve digits and more, and 3-12; also in a file's name.
_SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d{2}")
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DATE = re.compile(rf"(\d{{1,2}}-{_MONTH}|{_MONTH}-\d\d)(\.\w+)?")
# The id of a patient by DICOM headers: a hash of PatientID, and one of its plain spelling.
HEADER_ID = re.compile(r"dicom:([0-9a-f]{16}):([0-9a-f]{16})\Z")


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC): `é` as one character, as Linux and Windows write it.

    macOS gives names of files and folders in the decomposed form, which looks the same.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_formula_error(cell: str) -> bool:
    """Whether the cell is the error of a spreadsheet's formula, such as `#REF!`."""
    return cell[:1] in "#Ee" and _FORMULA_ERROR.fullmatch(cell) is not None


def join_findings(names: Iterable[str]) -> str:
    """One label of several findings, `a|b`: each once, in alphabetical order."""
    return "|".join(sorted({name.strip() for name in names} - {""}))


def rewritten(names: Iterable[str]) -> list[str]:
    """Ids and names of files that a spreadsheet has rewritten, `1.23457E+11` or `12-Mar`."""
    found = {name for name in names if _SHORTENED.match(_last_part(name)[1])}
    return sorted(found | {name for name in names if _DATE.fullmatch(name)})


def in_short(names: Sequence[str]) -> str:
    """A message about `rewritten` names."""
    return (
        f"a spreadsheet has rewritten {len(names):,} values, such as {names[0]!r}: several people "
        "or files may have become one; export the column as text"
    )


def spelled_apart(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that may mean the same.

    The names differ only by capitals, blanks or Unicode form; or are one number in several
    spellings of a spreadsheet (`114`, `114.0`, `00114`, `1.14E+02`); or one is the other with fewer
    digits (`123456789012`, `1.23457E+11`).
    """
    groups = defaultdict(set)
    rounded = defaultdict(set)  # Number of digits -> ids with this number of digits.
    for name in names:
        key = folded(name)
        groups[key].add(name)
        if (match := _SHORTENED.match(_last_part(name)[1])) and len(_last_part(key)[1]) > 9:
            rounded[1 + len((match[1] or "").strip(",.").rstrip("0"))].add(key)
    for digits, short in rounded.items():
        for key in list(groups):
            before, last = _last_part(key)
            if last.isascii() and last.isdecimal() and len(last) > 9:
                in_short = f"{before}{float(f'{int(last):.{digits - 1}e}'):.0f}"
                if in_short in short and in_short != key:
                    groups[in_short] |= groups[key]
    return sorted({tuple(sorted(group)) for group in groups.values() if len(group) > 1})


def joined_otherwise(labels: Iterable[str]) -> list[str]:
    """Labels joined by any sign but a bar: `a;b` beside `a` and `b`, `['a']`."""
    known = set(labels)
    found = []
    for label in known:
        parts = [part.strip(" '\"[]()") for part in re.split(r"[;,/+&]", label)]
        if label.startswith("[") or (len(parts) > 1 and known.issuperset(parts)):
            found.append(label)
    return sorted(found)


def by_image(
    groups: Iterable[tuple[str, ...]], names: Iterable[str], paths: Iterable[str]
) -> list[tuple[str, ...]]:
    """Groups of names in which `PatientID of IMAGE` stands for an id that is a hash."""
    image = {
        name: f"PatientID of {path}"
        for name, path in zip(names, paths, strict=True)
        if HEADER_ID.search(name)
    }
    return [tuple(image.get(name, name) for name in group) for group in groups]


def in_words(groups: Sequence[tuple[str, ...]]) -> str:
    """The first of some groups of names, for a message."""
    named = ", ".join(" and ".join(map(repr, group)) for group in groups[:3])
    return f"{named} and {len(groups) - 3:,} more" if len(groups) > 3 else named


def folded(name: str) -> str:
    """An id without capitals and blanks, and a number as plain digits; see `spelled_apart`."""
    if header := HEADER_ID.search(name):
        return name[: header.start()] + header[2]
    name = unicodedata.normalize("NFKC", name).casefold()
    if not name.isprintable() or " " in name:
        name = "".join(c for c in name if c.isprintable() and not c.isspace())
    if not name[-1:].isdecimal() and not name.endswith((".", ",")):
        return name
    before, last = _last_part(name)
    return f"{before}{_plain_number(last)}"


def _last_part(name: str) -> tuple[str, str]:
    """An id after its source or data set: `manifest:/a.csv:114`, `nih-114`."""
    for separator in ":-":
        before, found, last = name.rpartition(separator)
        if found and before and last[:1].isdecimal():
            return before + found, last
    return "", name


def _plain_number(name: str) -> str:
    """A numeric id as plain digits, however a spreadsheet writes it."""
    if match := _THOUSANDS.fullmatch(name):
        name = match[1].replace(match[2], "")
    if match := _INTEGER.fullmatch(name):
        return match[1].lstrip("0") or "0"
    if _SCIENTIFIC.fullmatch(name):
        value = float(name.replace(",", "."))
        return f"{value:.0f}" if value.is_integer() else name
    return name
