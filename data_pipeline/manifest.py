"""The record (one radiograph) and the CSV that lists them.

Records are kept as columns rather than as one object a row: the paper's 312,000 images then
take tens of megabytes, and a million rows stay practical.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import DataError

_log = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("image_path",)
OPTIONAL_COLUMNS = ("patient_id", "age_months", "sex", "view", "label", "split", "site")
SPLITS = ("train", "validation", "test")
_MAX_AGE_MONTHS = 130 * 12.0


class Box(NamedTuple):
    """Where a finding is, in pixels of the stored image. `x1` and `y1` lie outside of it."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str


def _objects(values: Sequence[Any]) -> np.ndarray:
    """`[n]` objects; NumPy would make a matrix of tuples."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


@dataclasses.dataclass(frozen=True)
class Records:
    """Radiographs, as columns of equal length `n`. An empty string or NaN means unknown.

    Attributes:
      image_path: where the image is: an absolute file path, or the address of a phantom image.
      patient_id: the patient as the source names them, or empty.
      patient: one key a person, resolved from `patient_id`; an image without an id is a person of
        its own. Images of one person always stay in one split. See `with_patients`.
      age_months: age at the image, float32.
      sex: `"F"`, `"M"` or empty.
      view: projection as the source gives it, such as `"AP"` or `"supine"`.
      label: name of the condition; several findings are joined by `|`, in alphabetical order.
      uncertain: a tuple of the findings that the source neither affirms nor denies.
      split: `"train"`, `"validation"`, `"test"`, or empty where the source does not say.
      site: hospital or detector, where the source has several.
      boxes: a tuple of `Box`, empty where no place is known. `data_pipeline.boxes` maps them to
        the preprocessed image, and knows those of the phantom.
      source: the `source:place` that the row came from.
    """

    image_path: np.ndarray
    patient_id: np.ndarray
    patient: np.ndarray
    age_months: np.ndarray
    sex: np.ndarray
    view: np.ndarray
    label: np.ndarray
    uncertain: np.ndarray
    split: np.ndarray
    site: np.ndarray
    boxes: np.ndarray
    source: np.ndarray

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Columns differ in length: {lengths}.")

    def __len__(self) -> int:
        return len(self.image_path)

    def take(self, rows: np.ndarray) -> Records:
        """The given rows, by integer index or boolean mask."""
        return Records(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def replace(self, **columns: np.ndarray) -> Records:
        """Records with other columns. Another `patient_id` or `image_path` resolves `patient` anew.

        That is done as for ids shared between sources.
        """
        records = dataclasses.replace(self, **columns)
        if columns.keys() & {"patient_id", "image_path"} and "patient" not in columns:
            return records.with_patients("shared")
        return records

    def with_patients(self, patient_ids: str) -> Records:
        """Records whose `patient` is resolved as `config.data.patient_ids` says.

        Args:
          patient_ids: `"shared"`, an id means the same person in every source; or `"source"`, ids
            of one source mean nothing in another.
        """
        sources = None if patient_ids == "shared" else self.source
        patient = _patient_keys(self.patient_id, self.image_path, sources)
        return dataclasses.replace(self, patient=patient)

    @classmethod
    def create(
        cls,
        image_path: Sequence[str],
        *,
        source: str,
        patient_id: Sequence[str] | None = None,
        age_months: Sequence[float] | np.ndarray | None = None,
        sex: Sequence[str] | None = None,
        view: Sequence[str] | None = None,
        label: Sequence[str] | None = None,
        uncertain: Sequence[tuple[str, ...]] | None = None,
        split: Sequence[str] | None = None,
        site: Sequence[str] | None = None,
        boxes: Sequence[tuple[Box, ...]] | None = None,
    ) -> Records:
        """Records from plain lists; a column left out is unknown throughout.

        `patient` is resolved as for ids shared between sources.
        """
        n = len(image_path)

        def column(values: Sequence[Any] | None, unknown: Any = "") -> np.ndarray:
            return _objects(values if values is not None else [unknown] * n)

        ages = np.full(n, np.nan) if age_months is None else np.asarray(age_months, np.float64)
        paths, patients = _objects([str(path) for path in image_path]), column(patient_id)
        return cls(
            image_path=paths,
            patient_id=patients,
            patient=_patient_keys(patients, paths),
            age_months=ages.astype(np.float32),
            sex=column(sex),
            view=column(view),
            label=column(label),
            uncertain=column(uncertain, ()),
            split=column(split),
            site=column(site),
            boxes=column(boxes, ()),
            source=column([source] * n),
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Records]) -> Records:
        parts = list(parts)
        return cls(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls))
        )

    @property
    def has_label(self) -> np.ndarray:
        """Boolean `[n]`: the condition is known."""
        return self.label != ""

    @property
    def has_age(self) -> np.ndarray:
        """Boolean `[n]`: the age is known."""
        return np.isfinite(self.age_months)


def _patient_keys(
    patient_ids: np.ndarray, image_paths: np.ndarray, sources: np.ndarray | None = None
) -> np.ndarray:
    """`[n]` keys; equal ones are one object. With `sources`, an id is known within its own."""
    keys: dict[tuple[str, str], str] = {}
    patients = np.empty(len(patient_ids), dtype=object)
    rows = zip(patient_ids, image_paths, patient_ids if sources is None else sources, strict=True)
    for i, (patient, path, source) in enumerate(rows):
        if not patient:
            patients[i] = f"image:{path}"
        elif sources is None:
            patients[i] = keys.setdefault((patient, ""), f"patient:{patient}")
        else:
            patients[i] = keys.setdefault((patient, source), f"patient:{source}:{patient}")
    return patients


def spelled_apart(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ by capitals, blanks or Unicode form alone."""
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
    if name.isprintable() and " " not in name:
        return name
    return "".join(c for c in name if c.isprintable() and not c.isspace())


_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "u": "", "unknown": "", "o": ""}
# What splits are called elsewhere, in capitals or not.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "validate": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
# Columns that are called otherwise without a doubt, such as by DICOM. No PatientAge: it is in
# years in some tables and `003M` in others.
_ALIASES = {
    "imagepath": "image_path",
    "patientid": "patient_id",
    "agemonths": "age_months",
    "patientsex": "sex",
    "viewposition": "view",
}
# How spreadsheets and statistics programs write an empty cell, and where that is believed.
_NO_VALUE = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null"})
_MAY_HAVE_NO_VALUE = ("patient_id", "age_months", "sex", "label")
# Words in the place of a patient's identifier, in capitals or not.
NOBODY = _NO_VALUE | {
    *("anonymous", "anonymized", "anonymised", "anonym", "anon", "deidentified"),
    *("unknown", "none", "test", "xxx"),
}
_NO_LABEL = frozenset({"none", "unknown"})  # Or a condition of that name.
_ADVICE = "save it as CSV UTF-8 (comma delimited)"
_FOREIGN = (
    (b"PK\x03\x04", "an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_manifest(path: str | os.PathLike, *, source: str | None = None) -> Records:
    """Reads a manifest: CSV with a header line, one radiograph a row, UTF-8.

    `image_path` is required and relative to the manifest's own folder (absolute paths work too).
    `patient_id, age_months, sex, view, label, split, site` are used where present, however they
    are capitalised (`Patient ID`, `PatientID`); a message names the columns that are not used.

    Raises:
      DataError: the file is missing, empty, not CSV text, lacks `image_path`, or a cell has a
        value that cannot be meant (an age that is no number, an unknown split, a line break).
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    source = source or f"manifest:{path}"
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, not a manifest; name the CSV file, or use folder:{path}"
        )
    if not path.is_file():
        raise DataError(f"manifest {path} does not exist; check data.train, .validation, .test")
    try:
        with path.open("rb") as file:
            head = file.read(4)
        for signature, what in _FOREIGN:
            if head.startswith(signature):
                raise DataError(f"manifest {path} is {what}, not CSV text; {_ADVICE}")
        # The name of a file need not be UTF-8; everything else must be.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return _parse(_rows(file, path), path, source)
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror})") from None


def _rows(file: Iterable[str], path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Rows, after the numbers of the lines on which each begins and ends."""
    # Not strict, a quote that is never closed takes all rows that follow into its value.
    reader = csv.reader(file, strict=True)
    line = 1
    try:
        for row in reader:
            yield line, reader.line_num, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"manifest {path}, line {line}: not valid CSV ({error}); look for a quote that is not "
            "closed, or that stands inside a value"
        ) from None


def _parse(rows: Iterator[tuple[int, int, list[str]]], path: Path, source: str) -> Records:
    _, _, first = next(rows, (1, 1, []))
    written = [name.strip() for name in first]
    header = _column_names(written, path)
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    position = {name: header.index(name) for name in known if name in header}
    unused = [name for name, key in zip(written, header, strict=True) if key not in known]
    if unused:
        _log.info("%s: columns not used: %s (known: %s)", path, ", ".join(unused), ", ".join(known))
    columns: dict[str, list] = {name: [] for name in position}
    appends = [(name, at, columns[name].append) for name, at in position.items()]
    folder = str(path.parent)
    interned: dict[str, str] = {}
    emptied: Counter[str] = Counter()
    for line, last, row in rows:
        if not any(map(str.strip, row)):  # Spreadsheets end in rows of commas.
            continue
        if len(row) != len(header):
            raise DataError(
                f"manifest {path}, line {line}: {len(row)} values for {len(header)} columns; a "
                "value that holds a comma must stand in quotes"
            )
        if last > line:
            _check_one_line(header, row, path, line)
        for name, at, append in appends:
            value = row[at].strip()
            if len(value) < 5 and name in _MAY_HAVE_NO_VALUE and value.casefold() in _NO_VALUE:
                emptied[name] += 1
                value = ""
            if name == "image_path":
                append(_image_path(value, folder, path, line))
            elif name == "age_months":
                append(_age(value, path, line))
            elif name in ("sex", "split"):
                append(_known(name, value, path, line))
            else:
                if value not in interned:
                    _check_utf8(value, path, line)
                append(interned.setdefault(value, value))
    if not columns["image_path"]:
        raise DataError(f"manifest {path} lists no image: it has a header line only")
    _log_doubtful(path, columns, emptied)
    return Records.create(columns.pop("image_path"), source=source, **columns)


def _column_names(written: list[str], path: Path) -> list[str]:
    """The header in this project's names; what it does not know comes back in lower case.

    Raises:
      DataError: a column that is needed is missing, or one that is known stands there twice.
    """
    keys = [name.lower().replace(" ", "_").replace("-", "_") for name in written]
    aliases = [_ALIASES.get(key.replace("_", ""), key) for key in keys]
    header = [key if alias in keys else alias for key, alias in zip(keys, aliases, strict=True)]
    for name in REQUIRED_COLUMNS:
        if name not in header:
            line = ",".join(written)
            for separator, what in _SEPARATORS.items():
                if separator in line and name in line.lower().split(separator):
                    raise DataError(f"manifest {path} is separated by {what}; {_ADVICE}")
            raise DataError(
                f"manifest {path} has no column {name!r} (columns found: "
                f"{', '.join(written) or 'none'}); add it: the path of each image, relative to the "
                "manifest"
            )
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    repeated = sorted({name for name in header if name in known and header.count(name) > 1})
    if repeated:
        names = [name for name, key in zip(written, header, strict=True) if key == repeated[0]]
        raise DataError(
            f"manifest {path} has the column {repeated[0]!r} more than once: {', '.join(names)}"
        )
    return header


def _check_one_line(header: list[str], row: list[str], path: Path, line: int) -> None:
    # A column that is not used may hold whole reports.
    for name, value in zip(header, row, strict=True):
        if name in OPTIONAL_COLUMNS and ("\n" in value or "\r" in value):
            raise DataError(
                f"manifest {path}, line {line}: the value of {name!r} goes on over several lines; "
                "close its quote, or take the line breaks out"
            )


def _check_utf8(value: str, path: Path, line: int) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"manifest {path}, line {line}: not UTF-8 text; {_ADVICE}") from None


def _image_path(value: str, folder: str, path: Path, line: int) -> str:
    if not value:
        raise DataError(f"manifest {path}, line {line}: image_path is empty")
    if value.startswith("phantom:"):  # The address of a computed image, no path.
        return value
    image_path = os.path.normpath(os.path.join(folder, value))
    try:
        _check_utf8(value, path, line)
    except DataError:
        if not os.path.exists(image_path):
            raise
    return image_path


def _log_doubtful(path: Path, columns: Mapping[str, list], emptied: Mapping[str, int]) -> None:
    """Names values that may be meant otherwise than they are taken."""
    if emptied:
        _log.warning(
            "%s: nan, NA, N/A or null is taken as empty: %s",
            path,
            ", ".join(f"{name} in {count:,} rows" for name, count in sorted(emptied.items())),
        )
    for name, words, counts_as in (
        ("label", _NO_LABEL, "a condition"),
        ("patient_id", NOBODY, "one patient"),
    ):
        values = columns.get(name, [])
        for value in sorted(value for value in set(values) if value.casefold() in words):
            _log.warning(
                "%s: %s is %r in %d rows, and counts as %s; leave it empty where it is not known",
                path,
                name,
                value,
                values.count(value),
                counts_as,
            )


def _known(name: str, value: str, path: Path, line: int) -> str:
    table = _SEXES if name == "sex" else SPLIT_NAMES
    try:
        return table[value.lower()] if value else ""
    except KeyError:
        expected = "F, M" if name == "sex" else ", ".join(SPLITS)
        raise DataError(
            f"manifest {path}, line {line}: {name} is {value!r}; expected {expected} or empty"
        ) from None


def _age(value: str, path: Path, line: int) -> float:
    if not value:
        return math.nan
    try:
        age = float(value.replace("_", "x"))  # Python reads 1_5 as 15.
    except ValueError:
        raise DataError(
            f"manifest {path}, line {line}: age_months is {value!r}; expected a number of months, "
            "or empty where unknown"
        ) from None
    if math.isnan(age):
        return math.nan
    if not 0 <= age <= _MAX_AGE_MONTHS:
        raise DataError(
            f"manifest {path}, line {line}: age_months is {value}; expected 0 to "
            f"{_MAX_AGE_MONTHS:.0f}, or empty where unknown"
        )
    return age


def write_manifest(
    path: str | os.PathLike,
    records: Records,
    extra: Mapping[str, Sequence] | None = None,
    *,
    relative: bool = True,
) -> None:
    """Writes records as a manifest that `read_manifest` reads back to the same columns.

    Args:
      path: the CSV to write.
      records: what to list.
      extra: further columns, such as a reason, of the same length.
      relative: write file paths relative to the manifest's folder.
    """
    path = Path(path)
    names = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    extra = dict(extra or {})
    folder = str(path.parent.absolute())
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *extra])
        for i in range(len(records)):
            row = []
            for name in names:
                value = getattr(records, name)[i]
                if name == "age_months":
                    value = "" if math.isnan(value) else f"{value:.9g}"
                elif name == "image_path" and relative and os.path.isabs(value):
                    value = os.path.relpath(value, folder)
                row.append(value)
            writer.writerow(row + [column[i] for column in extra.values()])
