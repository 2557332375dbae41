"""The manifest: the CSV file that lists radiographs, read to records and written from them."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_pipeline import remote
from data_pipeline.ages import AGE_UNITS, read_ages, states_unit
from data_pipeline.cells import (
    DASHES,
    NO_VALUE,
    SEXES,
    SPLIT_NAMES,
    is_formula_error,
    join_findings,
)
from data_pipeline.doubts import log_doubtful_cells
from data_pipeline.errors import DataError
from data_pipeline.manifest_header import (
    BOX_COLUMNS,
    KNOWN_COLUMNS,
    SEPARATORS,
    Header,
    column_keys,
    find_separator,
)
from data_pipeline.manifest_header import NO_AGE as NO_AGE
from data_pipeline.manifest_header import OPTIONAL_COLUMNS as OPTIONAL_COLUMNS
from data_pipeline.manifest_header import REQUIRED_COLUMNS as REQUIRED_COLUMNS
from data_pipeline.records import SPLITS as SPLITS
from data_pipeline.records import Box as Box
from data_pipeline.records import Records as Records
from data_pipeline.tables import restore

_log = logging.getLogger(__name__)

# Columns in which a word such as NA means empty; a dash does in all.
_MAY_HAVE_NO_VALUE = ("patient_id", *AGE_UNITS, "sex", "label")
_EXPECTED = {
    "sex": "expected F, M or empty",
    "split": f"expected {', '.join(SPLITS)} or empty",
    "box_x0": "expected four numbers of pixels, x0 < x1 and y0 < y1, or four empty cells",
}
_FORMULA = "a formula that failed; correct it, or leave the cell empty"
_ADVICE = "save it as CSV UTF-8 (comma delimited)"
_FOREIGN = (
    (b"PK\x03\x04", "an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_UNUSUAL_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|\\|#|err|=", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_VALUES_NAMED, _LINES_NAMED = 20, 5


def read_manifest(path: str | os.PathLike[str], *, source: str | None = None) -> Records:
    """Reads a manifest: CSV with a header line, one radiograph a row, UTF-8.

    `image_path` is required and relative to the manifest's own folder (absolute paths work too).
    `patient_id, age_months, sex, view, label, split, site` are used where present, however they
    are capitalised (`Patient ID`, `PatientID`), and so are ages in other units (see `read_ages`),
    `uncertain` (findings joined by `|`) and `box_x0, box_y0, box_x1, box_y1, box_label` (pixels of
    the stored image; several boxes of an image are joined by `|`). The log names the columns that
    are not used.

    The separator is a comma, semicolon, tab or bar, or the one that a first line `sep=;` names.
    Backslashes in a path are read as slashes unless a file has such a name.

    Raises:
      DataError: the file is missing, empty, not CSV text, lacks `image_path`, or has invalid cells
        (an age that is not a number, an unknown split, a failed formula). The message lists all
        such cells with their lines.
    """
    place = _absolute(path)
    with _opened(place) as file:
        return _Reader(place, file).read(source or f"manifest:{place}")


def _absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root, or the address of a remote file."""
    place = str(path)
    return place if remote.is_remote(place) else os.path.abspath(os.path.expanduser(place))


def unused_age_columns(path: str | os.PathLike[str]) -> list[str]:
    """Columns of a manifest that may hold ages in an unknown unit, if no other column is read.

    Raises:
      DataError: see `read_manifest`.
    """
    with _opened(str(path)) as file:
        return _Reader(str(path), file).unused_age_columns()


def column_key(name: str) -> str:
    """The name of a column as `further_columns` spells it: in lower case, without spaces."""
    return column_keys([name])[0]


def further_columns(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The columns of a manifest that `Records` lack, `{column: {image_path: value}}`.

    Values are text without spaces around it; an image on several rows has its last value.

    Raises:
      DataError: see `read_manifest`.
    """
    place = _absolute(path)
    with _opened(place) as file:
        return _Reader(place, file).further_columns()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Iterator[str]]:
    """The lines of a file that may be a manifest."""
    if os.path.isdir(path):
        raise DataError(
            f"{path} is a folder, not a manifest; name the CSV file, or use folder:{path}"
        )
    if not remote.is_remote(path) and not os.path.isfile(path):
        raise DataError(f"manifest {path} does not exist; check data.train, .validation, .test")
    try:
        with remote.open_binary(path) as binary:
            head = binary.peek(4)
            for signature, what in _FOREIGN:
                if head.startswith(signature):
                    raise DataError(f"manifest {path} is {what}, not CSV text; {_ADVICE}")
            # The name of a file need not be UTF-8; everything else must be.
            yield io.TextIOWrapper(
                binary, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror or error})") from None


class _Reader:
    """Reads one manifest; collects all cells that cannot be used before it refuses any."""

    def __init__(self, path: str, file: Iterator[str]):
        self._path = path
        self._folder = os.path.dirname(path)
        self._slashes: bool | None = None  # Whether backslashes are slashes; not known yet.
        # By column and error: values with their lines.
        self._refused: dict[tuple[str, str], dict[str, list[int]]] = {}
        lines = [next(file, "")]
        match = _SEPARATOR_LINE.fullmatch(lines[0])
        if match:
            lines = [next(file, "")]
        self._separator = match[1] if match else find_separator(lines)
        self._rows = self._read_rows(itertools.chain(lines, file), before=1 if match else 0)
        _, _, first = next(self._rows, (1, 1, []))
        self._header = Header.parse(first, path)

    def unused_age_columns(self) -> list[str]:
        at = self._header.keys.index("age") if "age" in self._header.keys else None
        rows = (row for _, _, row in self._rows if at is not None and at < len(row))
        return self._header.unused_ages(self._age(row[at or 0].strip()) for row in rows)

    def _read_rows(self, lines: Iterable[str], before: int) -> Iterator[tuple[int, int, list[str]]]:
        """Rows, after the numbers of the lines on which each begins and ends."""
        # Not strict, a quote that is never closed takes all rows that follow into its value.
        reader = csv.reader(lines, strict=True, delimiter=self._separator)
        line = before + 1
        try:
            for row in reader:
                yield line, before + reader.line_num, row
                line = before + reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"manifest {self._path}, line {line}: not valid CSV ({error}); look for a quote "
                "that is not closed, or that stands inside a value"
            ) from None

    def read(self, source: str) -> Records:
        header, path = self._header.keys, self._path
        cells: dict[str, list[str]] = {name: [] for name in KNOWN_COLUMNS if name in header}
        # What cells hold repeats: ordinary ones are looked at once.
        seen: dict[str, dict[str, str]] = {name: {} for name in cells}
        appends = [(n, header.index(n), cells[n].append, seen[n]) for n in cells]
        lines: list[int] = []
        emptied: Counter[str] = Counter()
        for line, last, row in self._rows:
            if not any(map(str.strip, row)):  # Spreadsheets end in rows of commas.
                continue
            if len(row) != len(header):
                separator = SEPARATORS.get(self._separator, repr(self._separator))
                raise DataError(
                    f"manifest {path}, line {line}: {len(row)} values for {len(header)} columns; "
                    f"a value that holds {separator} must stand in quotes"
                )
            if last > line:
                _check_one_line(header, row, path, line)
            lines.append(line)
            for name, at, append, known in appends:
                if name == "image_path":
                    append(self._image_path(row[at].strip(), line))
                    continue
                value = known.get(row[at])
                if value is None:
                    value = restore(row[at].strip())
                    if _stands_for_nothing(name, value):
                        emptied[name] += 1
                        value = ""
                    elif is_formula_error(value):
                        self._refuse(name, _FORMULA, value, line)
                        value = ""
                    else:
                        _check_utf8(value, path, line)
                        value = self._age(value) if name in AGE_UNITS else value
                        known[row[at]] = value
                append(value)
        if not lines:
            raise DataError(f"manifest {path} lists no image: it has a header line only")
        self._header.log_unused(cells.get("age", ()))
        labels = cells.get("label", [])
        if "+" not in labels and "-" in labels:  # Not positive against negative.
            emptied["label"] += labels.count("-")
            cells["label"] = labels = ["" if label == "-" else label for label in labels]
        columns: dict[str, Any] = {
            name: cells[name] for name in ("patient_id", "view", "site") if name in cells
        }
        columns["label"] = [_joined(label) for label in labels] if labels else None
        if "uncertain" in cells:
            columns["uncertain"] = [_names(cell) for cell in cells["uncertain"]]
        columns["boxes"] = self._boxes(cells, labels, lines)
        columns["age_months"] = self._ages(cells, lines)
        for name, table in (("sex", SEXES), ("split", SPLIT_NAMES)):
            if name in cells:
                columns[name] = [table.get(cell.lower(), "") for cell in cells[name]]
                for line, cell in zip(lines, cells[name], strict=True):
                    if cell and cell.lower() not in table:
                        self._refuse(name, _EXPECTED[name], cell, line)
        self._raise_refused()
        log_doubtful_cells(path, cells, emptied)
        return Records.create(cells["image_path"], source=source, **columns)

    def further_columns(self) -> dict[str, dict[str, str]]:
        header = self._header.keys
        at = [i for i, name in enumerate(header) if name not in KNOWN_COLUMNS]
        found: dict[str, dict[str, str]] = {header[i]: {} for i in at}
        image_path = header.index("image_path")
        for line, _, row in self._rows:
            if len(row) == len(header):  # `read` refuses other rows.
                path = self._image_path(row[image_path].strip(), line)
                for i in at:
                    found[header[i]][path] = restore(row[i].strip())
        return found

    def _age(self, cell: str) -> str:
        """An age with a decimal point: commas that do not separate columns are decimal."""
        return cell if self._separator == "," else cell.replace(",", ".")

    def _image_path(self, value: str, line: int) -> str:
        if value.startswith("phantom:"):  # The address of a computed image, no path.
            return value
        if not value:
            self._refuse("image_path", "", value, line)
        elif not _UNUSUAL_PATH.match(value) or remote.is_remote(value):
            pass
        elif os.name != "nt" and _WINDOWS_PATH.match(value):
            what = "a path of a Windows machine; write it relative to the manifest, with slashes"
            self._refuse("image_path", what, value, line)
        elif _URL.match(value):
            self._refuse("image_path", "an address, not a path; download the files", value, line)
        elif is_formula_error(value) or value.startswith("=HYPERLINK("):
            self._refuse("image_path", _FORMULA, value, line)
        if "\\" in value and os.name != "nt":
            if self._slashes is None:
                self._slashes = not os.path.exists(os.path.join(self._folder, value))
                if self._slashes:
                    _log.info("%s: backslashes in image_path are read as slashes", self._path)
            value = value.replace("\\", "/") if self._slashes else value
        if value.startswith("~/"):
            value = os.path.expanduser(value)
        joined = value if remote.is_remote(value) else os.path.join(self._folder, value)
        image_path = remote.normpath(joined)
        try:
            _check_utf8(value, self._path, line)
        except DataError:
            if not os.path.exists(image_path):
                raise
        return image_path

    def _ages(self, cells: Mapping[str, list[str]], lines: list[int]) -> list[float] | None:
        columns = {name: cells[name] for name in AGE_UNITS if name in cells}
        if "age" in columns and not any(map(states_unit, set(columns["age"]))):
            del columns["age"]

        def refuse(name: str, what: str, value: str, row: int) -> None:
            self._refuse(name, what, value, lines[row])

        return read_ages(columns, refuse, str(self._path))

    def _boxes(
        self, cells: dict[str, list[str]], labels: list[str], lines: list[int]
    ) -> list[tuple[Box, ...]] | None:
        missing = [name for name in BOX_COLUMNS if name not in cells]
        if len(missing) == len(BOX_COLUMNS):
            return None
        if missing:
            raise DataError(f"manifest {self._path} has columns of boxes, but no {missing[0]!r}")
        names = cells.get("box_label") or labels or [""] * len(lines)
        rows = zip(*(cells[name] for name in BOX_COLUMNS), names, strict=True)
        boxes = []
        for line, row in zip(lines, rows, strict=True):
            found = _read_boxes(*row)
            if found is None:
                self._refuse("box_x0", _EXPECTED["box_x0"], ", ".join(row[:4]), line)
            boxes.append(found or ())
        return boxes

    def _refuse(self, name: str, what: str, value: str, line: int) -> None:
        self._refused.setdefault((name, what), {}).setdefault(value, []).append(line)

    def _raise_refused(self) -> None:
        """Raises `DataError` that names all cells refused, if there are any."""
        if not self._refused:
            return
        parts = []
        for (name, what), values in self._refused.items():
            named = ", ".join(
                f"{_in_lines(lines)}: {name} is {repr(value) if value else 'empty'}"
                for value, lines in list(values.items())[:_VALUES_NAMED]
            )
            more = len(values) - _VALUES_NAMED
            named += f" and {more:,} more values" if more > 0 else ""
            parts.append(f"{named}; {what}" if what else named)
        raise DataError(f"manifest {self._path}, {'. Also '.join(parts)}")


def _stands_for_nothing(name: str, value: str) -> bool:
    if value in DASHES:
        # Among labels it may be the opposite of "+", and an end of a box is a number.
        return name in (*OPTIONAL_COLUMNS, *AGE_UNITS) and (name, value) != ("label", "-")
    return name in _MAY_HAVE_NO_VALUE and value.casefold() in NO_VALUE


def _joined(label: str) -> str:
    return join_findings(label.split("|")) if "|" in label else label


def _names(cell: str) -> tuple[str, ...]:
    joined = join_findings(cell.split("|"))
    return tuple(joined.split("|")) if joined else ()


def _read_boxes(x0: str, y0: str, x1: str, y1: str, labels: str) -> tuple[Box, ...] | None:
    """Boxes from numbers joined by `|`; None if they are not valid."""
    if not x0 + y0 + x1 + y1:
        return ()
    try:
        ends = [[float(end) for end in cell.split("|")] for cell in (x0, y0, x1, y1)]
        names = labels.split("|")
        names = names if len(names) == len(ends[0]) else [labels] * len(ends[0])
        boxes = tuple(Box(*row) for row in zip(*ends, names, strict=True))
    except ValueError:
        return None
    return boxes if all(b.x0 < b.x1 < math.inf and b.y0 < b.y1 < math.inf for b in boxes) else None


def _in_lines(lines: list[int]) -> str:
    if len(lines) == 1:
        return f"line {lines[0]}"
    more = len(lines) - _LINES_NAMED
    named = ", ".join(map(str, lines[:_LINES_NAMED]))
    return f"lines {named} and {more:,} more" if more > 0 else f"lines {named}"


def _check_one_line(header: Sequence[str], row: list[str], path: str, line: int) -> None:
    # A column that is not used may hold whole reports.
    for name, value in zip(header, row, strict=True):
        if name in OPTIONAL_COLUMNS and ("\n" in value or "\r" in value):
            raise DataError(
                f"manifest {path}, line {line}: the value of {name!r} goes on over several lines; "
                "close its quote, or take the line breaks out"
            )


def _check_utf8(value: str, path: str, line: int) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"manifest {path}, line {line}: not UTF-8 text; {_ADVICE}") from None
