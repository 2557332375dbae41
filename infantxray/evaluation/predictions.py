"""`Predictions`: the output of a model for N images beside the truth, and `predictions.csv`."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from typing import Any

import numpy as np

from data_pipeline.files import replaced


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The output of a model for N images, and the truth. Arrays only.

    Attributes:
      classes: names of the K conditions; empty without a condition head.
      probabilities: `[N, K]`.
      label: int `[N]`, -1 = unknown.
      age_months: `[N]`, NaN = unknown.
      age_predicted_months: `[N]`, NaN without an age head.
      patient: one key a person, `[N]`.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    label: np.ndarray
    age_months: np.ndarray
    age_predicted_months: np.ndarray
    patient: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> Predictions:
        """The predictions of these rows: indices, or a bool `[N]`."""
        arrays = (f.name for f in dataclasses.fields(self) if f.name != "classes")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in arrays})


def write_predictions(path: str | os.PathLike[str], predictions: Predictions, records: Any) -> None:
    """Writes `predictions.csv`, whole or not at all. Unknown values are empty.

    Args:
      path: of the file.
      predictions: of N images.
      records: the N images: their `image_path`, `patient_id`, `label` and `age_months`.
    """
    classes = predictions.classes
    header = ["image_path", "patient_id", "label", "predicted", *(f"p_{name}" for name in classes)]
    best = predictions.probabilities.argmax(1) if classes else np.zeros(len(predictions), int)
    with replaced(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "age_months", "age_predicted_months"])
        for i, probabilities in enumerate(predictions.probabilities):
            writer.writerow(
                [
                    records.image_path[i],
                    records.patient_id[i],
                    records.label[i],
                    classes[best[i]] if classes else "",
                    *(f"{p:.7g}" for p in probabilities),
                    _number(records.age_months[i]),
                    _number(predictions.age_predicted_months[i]),
                ]
            )


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""


def read_predictions(path: str | os.PathLike[str]) -> tuple[Predictions, list[str]]:
    """Reads `predictions.csv`.

    Labels that are no class of the model are unknown (-1). An image without a patient id counts as
    a patient.

    Returns:
      The predictions, and the path of each image.
    """
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        classes = tuple(name[2:] for name in reader.fieldnames or () if name.startswith("p_"))
        rows = list(reader)
    index = {name: k for k, name in enumerate(classes)}

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or "nan") for row in rows], np.float32)

    probabilities = [column(f"p_{name}") for name in classes]
    patients = [
        f"patient:{row['patient_id']}" if row["patient_id"] else f"image:{row['image_path']}"
        for row in rows
    ]
    return Predictions(
        classes=classes,
        probabilities=np.stack(probabilities, 1) if classes else np.zeros((len(rows), 0)),
        label=np.array([index.get(row["label"], -1) for row in rows], int),
        age_months=column("age_months"),
        age_predicted_months=column("age_predicted_months"),
        patient=np.array(patients, dtype=object),
    ), [row["image_path"] for row in rows]
