"""Results of a study: the predictions of its finished runs on the same test images."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.loader import class_indices
from data_pipeline.manifest import Records
from data_pipeline.splits import Split, read_split
from infantxray.evaluation.predictions import Predictions, read_predictions
from infantxray.features.classifiers import METHODS
from infantxray.studies.plan import REFERENCE, Plan, Run

PREDICTIONS = "predictions.csv"
_ADVICE = "; delete the folders whose data has changed since, and run the study again"


@dataclasses.dataclass(frozen=True)
class Model:
    """The same method with several seeds.

    Attributes:
      encoder: name of the network.
      name: the variant of stage two; of a frozen encoder its objective and the probe's method.
      label_fraction: share of the training patients.
      runs: one a seed, in the plan's order.
      predictions: predictions of each run.
    """

    encoder: str
    name: str
    label_fraction: float
    runs: tuple[Run, ...]
    predictions: tuple[Predictions, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """The models of a study whose runs are finished.

    Attributes:
      classes: names of the conditions.
      images: the test images, the same for every model, in the order of their predictions.
      models: of stage two.
      frozen: probes of frozen encoders.
      splits: `{label_fraction: split}` with the labels that were trained on.
      unfinished: runs that are missing.
      same_as: variants that were not run, `{name: the identical variant}`.
    """

    classes: tuple[str, ...]
    images: Records
    models: tuple[Model, ...]
    frozen: tuple[Model, ...]
    splits: dict[float, Split]
    unfinished: tuple[Run, ...]
    same_as: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def model(self, encoder: str, name: str, label_fraction: float | None = None) -> Model | None:
        """A model of stage two; None = with the largest label fraction."""
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
        return max(len(model.predictions) for model in self.models)


def read_results(plan: Plan, patient_ids: str) -> Results:
    """Reads the predictions of all finished runs.

    Args:
      plan: of the study.
      patient_ids: as `config.data.patient_ids`.

    Raises:
      UserError: no stage two is finished, or two runs were tested on different images, or on images
        whose labels or ages have changed.
    """
    finished = [run for run in plan.runs if run.is_finished()]
    tuned = [run for run in finished if run.task == "finetune"]
    if not tuned:
        raise UserError("no stage two of this study is finished: there is nothing to report")
    splits: dict[float, Split] = {}
    for run in tuned:
        if run.label_fraction not in splits:
            splits[run.label_fraction] = read_split(os.path.join(run.folder, "split.csv"))
    test = next(iter(splits.values())).test.with_patients(patient_ids)
    reader = _Reader(test)
    models = _models(tuned, lambda run: run.name, reader, PREDICTIONS)
    frozen = []
    for method in METHODS:
        frozen += _models(
            [run for run in finished if run.task == "probe"],
            functools.partial(_probe_name, method=method),
            reader,
            f"predictions_{method}.csv",
        )
    frozen.sort(key=lambda model: model.runs[0].index)
    return Results(
        classes=models[0].predictions[0].classes,
        images=reader.images,
        models=tuple(models),
        frozen=tuple(frozen),
        splits=splits,
        unfinished=tuple(run for run in plan.runs if run not in finished),
        same_as=plan.same_as,
    )


def _probe_name(run: Run, *, method: str) -> str:
    return f"{run.name}, {'linear probe' if method == 'linear' else 'k-NN'}"


def _models(
    runs: Sequence[Run], name: Callable[[Run], str], reader: _Reader, file: str
) -> list[Model]:
    groups: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.encoder, name(run), run.label_fraction), []).append(run)
    return [
        Model(*key, tuple(group), tuple(reader(os.path.join(r.folder, file)) for r in group))
        for key, group in groups.items()
    ]


class _Reader:
    """Reads `predictions.csv` of several runs on the same images.

    Args:
      test: the test images, with patients resolved.
    """

    def __init__(self, test: Records):
        self._test = test
        self._paths: list[str] | None = None
        self._first: Predictions | None = None
        self.images = test

    def __call__(self, path: str) -> Predictions:
        predictions, paths = read_predictions(path)
        if self._first is None or self._paths is None:
            row_of = {path: i for i, path in enumerate(self._test.image_path)}
            if not row_of.keys() >= set(paths):
                raise UserError(f"{path} has predictions for other images than split.csv{_ADVICE}")
            self._first, self._paths = predictions, paths
            self.images = self._test.take(np.array([row_of[path] for path in paths], int))
        elif paths != self._paths:
            raise UserError(
                f"{path} has predictions for other images than the other runs of this "
                f"study{_ADVICE}"
            )
        elif not _same_truth(predictions, self._first):
            raise UserError(
                f"{path} has other conditions, labels or ages of the test images than the other "
                f"runs of this study{_ADVICE}"
            )
        classes = () if predictions.multi_label else predictions.classes
        return dataclasses.replace(  # The file rounds ages, and patients may be those of a source.
            predictions,
            label=class_indices(self.images.label, classes),
            age_months=self.images.age_months,
            patient=self.images.patient,
        )


def _same_truth(one: Predictions, other: Predictions) -> bool:
    if one.classes != other.classes or one.multi_label != other.multi_label:
        return False
    if one.findings is not None and other.findings is not None:
        # With few labels, fewer findings count as known.
        known = np.isfinite(one.findings) & np.isfinite(other.findings)
        if (one.findings != other.findings)[known].any():
            return False
    return np.array_equal(one.label, other.label) and np.array_equal(
        one.age_months, other.age_months, equal_nan=True
    )
