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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError

_log = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("image_path",)
OPTIONAL_COLUMNS = ("patient_id", "age_months", "sex", "view", "label", "split", "site")
SPLITS = ("train", "validation", "test")
_MAX_AGE_MONTHS = 130 * 12.0


def _text(values: Sequence[str]) -> np.ndarray:
    return np.asarray(values, dtype=object).reshape(len(values))


@dataclasses.dataclass(frozen=True)
class Records:
    """Radiographs, as columns of equal length `n`. An empty string or NaN means unknown.

    Attributes:
      image_path: where the image is: an absolute file path, or the address of a phantom film.
      patient_id: who it shows. Films of one patient always stay in one split.
      age_months: age at the film, float32.
      sex: `"F"`, `"M"` or empty.
      view: projection as the source gives it, such as `"AP"` or `"supine"`.
      label: name of the condition.
      split: `"train"`, `"validation"`, `"test"`, or empty where the source does not say.
      site: hospital or detector, where the source has several.
      source: the `source:place` that the row came from.
    """

    image_path: np.ndarray
    patient_id: np.ndarray
    age_months: np.ndarray
    sex: np.ndarray
    view: np.ndarray
    label: np.ndarray
    split: np.ndarray
    site: np.ndarray
    source: np.ndarray

    def __post_init__(self):
        lengths = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Columns differ in length: {lengths}.")

    def __len__(self) -> int:
        return len(self.image_path)

    def take(self, rows: np.ndarray) -> Records:
        """The given rows, by integer index or boolean mask."""
        return Records(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def replace(self, **columns: np.ndarray) -> Records:
        return dataclasses.replace(self, **columns)

    @classmethod
    def create(
        cls,
        image_path: Sequence[str],
        *,
        source: str,
        patient_id: Sequence[str] | None = None,
        age_months: Sequence[float] | None = None,
        sex: Sequence[str] | None = None,
        view: Sequence[str] | None = None,
        label: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        site: Sequence[str] | None = None,
    ) -> Records:
        """Records from plain lists; a column left out is unknown throughout."""
        n = len(image_path)

        def column(values):
            return _text(list(values) if values is not None else [""] * n)

        ages = np.full(n, np.nan) if age_months is None else np.asarray(age_months, np.float64)
        return cls(
            image_path=_text([str(p) for p in image_path]),
            patient_id=column(patient_id),
            age_months=ages.astype(np.float32),
            sex=column(sex),
            view=column(view),
            label=column(label),
            split=column(split),
            site=column(site),
            source=_text([source] * n),
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


_SEXES = {"": "", "f": "F", "female": "F", "m": "M", "male": "M", "u": "", "unknown": "", "o": ""}
_SPLIT_NAMES = {
    "": "",
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def read_manifest(path: str | os.PathLike, *, source: str | None = None) -> Records:
    """Reads a manifest: CSV with a header line, one radiograph a row, UTF-8.

    `image_path` is required and relative to the manifest's own folder (absolute paths work too).
    `patient_id, age_months, sex, view, label, split, site` are used where present, however they
    are capitalised (`Patient ID`); a message names the columns that are not used.

    Raises:
      DataError: the file is missing, empty, not CSV text, lacks `image_path`, or a cell has a
        value that cannot be meant (an age that is no number, an unknown split).
    """
    path = Path(path).expanduser()
    source = source or f"manifest:{path.absolute()}"
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, not a manifest; name the CSV file, or use folder:{path}"
        )
    if not path.is_file():
        raise DataError(f"manifest {path} does not exist; check data.train, .validation, .test")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(csv.reader(file), path, source)
    except UnicodeDecodeError as error:
        raise DataError(f"manifest {path} is not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise DataError(f"manifest {path} is not valid CSV ({error})") from None


def _parse(rows, path: Path, source: str) -> Records:
    written = [name.strip() for name in next(rows, [])]
    header = [name.lower().replace(" ", "_").replace("-", "_") for name in written]
    for name in REQUIRED_COLUMNS:
        if name not in header:
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
    position = {name: header.index(name) for name in known if name in header}
    unused = [name for name, key in zip(written, header, strict=True) if key not in known]
    if unused:
        _log.info("%s: columns not used: %s (known: %s)", path, ", ".join(unused), ", ".join(known))
    columns: dict[str, list] = {name: [] for name in position}
    appends = [(name, at, columns[name].append) for name, at in position.items()]
    folder = str(path.parent.absolute())
    interned: dict[str, str] = {}
    for row in rows:
        line = rows.line_num
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"manifest {path}, line {line}: {len(row)} values for {len(header)} columns; a "
                "value that holds a comma must stand in quotes"
            )
        for name, at, append in appends:
            value = row[at].strip()
            if name == "image_path":
                if not value:
                    raise DataError(f"manifest {path}, line {line}: image_path is empty")
                # An address of a computed film is no path.
                phantom = value.startswith("phantom:")
                append(value if phantom else os.path.normpath(os.path.join(folder, value)))
            elif name == "age_months":
                append(_age(value, path, line))
            elif name in ("sex", "split"):
                append(_known(name, value, path, line))
            else:
                append(interned.setdefault(value, value))
    if not columns["image_path"]:
        raise DataError(f"manifest {path} lists no image: it has a header line only")
    return Records.create(columns.pop("image_path"), source=source, **columns)


def _known(name: str, value: str, path: Path, line: int) -> str:
    table = _SEXES if name == "sex" else _SPLIT_NAMES
    try:
        return table[value.lower()]
    except KeyError:
        expected = "F, M" if name == "sex" else ", ".join(SPLITS)
        raise DataError(
            f"manifest {path}, line {line}: {name} is {value!r}; expected {expected} or empty"
        ) from None


def _age(value: str, path: Path, line: int) -> float:
    if not value:
        return math.nan
    try:
        age = float(value)
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
    with path.open("w", newline="", encoding="utf-8") as file:
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
