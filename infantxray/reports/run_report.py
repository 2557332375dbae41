"""Evaluation of a stage-two model: metrics, predictions, figures and the report of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.boxes import image_boxes
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.files import write_json
from data_pipeline.labels import FindingNames
from data_pipeline.loader import ImageSource, class_indices
from data_pipeline.manifest import Records
from data_pipeline.splits import read_split
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.predictions import write_predictions
from infantxray.evaluation.saliency import (
    Box,
    Explainer,
    Images,
    examples,
    localisation,
    mistakes,
)
from infantxray.evaluation.summary import baseline, calibration_of, summarise, to_json
from infantxray.reports import run_page
from infantxray.reports.page import NAMES, number
from infantxray.runs import workdir
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.stage_two.inference import Predictor, restore
from infantxray.training.writers import read_history

_log = logging.getLogger(__name__)


def evaluate(
    folder: str,
    *,
    checkpoint: str,
    source: ImageSource,
    predictor: Predictor,
    bootstrap_samples: int,
    seed: int,
    stage_one_known: bool = True,
    names: FindingNames | None = None,
    label_notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes `metrics.json`, `predictions.csv`, `figures/` and `report.html`.

    Args:
      folder: where to.
      checkpoint: the workdir of stage two.
      source: images to score.
      predictor: runs its model.
      bootstrap_samples: for the intervals.
      seed: of the resampling.
      stage_one_known: whether it could be checked which patients stage one was trained on.
      names: by which labels become findings, where an image may have several.
      label_notes: what was done to labels, for the report.

    Returns:
      The contents of `metrics.json`.
    """
    spec = predictor.spec
    checkpoint = os.path.expanduser(checkpoint)
    variables, step = restore(checkpoint, spec)
    predictions, records = predictor(variables, source)
    if not len(records):
        raise DataError("none of the test images could be read")
    summary = summarise(predictions, bootstrap_samples=bootstrap_samples, seed=seed)
    if spec.classes:
        summary["calibration"] = calibration_of(predictions)
    train = read_split(os.path.join(checkpoint, "split.csv")).train
    train_label = class_indices(train.label, spec.classes)
    sources = list(dict.fromkeys(records.source.tolist()))
    summary |= {
        "baseline": baseline(
            predictions,
            train_label,
            spec.age_mean_months,
            names.matrix(train) if names is not None else None,
        ),
        "label_notes": list(label_notes),
        "sources": sources,
        "external": not set(sources) & set(train.source.tolist()),
        "checkpoint_step": step,
        "n_unreadable": len(source) - len(records),
        "n_without_patient_id": int((records.patient_id == "").sum()),
        "stage_one_known": stage_one_known,
    }
    explain = Explainer(predictor.model, variables, mean=spec.input_mean, std=spec.input_std)
    images = _images(source, records, spec.preprocessing)
    found = localisation(explain, images, predictions, samples=bootstrap_samples, seed=seed)
    if found:
        summary["saliency"] = found
    summary = to_json(summary)
    write_json(os.path.join(folder, "metrics.json"), summary)
    write_predictions(os.path.join(folder, "predictions.csv"), predictions, records)
    figures = run_page.draw(
        os.path.join(folder, "figures"),
        predictions,
        summary,
        read_history(os.path.join(checkpoint, "history.jsonl")),
        examples(explain, images, predictions),
        mistakes(explain, images, predictions),
    )
    settings = workdir.read_config(checkpoint)
    stage_one = os.path.expanduser(settings["pretrained"])
    panels = os.path.join(stage_one, "figures", "panels.png")
    if settings["pretrained"] and os.path.exists(panels):
        objective = workdir.read_config(stage_one).get("objective")
        if objective in OBJECTIVES:  # A stage two may be another one's start: it has no panels.
            figures.append(run_page.panels(panels, OBJECTIVES[objective].panel_names))
    path = os.path.join(folder, "report.html")
    run_page.write(path, settings=settings, summary=summary, figures=figures)
    shown = [
        f"{NAMES[name]} {number(summary[name], name)}"
        for name in HEADLINES
        if summary[name] is not None
    ]
    _log.info("test: %s", "; ".join(shown) or "nothing to score")
    _log.info("report: %s", path)
    return summary


def _images(source: ImageSource, records: Records, preprocessing: Preprocessing) -> Images:
    """Access to the images of `records`, some of the source's, and to their boxes."""
    row_of = {path: row for row, path in enumerate(source.records.image_path)}

    def load(row: int) -> np.ndarray:
        return np.asarray(source[row_of[records.image_path[row]]]["image"])

    def boxes(row: int) -> list[Box]:
        return [box[:4] for box in image_boxes(records, row, preprocessing)]

    return Images(load, boxes)
