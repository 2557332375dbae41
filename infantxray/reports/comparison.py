"""Comparison of finished runs on the same test images: paired differences, tests, disagreements."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from infantxray.evaluation.comparison import (
    auc_permutation_test,
    reclassification,
    sign_flip_test,
)
from infantxray.evaluation.diagnostics import to_dict
from infantxray.evaluation.estimates import Linearised, Metric, Scores, patient_index
from infantxray.evaluation.intervals import holm
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.predictions import Predictions, read_predictions
from infantxray.evaluation.roc import auc, auc_difference
from infantxray.evaluation.subgroups import measures
from infantxray.evaluation.summary import to_json
from infantxray.reports.page import (
    NAMES,
    NOTHING,
    Images,
    listed,
    number,
    plural,
    setting_lines,
    write_page,
)
from infantxray.reports.run_sections import estimate
from infantxray.reports.tables import Cell, Difference, Table

_log = logging.getLogger(__name__)
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
            _log.info("%s against %s: %s", name, tested.reference, condition)
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
    """How often each run and the reference are right, and the images they disagree most about.

    Returns:
      Rows with `run`, `both_right`, `only_reference`, `only_run`, `both_wrong`; and rows of images,
      those first where the probability of the true condition differs most.
    """
    reference = tested.runs[tested.reference]
    known = reference.label >= 0
    if not reference.classes or not known.any():
        return [], []
    truth = np.maximum(reference.label, 0)
    right = {n: (p.probabilities.argmax(1) == truth) & known for n, p in tested.runs.items()}
    base = right[tested.reference]
    at = np.arange(len(truth))
    gap = np.zeros(len(truth))
    rows = []
    for name, run in list(tested.runs.items())[1:]:
        mine = right[name]
        rows.append(
            {
                "run": name,
                "both_right": int((base & mine).sum()),
                "only_reference": int((base & ~mine).sum()),
                "only_run": int((mine & ~base).sum()),
                "both_wrong": int((known & ~base & ~mine).sum()),
            }
        )
        distance = np.abs(run.probabilities[at, truth] - reference.probabilities[at, truth])
        gap = np.maximum(gap, np.where(known & (base != mine), distance, 0))
    order = np.argsort(-gap, kind="stable")
    return rows, [int(i) for i in order[:_PICTURES] if gap[i] > 0]


def _p(value: float | None) -> str:
    return NOTHING if value is None or not np.isfinite(value) else f"{value:.3f}"


def _difference(row: Mapping[str, Any]) -> Difference:
    return Difference(estimate(row["difference"]), row["p_holm"])


def _tables(found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    tables = []
    rows: list[list[Cell]] = [
        [row["run"], NAMES.get(row["metric"], row["metric"]), estimate(row["reference"]),
         estimate(row["value"]), _difference(row), _p(row["p_permutation"])]
        for row in found["paired"]
    ]  # fmt: skip
    head = ["Reference", "Run's", "Difference", "Permutation p"]
    caption = (
        "Paired over patients, with 95 % intervals; p after Holm's correction over this table. "
        "Recall and ROC AUC are macro means. Intervals do not cover other training runs."
    )
    tables.append(Table("paired", "Paired differences", caption, ["Run", "Metric", *head], rows))
    rows = [
        [row["run"], row["condition"], estimate(row["reference"]), estimate(row["value"]),
         _difference(row), _p(row["p_permutation"])]
        for row in found["by_condition"]
    ]  # fmt: skip
    if rows:
        caption = (
            "One condition against the rest; DeLong's test over patients, p after Holm's "
            "correction over this table."
        )
        header = ["Run", "Condition", *head]
        tables.append(Table("roc_auc", "ROC AUC by condition", caption, header, rows))
    rows = [
        [row["run"], row["condition"], f"{row['threshold']:.3g}", row["positive"][0][1],
         row["positive"][1][0], row["negative"][0][1], row["negative"][1][0],
         estimate(row["nri_positive"]), estimate(row["nri_negative"])]
        for row in found["reclassification"]
    ]  # fmt: skip
    if rows:
        caption = (
            "At the reference's first operating point. Up: positive by the run alone. The net "
            "improvement can be positive for a badly calibrated model: read it beside net benefit."
        )
        header = ["Run", "Condition", "Threshold", "With it: up", "Down", "Without: up",
                  "Without: down", "Net improvement, with", "Net improvement, without"]  # fmt: skip
        tables.append(Table("reclassification", "Reclassification", caption, header, rows))
    rows = [list(row.values()) for row in found["agreement"]]
    if rows:
        header = ["Run", "Both right", "Reference alone", "Run alone", "Both wrong"]
        caption = "Images by who is right."
        tables.append(Table("agreement", "Where they disagree", caption, header, rows))
    rows = []
    for name, summary in others.items():
        kind = "external" if summary.get("external") else "internal"
        cells = []
        for metric in HEADLINES:
            low, high = summary.get("ci95", {}).get(metric, (None, None))
            cells.append(estimate({"value": summary[metric], "low": low, "high": high}))
        rows.append([name, kind, summary["n"], summary["n_patients"], *cells])
    caption = "Each run on its own test images; 95 % bootstrap intervals over patients."
    header = ["Run", "Test", "Images", "Patients", *(NAMES[metric] for metric in HEADLINES)]
    return [*tables, Table("side_by_side", "Side by side", caption, header, rows)]


def _pictures(tested: Tested, rows: Sequence[int], preprocessing: Preprocessing) -> list[Images]:
    shown = []
    for row in rows:
        lines = []
        for name, run in tested.runs.items():
            best = int(run.probabilities[row].argmax())
            lines.append(f"{name}: {run.classes[best]}, {run.probabilities[row, best]:.0%}")
        truth = run.classes[run.label[row]]
        try:
            image = load_image(tested.paths[row], preprocessing)
        except (OSError, UserError) as error:
            _log.warning("an image is not shown: %s", error)
            continue
        shown.append((image, [f"true: {truth}", *lines]))
    if not shown:
        return []
    caption = "One is right and another wrong: the images with the largest differences."
    return [Images("", caption, shown)]


def in_short(tested: Tested, found: Mapping[str, Any]) -> list[str]:
    """What was asked, and the result of each run."""
    any_run = tested.runs[tested.reference]
    count = plural(len(set(any_run.patient.tolist())), "test patient")
    others = list(tested.runs)[1:]
    sentences = [
        f"Is {listed(others)} better than {tested.reference} on the same {count} "
        f"({plural(len(any_run), 'image')})?"
    ]
    for row in found["paired"]:
        if row["metric"] not in ("roc_auc", "accuracy", "age_mae_months"):
            continue
        gap, unit = row["difference"], " months" if row["metric"] == "age_mae_months" else ""
        name = NAMES[row["metric"]].replace(", months", " (lower is better)")
        text = f"{row['run']}: {name} {number(gap['value'], row['metric'], sign=True)}{unit}"
        if gap["low"] is not None and np.isfinite(gap["low"]):
            low, high = (number(gap[k], row["metric"], sign=True) for k in ("low", "high"))
            sure = row["p_holm"] < 0.05
            text += f" (95 % interval {low} to {high}); "
            text += "a difference" if sure else "no difference can be claimed"
        sentences.append(text + ".")
    return sentences


def write(
    folder: str,
    tested: Tested,
    others: Mapping[str, Mapping[str, Any]],
    *,
    thresholds: Mapping[str, float],
    preprocessing: Preprocessing,
    permutations: int,
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes `metrics.json`, `tables/` and `report.html` of a comparison.

    Args:
      folder: where to.
      tested: the runs, the reference first.
      others: `metrics.json` of each run, and of runs on other patients.
      thresholds: of conditions, for the reclassification.
      preprocessing: how images are shown.
      permutations: of the tests.
      seed: of the permutations.
      settings: to list on the page.

    Returns:
      The contents of `metrics.json`.
    """
    agreement, images = disagreements(tested)
    found: dict[str, Any] = {
        "reference": tested.reference,
        "n": len(tested.paths),
        "n_patients": len(set(tested.runs[tested.reference].patient.tolist())),
        "paired": paired(tested, permutations=permutations, seed=seed),
        "by_condition": by_condition(tested, permutations=permutations, seed=seed),
        "reclassification": reclassified(tested, thresholds),
        "agreement": agreement,
    }
    write_json(os.path.join(folder, "metrics.json"), to_json(found))
    tables = _tables(found, others)
    for table in tables:
        table.write(os.path.join(folder, "tables"))
    shown = [table.filled() for table in tables]
    pictures = _pictures(tested, images, preprocessing)
    write_page(
        os.path.join(folder, "report.html"),
        "compare",
        title=f"{listed(list(tested.runs))} on the same {plural(len(tested.paths), 'test image')}",
        sentences=in_short(tested, found),
        parts=[*shown[:-1], *pictures, shown[-1]],
        settings=setting_lines(settings),
    )
    return found
