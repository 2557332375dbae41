"""What the finished cells of a study answered, image by image, ready to be compared."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.loader import class_indices
from data_pipeline.manifest import Records
from data_pipeline.splits import Split, patient_keys, read_split
from infantxray.commands import probe
from infantxray.evaluation.metrics import Predictions
from infantxray.studies.plan import Cell

PREDICTIONS = "predictions.csv"
REFERENCE = "full"


@dataclasses.dataclass(frozen=True)
class Model:
    """The same recipe with several seeds.

    Attributes:
      encoder: name of the network.
      name: the variant of stage two, or what a frozen encoder learned by and the probe's method.
      label_fraction: of the training patients.
      cells: one a seed, in the plan's order.
      runs: their answers.
    """

    encoder: str
    name: str
    label_fraction: float
    cells: tuple[Cell, ...]
    runs: tuple[Predictions, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that finished.

    Attributes:
      classes: names of the conditions.
      images: the test images, the same for every model, in the order of their answers.
      models: of stage two.
      frozen: probes of frozen encoders.
      splits: `{label_fraction: split}` with the labels that were trained on.
      unfinished: cells that are missing.
    """

    classes: tuple[str, ...]
    images: Records
    models: tuple[Model, ...]
    frozen: tuple[Model, ...]
    splits: dict[float, Split]
    unfinished: tuple[Cell, ...]

    def model(self, encoder: str, name: str, label_fraction: float | None = None) -> Model | None:
        """A model of stage two, with all labels where nothing else is said."""
        fraction = self.top_fraction if label_fraction is None else label_fraction
        for model in self.models:
            if (model.encoder, model.name, model.label_fraction) == (encoder, name, fraction):
                return model
        return None

    @property
    def top_fraction(self) -> float:
        return max(self.splits)

    @property
    def fractions(self) -> list[float]:
        return sorted(self.splits)

    @property
    def encoders(self) -> list[str]:
        return list(dict.fromkeys(model.encoder for model in self.models))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(model.name for model in self.models))

    @property
    def reference(self) -> str:
        """The variant that others are compared with."""
        return REFERENCE if REFERENCE in self.variants else self.variants[-1]

    @property
    def seeds(self) -> int:
        return max(len(model.runs) for model in self.models)


def read_results(cells: Sequence[Cell], patient_ids: str) -> Results:
    """Reads the answers of all finished cells.

    Raises:
      UserError: no stage two is finished, or two cells answered for different images.
    """
    finished = [cell for cell in cells if cell.is_finished()]
    unfinished = tuple(cell for cell in cells if cell not in finished)
    tuned = [cell for cell in finished if cell.task == "finetune"]
    if not tuned:
        raise UserError("no stage two of this study is finished: there is nothing to report")
    splits = {}
    for cell in tuned:
        if cell.label_fraction not in splits:
            splits[cell.label_fraction] = read_split(os.path.join(cell.folder, "split.csv"))
    test = next(iter(splits.values())).test
    reader = _Reader(test, patient_ids)
    models = _models(tuned, lambda cell: cell.name, reader, PREDICTIONS)
    frozen = []
    for method in probe.METHODS:
        frozen += _models(
            [cell for cell in finished if cell.task == "probe"],
            lambda cell, method=method: f"{cell.name}, {_METHODS[method]}",
            reader,
            f"predictions_{method}.csv",
        )
    frozen.sort(key=lambda model: model.cells[0].index)
    return Results(
        classes=models[0].runs[0].classes,
        images=reader.images,
        models=tuple(models),
        frozen=tuple(frozen),
        splits=splits,
        unfinished=unfinished,
    )


_METHODS = {"linear": "linear probe", "knn": "k-NN"}


def _models(cells, name, reader: _Reader, file: str) -> list[Model]:
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.encoder, name(cell), cell.label_fraction), []).append(cell)
    return [
        Model(*key, tuple(group), tuple(reader(os.path.join(c.folder, file)) for c in group))
        for key, group in groups.items()
    ]


class _Reader:
    """Reads `predictions.csv` of several runs on the same images.

    Args:
      test: the test images.
      patient_ids: see `patient_keys`.
    """

    def __init__(self, test: Records, patient_ids: str):
        self._test = test
        self._patient_ids = patient_ids
        self._paths: list[str] | None = None
        self.images = test

    def __call__(self, path: str) -> Predictions:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        paths = [row["image_path"] for row in rows]
        if self._paths is None:
            self._paths = paths
            row_of = {path: i for i, path in enumerate(self._test.image_path)}
            self.images = self._test.take(np.array([row_of[path] for path in paths], int))
        elif paths != self._paths:
            raise UserError(
                f"{path} answers for other images than the other runs of this study; delete the "
                "folders whose data has changed since, and run the study again"
            )
        classes = tuple(key[2:] for key in rows[0] if key.startswith("p_"))
        return Predictions(
            classes=classes,
            probabilities=np.array(
                [[float(row[f"p_{name}"] or "nan") for name in classes] for row in rows]
            ).reshape(len(rows), len(classes)),
            label=class_indices(self.images.label, classes),
            age_months=self.images.age_months,
            age_predicted_months=np.array(
                [float(row["age_predicted_months"] or "nan") for row in rows], np.float32
            ),
            patient=patient_keys(self.images, self._patient_ids),
        )
