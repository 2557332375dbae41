"""Columns that divide patients into subgroups: of the records, DICOM headers, or a manifest."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_pipeline.decode import looks_like_dicom
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import Header, Refused
from data_pipeline.errors import UserError
from data_pipeline.manifest import Records, column_key, further_columns
from infantxray.evaluation.subgroups import age_bands

RECORDS = ("sex", "age", "view", "site", "source")
DICOM = ("manufacturer", "year", "kvp")  # Of headers: maker, year of the study, tube voltage.
TITLES = {"manufacturer": "Manufacturer", "year": "Year", "kvp": "Tube voltage"}
OTHERS = "others"
SAMPLE = 2000  # Headers of a partition that are read for Table 1.
_MOST_GROUPS = 20  # Of a column of texts; the others are one group.
_QUARTERS = (0.25, 0.5, 0.75)
_THREADS = 16  # Reading waits for the disk.


def parse(text: str, records: Records) -> list[str]:
    """The columns that a comma-separated text names.

    Args:
      text: such as `sex,site,incubator`.
      records: images that have these columns.

    Raises:
      UserError: the data have no such column.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [n for n in names if n not in RECORDS + DICOM]
    if unknown:
        found = _further(records)
        for name in unknown:
            if column_key(name) not in found:
                known = ", ".join((*RECORDS, *DICOM, *found))
                raise UserError(f"config.subgroups: no column {name!r}; there are {known}")
    return names


def read(records: Records, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels of the subgroups of each image, `{column: [N]}`; empty where unknown.

    A column of more than 20 numbers is divided at its quartiles; of more than 20 texts, the
    rarest become `others`.

    Args:
      records: the images.
      names: names of `RECORDS`, of `DICOM` (read from headers; `kvp` in steps of ten), or of the
        manifests that the images come from. `age` is the age band.
    """
    headers = dicom_columns(records) if set(names) & set(DICOM) else {}
    further = _further(records) if set(names) - set(RECORDS + DICOM) else {}
    found = {}
    for name in names:
        if name == "age":
            found[name] = age_bands(records.age_months)
        elif name in RECORDS:
            found[name] = _grouped(getattr(records, name))
        elif name in DICOM:
            found[name] = _grouped(headers[name])
        else:
            values = further.get(column_key(name), {})
            cells = [values.get(path, "") for path in records.image_path]
            found[name] = _grouped(np.array(cells, dtype=object))
    return found


def dicom_columns(records: Records) -> dict[str, np.ndarray]:
    """`DICOM` columns of each image; empty for files that are not DICOM and where not given."""
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header, records.image_path, chunksize=64))
    values = {
        # One maker writes its name in several ways.
        "manufacturer": [re.sub(r"[ .,]+", " ", h.manufacturer).strip().upper() for h in headers],
        # De-identification writes 1900 or 1901; there was no digital radiography before 1980.
        "year": [h.year if h.year >= "1980" else "" for h in headers],
        "kvp": [_step(h.tube_voltage_kv) for h in headers],
    }
    return {name: np.array(column, dtype=object) for name, column in values.items()}


def sampled_headers(records: Records) -> dict[str, np.ndarray]:
    """`dicom_columns` of at most 2,000 of the images, evenly spaced."""
    n = min(len(records), SAMPLE)
    return dicom_columns(records.take(np.linspace(0, len(records) - 1, n).astype(int)))


def acquisition(headers: Iterable[Mapping[str, np.ndarray]]) -> dict[str, list[str]]:
    """The known values of `sampled_headers` of all partitions, frequent first."""
    found: dict[str, Counter[str]] = {}
    for part in headers:
        for name, values in part.items():
            found.setdefault(name, Counter()).update(values[values != ""].tolist())
    return {name: [v for v, _ in c.most_common(_MOST_GROUPS)] for name, c in found.items() if c}


def _header(path: str) -> Header:
    try:
        return read_header(path) if looks_like_dicom(path) else Header()
    except (Refused, OSError):
        return Header()


def _step(kilovolts: float) -> str:
    if not math.isfinite(kilovolts):
        return ""
    low = int(kilovolts // 10 * 10)
    return f"{low}-{low + 9} kV"


def _further(records: Records) -> dict[str, Mapping[str, str]]:
    """The further columns of the manifests, `{column: {image_path: value}}`."""
    found: dict[str, dict[str, str]] = {}
    for source in dict.fromkeys(records.source.tolist()):
        kind, _, path = source.partition(":")
        if kind == "manifest" and os.path.isfile(path):
            for name, values in further_columns(path).items():
                found.setdefault(name, {}).update(values)
    return dict(found)


def _grouped(values: np.ndarray) -> np.ndarray:
    counts = Counter(values[values != ""].tolist())
    if len(counts) <= _MOST_GROUPS:
        return values
    result = np.full(len(values), "", dtype=object)
    known = values != ""
    try:
        numbers = np.array([float(v) for v in values[known]])
    except ValueError:
        kept = {name for name, _ in counts.most_common(_MOST_GROUPS)}
        result[known] = [v if v in kept else OTHERS for v in values[known]]
        return result
    finite = np.isfinite(numbers)
    known[known], numbers = finite, numbers[finite]
    ends = np.unique(np.quantile(numbers, _QUARTERS))
    groups = np.searchsorted(ends, numbers, side="right")
    names = {g: f"{numbers[groups == g].min():g} to {numbers[groups == g].max():g}"
             for g in np.unique(groups)}  # fmt: skip
    result[known] = [names[g] for g in groups]
    return result
