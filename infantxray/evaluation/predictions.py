"""`Predictions`: the output of a model for N images beside the truth, and `predictions.csv`."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import replaced, verify_checksums

THRESHOLD = 0.5  # Of a finding, where an image may have several.
NO_FINDING = "no finding"
UNKNOWN = "unknown"


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
      findings: where an image may have several conditions: float32 `[N, K]`, 1 present, 0 absent,
        NaN unknown. `label` is then -1 throughout, and `probabilities` do not add up to 1.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    label: np.ndarray
    age_months: np.ndarray
    age_predicted_months: np.ndarray
    patient: np.ndarray
    findings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> Predictions:
        """The predictions of these rows: indices, or a bool `[N]`."""
        taken: dict[str, Any] = {k: v[rows] for k, v in self.arrays().items()}
        return dataclasses.replace(self, **taken)

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields with a row for each image."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in fields.items() if k != "classes" and v is not None}

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several conditions."""
        return self.findings is not None

    @property
    def has_condition(self) -> np.ndarray:
        """Bool `[N]`: the condition, or at least one finding, is known."""
        if self.findings is None:
            return np.asarray(self.label >= 0)
        return np.asarray(np.isfinite(self.findings).any(1))

    def outcome(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether class `k` (against the rest) or finding `k` is known, and present: bool `[N]`."""
        if self.findings is None:
            return np.asarray(self.label >= 0), np.asarray(self.label == k)
        return np.isfinite(self.findings[:, k]), np.asarray(self.findings[:, k] == 1)

    def names(self) -> list[str]:
        """The predicted condition of each image; or its findings of probability 0.5 and more.

        Findings are joined by `|`; without any the name is `no finding`.
        """
        if not self.classes:
            return [""] * len(self)
        if self.findings is None:
            return [self.classes[k] for k in self.probabilities.argmax(1)]
        return [joined_findings(self.classes, row) for row in self.probabilities]


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several parts of one model."""
    arrays = [part.arrays() for part in parts]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]
    }
    return dataclasses.replace(parts[0], **joined)


def joined_findings(classes: Sequence[str], probabilities: np.ndarray) -> str:
    """The findings of one image with a probability `[K]` of at least 0.5, joined by `|`."""
    found = [name for name, p in zip(classes, probabilities, strict=True) if p >= THRESHOLD]
    return "|".join(found) or NO_FINDING


def write_predictions(path: str | os.PathLike[str], predictions: Predictions, records: Any) -> None:
    """Writes `predictions.csv`, whole or not at all. Unknown values are empty.

    Where an image may have several findings, a last column `unknown` names those whose truth is not
    known, joined by `|`.

    Args:
      path: path of the file.
      predictions: predictions of N images.
      records: the N images: their `image_path`, `patient_id`, `label` and `age_months`.
    """
    classes = predictions.classes
    header = ["image_path", "patient_id", "label", "predicted", *(f"p_{name}" for name in classes)]
    names, several = predictions.names(), [UNKNOWN] * predictions.multi_label
    with replaced(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "age_months", "age_predicted_months", *several])
        for i, probabilities in enumerate(predictions.probabilities):
            writer.writerow(
                [
                    records.image_path[i],
                    records.patient_id[i],
                    records.label[i],
                    names[i],
                    *(f"{p:.7g}" for p in probabilities),
                    _number(records.age_months[i]),
                    _number(predictions.age_predicted_months[i]),
                    *(_unknown(predictions, i) for _ in several),
                ]
            )


def _unknown(predictions: Predictions, row: int) -> str:
    assert predictions.findings is not None
    pairs = zip(predictions.classes, predictions.findings[row], strict=True)
    return "|".join(name for name, value in pairs if not math.isfinite(value))


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""


def read_predictions(path: str | os.PathLike[str]) -> tuple[Predictions, list[str]]:
    """Reads `predictions.csv`.

    Labels that are no class of the model are unknown (-1). An image without a patient id counts as
    a patient. The column `unknown` exists if an image may have several findings.

    Returns:
      The predictions, and the path of each image.
    """
    verify_checksums(os.path.dirname(path), [os.path.basename(path)])
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        classes = tuple(name[2:] for name in reader.fieldnames or () if name.startswith("p_"))
        rows = list(reader)
        several = UNKNOWN in (reader.fieldnames or ())
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
        label=np.array([-1 if several else index.get(row["label"], -1) for row in rows], int),
        age_months=column("age_months"),
        age_predicted_months=column("age_predicted_months"),
        patient=np.array(patients, dtype=object),
        findings=_read_findings(rows, classes) if several else None,
    ), [row["image_path"] for row in rows]


def _read_findings(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> np.ndarray:
    found = np.zeros((len(rows), len(classes)), np.float32)
    for i, row in enumerate(rows):
        named, unknown = set(row["label"].split("|")), set(row[UNKNOWN].split("|"))
        found[i] = [np.nan if name in unknown else name in named for name in classes]
    return found
