"""Records of radiographs: columns of equal length, one row an image.

Columns rather than one object for each row: the paper's 312,000 images take tens of megabytes, and
a million rows stay practical.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.cells import HEADER_ID, composed

SPLITS = ("train", "validation", "test")


class Box(NamedTuple):
    """Where a finding is, in pixels of the stored image. `x1` and `y1` lie outside of it."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str


def _objects(values: Sequence[Any]) -> np.ndarray:
    """An object array `[n]`; `np.array` would make a matrix of tuples."""
    return np.fromiter(values, dtype=object, count=len(values))


@dataclasses.dataclass(frozen=True)
class Records:
    """Radiographs, as columns of equal length `n`. An empty string or NaN means unknown.

    Attributes:
      image_path: an absolute file path, or the address of a phantom or remote image.
      patient_id: the patient as the source names them, or empty. `dicom:KEY:SPELLING` from a DICOM
        header: hashes of PatientID as it is written and without regard to its spelling.
      patient: one key a person, resolved from `patient_id`; an image without an id counts as one
        person. Images of one person always stay in one split. See `with_patients`.
      age_months: age at the image, float32.
      sex: `"F"`, `"M"` or empty.
      view: projection as the source gives it, such as `"AP"` or `"supine"`.
      label: name of the condition; several findings are joined by `|`, in alphabetical order.
      uncertain: a tuple of findings that are uncertain in the source.
      split: `"train"`, `"validation"`, `"test"`, or empty if the source has none.
      site: hospital or detector, where the source has several.
      boxes: a tuple of `Box`, empty where no place is known. `data_pipeline.boxes` maps them to
        the preprocessed image, and knows those of the phantom.
      source: the `source:place` of the row.
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

    def take(self, rows: np.ndarray | Sequence[int]) -> Records:
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

        `patient` is resolved as for ids shared between sources. Ids, labels and sites are brought
        into Unicode's composed form, so that equal names are equal.
        """
        n = len(image_path)

        def column(values: Sequence[Any] | None, unknown: Any = "") -> np.ndarray:
            return _objects(values if values is not None else [unknown] * n)

        def text(values: Sequence[str] | None) -> np.ndarray:
            return column(None if values is None else [composed(value) for value in values])

        def each(
            values: Sequence[tuple[Any, ...]] | None, change: Callable[[Any], Any]
        ) -> np.ndarray:
            return column(values and [tuple(map(change, row)) for row in values], ())

        ages = np.full(n, np.nan) if age_months is None else np.asarray(age_months, np.float64)
        paths, patients = _objects([str(path) for path in image_path]), text(patient_id)
        return cls(
            image_path=paths,
            patient_id=patients,
            patient=_patient_keys(patients, paths),
            age_months=ages.astype(np.float32),
            sex=column(sex),
            view=column(view),
            label=text(label),
            uncertain=each(uncertain, composed),
            split=column(split),
            site=text(site),
            boxes=each(boxes, lambda box: box._replace(label=composed(box.label))),
            source=column([source] * n),
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Records]) -> Records:
        parts = list(parts)
        return cls(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls))
        )

    @property
    def patient_name(self) -> list[str]:
        """`[n]` what `data_pipeline.cells.spelled_apart` compares; empty without a patient id."""
        names = []
        for key, patient in zip(self.patient, self.patient_id, strict=True):
            name = key.removeprefix("patient:") if patient else ""
            if header := HEADER_ID.search(patient):
                name = name.removesuffix(header[1]) + patient
            names.append(name)
        return names

    @property
    def has_label(self) -> np.ndarray:
        """Boolean `[n]`: the condition is known."""
        known: np.ndarray = self.label != ""
        return known

    @property
    def has_several(self) -> np.ndarray:
        """Boolean `[n]`: the label joins several findings."""
        return np.array(["|" in label for label in self.label], dtype=bool)

    @property
    def has_uncertain(self) -> np.ndarray:
        """Boolean `[n]`: a finding is uncertain."""
        return np.array([bool(names) for names in self.uncertain], dtype=bool)

    @property
    def has_age(self) -> np.ndarray:
        """Boolean `[n]`: the age is known."""
        known: np.ndarray = np.isfinite(self.age_months)
        return known


def _patient_keys(
    patient_ids: np.ndarray, image_paths: np.ndarray, sources: np.ndarray | None = None
) -> np.ndarray:
    """`[n]` keys; equal ones are one object. With `sources`, an id is known within its own."""
    keys: dict[tuple[str, str], str] = {}
    patients = np.empty(len(patient_ids), dtype=object)
    rows = zip(patient_ids, image_paths, patient_ids if sources is None else sources, strict=True)
    for i, (patient, path, source) in enumerate(rows):
        if header := HEADER_ID.fullmatch(patient):
            patient = header[1]
        if not patient:
            patients[i] = f"image:{path}"
        elif sources is None:
            patients[i] = keys.setdefault((patient, ""), f"patient:{patient}")
        else:
            patients[i] = keys.setdefault((patient, source), f"patient:{source}:{patient}")
    return patients
