"""The page of a comparison of runs: paired differences, tests and images of disagreement."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.predictions import Predictions, joined_findings
from infantxray.evaluation.summary import to_json
from infantxray.reports import comparison
from infantxray.reports.comparison import Tested
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
from infantxray.reports.run_sections import each, estimate
from infantxray.reports.tables import Cell, Difference, Table, p_text

_log = logging.getLogger(__name__)


def _p(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return NOTHING
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _difference(row: Mapping[str, Any]) -> Difference:
    return Difference(estimate(row["difference"]), row["p_holm"])


def _tables(
    found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], noun: str
) -> list[Table]:
    tables = []
    several = noun == "finding"
    rows: list[list[Cell]] = [
        [row["run"], NAMES.get(row["metric"], row["metric"]), estimate(row["reference"]),
         estimate(row["value"]), _difference(row), _p(row["p_permutation"])]
        for row in found["paired"]
    ]  # fmt: skip
    head = ["Reference", "Run's value", "Difference", "Permutation p"]
    caption = (
        "Paired over patients, with 95 % intervals; p after Holm's correction over this table "
        "(bold: p < .05). "
        + "Recall and ROC AUC are macro means. "
        * any(row["metric"] != "age_mae_months" for row in found["paired"])
        + "Intervals do not cover other training runs."
    )
    tables.append(Table("paired", "Paired differences", caption, ["Run", "Metric", *head], rows))
    rows = [
        [row["run"], row["condition"], estimate(row["reference"]), estimate(row["value"]),
         _difference(row), _p(row["p_permutation"])]
        for row in found["by_condition"]
    ]  # fmt: skip
    if rows:
        caption = (
            f"{each(noun)}; DeLong's test over patients, p after Holm's correction over this table "
            "(bold: p < .05)."
        )
        header = ["Run", noun.capitalize(), *head]
        tables.append(Table("roc_auc", f"ROC AUC by {noun}", caption, header, rows))
    rows = [
        [row["run"], row["condition"], f"{row['threshold']:#.3g}", row["positive"][0][1],
         row["positive"][1][0], row["negative"][0][1], row["negative"][1][0],
         estimate(row["nri_positive"]), estimate(row["nri_negative"])]
        for row in found["reclassification"]
    ]  # fmt: skip
    if rows:
        caption = (
            "At the reference's first operating point. Up: positive by the run alone. The net "
            "improvement can be positive for a badly calibrated model: read it beside net benefit."
        )
        header = ["Run", noun.capitalize(), "Threshold", "With it: up", "Down", "Without: up",
                  "Without: down", "Net improvement, with", "Net improvement, without"]  # fmt: skip
        tables.append(Table("reclassification", "Reclassification", caption, header, rows))
    rows = [list(row.values()) for row in found["agreement"]]
    if rows:
        header = ["Run", "Both right", "Reference alone", "Run alone", "Both wrong"]
        caption = "Answers about single findings" if several else "Answers, one an image,"
        caption += " by who is right."
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
            answer, best = run.take(np.array([row])).names()[0], run.probabilities[row].max()
            lines.append(f"{name}: {answer}" + f", {best:.0%}" * (not run.multi_label))
        truth = _truth(run, row)
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


def _truth(run: Predictions, row: int) -> str:
    if run.findings is not None:
        unknown = [
            name
            for name, value in zip(run.classes, run.findings[row], strict=True)
            if not np.isfinite(value)
        ]
        named = joined_findings(run.classes, np.nan_to_num(run.findings[row]))
        return named + f" (unknown: {', '.join(unknown)})" * bool(unknown)
    return run.classes[run.label[row]]


def summary_sentences(tested: Tested, found: Mapping[str, Any]) -> list[str]:
    """The question, and the result of each run."""
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
            text += f" (95 % interval {low} to {high}), "
            text += "significant" if sure else "not significant"
            text += f" after correction ({p_text(row['p_holm'])})"
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
      folder: output folder.
      tested: the runs, the reference first.
      others: `metrics.json` of each run, and of runs on other patients.
      thresholds: thresholds of conditions, for the reclassification.
      preprocessing: how images are shown.
      permutations: of the tests.
      seed: seed of the permutations.
      settings: settings to list on the page.

    Returns:
      The contents of `metrics.json`.
    """
    agreement, images = comparison.disagreements(tested)
    found: dict[str, Any] = {
        "reference": tested.reference,
        "n": len(tested.paths),
        "n_patients": len(set(tested.runs[tested.reference].patient.tolist())),
        "paired": comparison.paired(tested, permutations=permutations, seed=seed),
        "by_condition": comparison.by_condition(tested, permutations=permutations, seed=seed),
        "reclassification": comparison.reclassified(tested, thresholds),
        "agreement": agreement,
    }
    write_json(os.path.join(folder, "metrics.json"), to_json(found))
    several = tested.runs[tested.reference].multi_label
    tables = _tables(found, others, "finding" if several else "condition")
    for table in tables:
        table.write(os.path.join(folder, "tables"))
    shown = [table.filled() for table in tables]
    pictures = _pictures(tested, images, preprocessing)
    write_page(
        os.path.join(folder, "report.html"),
        "compare",
        title=f"{listed(list(tested.runs))} on the same {plural(len(tested.paths), 'test image')}",
        sentences=summary_sentences(tested, found),
        parts=[*shown[:-1], *pictures, shown[-1]],
        settings=setting_lines(settings),
    )
    return found
