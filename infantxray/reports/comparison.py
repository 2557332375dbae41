"""Comparison of finished runs on the same test images: paired differences, tests, disagreements."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from infantxray.evaluation.comparison import (
    auc_permutation_test,
    reclassification,
    sign_flip_test,
)
from infantxray.evaluation.diagnostics import to_dict
from infantxray.evaluation.estimates import Linearised, Metric, Scores, patient_index
from infantxray.evaluation.intervals import holm
from infantxray.evaluation.predictions import THRESHOLD, Predictions, read_predictions
from infantxray.evaluation.roc import auc, auc_difference
from infantxray.evaluation.subgroups import measures
from infantxray.reports.page import plural

_NAN = float("nan")
_PICTURES = 12


@dataclasses.dataclass(frozen=True)
class Tested:
    """Runs that were tested on the same images.

    Attributes:
      runs: `{name: Predictions}`, the reference first; rows are in one order.
      paths: of the N images.
    """

    runs: Mapping[str, Predictions]
    paths: Sequence[str]

    @property
    def reference(self) -> str:
        return next(iter(self.runs))


def read(folders: Mapping[str, str]) -> Tested:
    """Reads `predictions.csv` of each run.

    Raises:
      UserError: a run has no predictions, or runs differ in test images, truth or conditions; the
        message says how many images and patients they share.
    """
    runs: dict[str, Predictions] = {}
    paths: list[str] = []
    for name, folder in folders.items():
        file = os.path.join(folder, "predictions.csv")
        if not os.path.exists(file):
            raise UserError(f"{folder} has no predictions.csv: it is not a finished run")
        predictions, images = read_predictions(file)
        if not runs:
            runs[name], paths = predictions, images
            continue
        first, reference = next(iter(runs.items()))
        if set(images) != set(paths) or len(images) != len(paths):
            shared = len(set(images) & set(paths))
            people = len(set(predictions.patient.tolist()) & set(reference.patient.tolist()))
            raise UserError(
                f"{first} and {name} were tested on other images: they share {shared:,} of "
                f"{len(paths):,} and {len(images):,} images, and "
                f"{plural(people, 'patient')}; evaluate both on the same --config.data.test, or "
                "name one in config.beside"
            )
        if predictions.classes != reference.classes:
            raise UserError(f"{first} and {name} know other conditions")
        place = {path: row for row, path in enumerate(images)}
        predictions = predictions.take(np.array([place[path] for path in paths]))
        truths = [
            np.stack([np.where(*p.outcome(k), -1) for k in range(len(p.classes))] or [p.label])
            for p in (predictions, reference)
        ]
        if not (
            np.array_equal(truths[0], truths[1])
            and np.array_equal(predictions.age_months, reference.age_months, equal_nan=True)
            and np.array_equal(predictions.patient, reference.patient)
        ):
            raise UserError(f"{first} and {name} differ in the labels, ages or patients of images")
        runs[name] = predictions
    return Tested(runs, paths)


def paired(tested: Tested, *, permutations: int, seed: int) -> list[dict[str, Any]]:
    """Differences of each run from the reference: a row a run and headline metric.

    Returns:
      Rows with `run`, `metric`, `reference`, `value` and `difference` (metrics as dictionaries),
      `p_holm` over all rows, and `p_permutation` (accuracy and age; NaN for others).
    """
    reference = tested.runs[tested.reference]
    patient = patient_index(reference.patient)
    everything = np.ones(len(reference), bool)
    base = measures(reference)
    rows = []
    for name, run in list(tested.runs.items())[1:]:
        mine = measures(run)
        for metric, (measure, bounds) in base.items():
            if metric not in mine:
                continue
            one, two = measure(everything), mine[metric][0](everything)
            if not isinstance(one, Linearised) or not isinstance(two, Linearised):
                continue
            gap = dataclasses.replace(two - one, share=None).metric(patient)
            rows.append(
                {
                    "run": name,
                    "metric": metric,
                    "reference": to_dict(one.metric(patient, bounds)),
                    "value": to_dict(two.metric(patient, bounds)),
                    "difference": to_dict(gap),
                    "p_permutation": _sign_flip(metric, run, reference, permutations, seed),
                }
            )
    return _corrected(rows)


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    p = holm([row["difference"].get("p", _NAN) for row in rows])
    return [row | {"p_holm": float(value)} for row, value in zip(rows, p, strict=True)]


def _sign_flip(
    metric: str, run: Predictions, reference: Predictions, samples: int, seed: int
) -> float:
    if metric == "accuracy":
        known = run.label >= 0
        values = [(p.probabilities.argmax(1) == p.label)[known] for p in (run, reference)]
    elif metric == "age_mae_months":
        errors = [np.abs(p.age_predicted_months - p.age_months) for p in (run, reference)]
        known = np.isfinite(errors[0]) & np.isfinite(errors[1])
        values = [error[known] for error in errors]
    else:
        return _NAN
    patient = run.patient[known]
    return sign_flip_test(values[0], values[1], patient, samples=samples, seed=seed)


def by_condition(tested: Tested, *, permutations: int, seed: int) -> list[dict[str, Any]]:
    """ROC AUC of each condition, with DeLong's test and a permutation test against the reference.

    Returns:
      Rows with `run`, `condition`, `reference`, `value`, `difference`, `p_holm` and
      `p_permutation`.
    """
    reference = tested.runs[tested.reference]
    rows = []
    for name, run in list(tested.runs.items())[1:]:
        for k, condition in enumerate(reference.classes):
            one, two = (Scores.of_class(p, k) for p in (reference, run))
            if one.missing():
                continue
            p = auc_permutation_test(two, one, samples=permutations, seed=seed)
            rows.append(
                {
                    "run": name,
                    "condition": condition,
                    "reference": to_dict(auc(one)),
                    "value": to_dict(auc(two)),
                    "difference": to_dict(auc_difference(two, one)),
                    "p_permutation": p,
                }
            )
    return _corrected(rows)


def reclassified(tested: Tested, thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Reclassification at the thresholds of conditions: `run`, `condition`, `threshold`, and so on.

    See `evaluation.comparison.reclassification`.
    """
    reference = tested.runs[tested.reference]
    rows = []
    for name, run in list(tested.runs.items())[1:]:
        for condition, threshold in thresholds.items():
            if condition not in reference.classes:
                continue
            k = reference.classes.index(condition)
            one, two = (Scores.of_class(p, k) for p in (reference, run))
            found = reclassification(one, two, [threshold])
            plain = {k: to_dict(v) if isinstance(v, Metric) else v for k, v in found.items()}
            rows.append({"run": name, "condition": condition, "threshold": threshold} | plain)
    return rows


def disagreements(tested: Tested) -> tuple[list[dict[str, Any]], list[int]]:
    """How often each run and the reference are right, and the images of largest disagreement.

    Returns:
      Rows with `run`, `both_right`, `only_reference`, `only_run`, `both_wrong`: answers, that is,
      one an image, or one a known finding of an image; and rows of images, those first where the
      probability of the truth differs most.
    """
    reference = tested.runs[tested.reference]
    known, base, believed = _answers(reference)
    if not known.any():
        return [], []
    gap = np.zeros(len(known))
    rows = []
    for name, run in list(tested.runs.items())[1:]:
        _, mine, theirs = _answers(run)
        rows.append(
            {
                "run": name,
                "both_right": int((base & mine).sum()),
                "only_reference": int((base & ~mine).sum()),
                "only_run": int((mine & ~base).sum()),
                "both_wrong": int((known & ~base & ~mine).sum()),
            }
        )
        distance = np.where(base != mine, np.abs(theirs - believed), 0)
        gap = np.maximum(gap, distance.max(1))
    order = np.argsort(-gap, kind="stable")
    return rows, [int(i) for i in order[:_PICTURES] if gap[i] > 0]


def _answers(run: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Known answers, correct answers and the probability of the truth, each `[N, A]`."""
    if run.findings is not None:
        known, present = np.isfinite(run.findings), run.findings == 1
        right = (run.probabilities >= THRESHOLD) == present
        return known, right & known, np.where(present, run.probabilities, 1 - run.probabilities)
    known = (run.label >= 0)[:, None] & (len(run.classes) > 0)
    if not known.any():
        return known, known, np.zeros(known.shape)
    truth = np.maximum(run.label, 0)[:, None]
    right = known & (run.probabilities.argmax(1)[:, None] == truth)
    return known, right, np.take_along_axis(run.probabilities, truth, 1)
