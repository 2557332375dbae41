"""Header of a manifest: its separator, the names of its columns, and those that are not used."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import re
from collections.abc import Iterable

from data_pipeline.ages import AGE_UNITS, age_column, names_an_age, states_unit
from data_pipeline.errors import DataError

_log = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("image_path",)
OPTIONAL_COLUMNS = ("patient_id", "age_months", "sex", "view", "label", "split", "site")
BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")
KNOWN_COLUMNS = (
    *(*REQUIRED_COLUMNS, *(c for c in OPTIONAL_COLUMNS if c != "age_months")),
    *(*AGE_UNITS, "uncertain", *BOX_COLUMNS, "box_label"),
)

# Other names of columns, such as those of DICOM.
_ALIASES = {
    "imagepath": "image_path",
    "patientid": "patient_id",
    "patientsex": "sex",
    "viewposition": "view",
}
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
NO_AGE = (
    "no age is read from {}; name a column age_months, age_days, age_weeks or age_years, or write "
    "the unit into the cells of age (6 months)"
)


def column_keys(written: list[str]) -> list[str]:
    """Names of columns in this project's spelling; unknown ones come back in lower case."""
    keys = [name.lower().replace(" ", "_").replace("-", "_") for name in written]
    aliases = [_ALIASES.get(key.replace("_", ""), key) for key in keys]
    for i, name in enumerate(written):
        unit = age_column(name)
        if unit is not None:
            found = (n for n, u in AGE_UNITS.items() if u == unit or (u != u and unit != unit))
            aliases[i] = next(found)
    return [key if alias in keys else alias for key, alias in zip(keys, aliases, strict=True)]


def find_separator(lines: list[str]) -> str:
    """The separator that makes a header with `image_path`."""
    with contextlib.suppress(csv.Error):
        for separator in SEPARATORS:
            header = next(csv.reader(lines, delimiter=separator), [])
            if "image_path" in column_keys([name.strip() for name in header]):
                return separator
    return ","


@dataclasses.dataclass(frozen=True)
class Header:
    """Names of columns: as they are written, and in this project's spelling.

    Attributes:
      path: path of the manifest, for messages.
      written: as in the file.
      keys: of the same columns; unknown ones in lower case.
    """

    path: str
    written: tuple[str, ...]
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, cells: Iterable[str], path: str) -> Header:
        """Raises `DataError` if a column that is needed is missing, or a known one comes twice."""
        written = [" ".join(name.split()) for name in cells]  # In one line, for messages.
        header = column_keys(written)
        if "image_path" not in header:
            raise DataError(
                f"manifest {path} has no column 'image_path' (columns found: "
                f"{', '.join(written) or 'none'}); add it: the path of each image, relative to the "
                "manifest"
            )
        repeated = sorted(
            {name for name in header if name in KNOWN_COLUMNS and header.count(name) > 1}
        )
        if repeated:
            names = [name for name, key in zip(written, header, strict=True) if key == repeated[0]]
            raise DataError(
                f"manifest {path} has the column {repeated[0]!r} more than once: {', '.join(names)}"
            )
        return cls(path, tuple(written), tuple(header))

    def unused_ages(self, ages: Iterable[str]) -> list[str]:
        """Columns that may hold ages in an unknown unit, where no other one is read.

        Args:
          ages: the cells of the column `age`, if there is one.
        """
        used = set(AGE_UNITS) & set(self._used(ages))
        columns = zip(self.written, self.keys, strict=True)
        return [w for w, key in columns if names_an_age(w) or key == "age"] if not used else []

    def _used(self, ages: Iterable[str]) -> list[str]:
        """The known columns, without `age` where no cell of it states a unit."""
        stated = any(map(states_unit, set(ages)))
        return [key for key in self.keys if key in KNOWN_COLUMNS and (stated or key != "age")]

    def log_unused(self, ages: Iterable[str]) -> None:
        """Logs the columns that are not used, and warns of those of patients and ages."""
        used, names = self._used(ages), zip(self.written, self.keys, strict=True)
        unused = [name for name, key in names if name and key not in used]
        if unused:
            known = ", ".join((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))
            unused_names = ", ".join(unused)
            _log.info("%s: columns not used: %s (known: %s)", self.path, unused_names, known)
        patients = [name for name in unused if re.search("patient|subject", name, re.IGNORECASE)]
        if patients and "patient_id" not in self.keys:
            _log.warning(
                "%s: each image counts as a patient, because there is no column patient_id; rename "
                "%s if it names the patients",
                self.path,
                " or ".join(patients),
            )
        unread = self.unused_ages(ages)
        if unread:
            _log.warning("%s: %s", self.path, NO_AGE.format(", ".join(unread)))
