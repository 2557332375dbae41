"""Evaluation of a stage-two model: metrics, predictions, figures and the report of a run."""

from __future__ import annotations

import logging
import os
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.files import write_json
from data_pipeline.loader import ImageSource, class_indices
from data_pipeline.splits import read_split
from infantxray.evaluation import metrics
from infantxray.evaluation import saliency as gradcam
from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.predictions import write_predictions
from infantxray.reports import figures, run_page
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

    Returns:
      The contents of `metrics.json`.
    """
    spec = predictor.spec
    checkpoint = os.path.expanduser(checkpoint)
    variables, step = restore(checkpoint, spec)
    predictions, records = predictor(variables, source)
    if not len(records):
        raise DataError("none of the test images could be read")
    summary = metrics.summarise(predictions, bootstrap_samples=bootstrap_samples, seed=seed)
    if spec.classes:
        summary["calibration"] = calibration(predictions.probabilities, predictions.label)
    train = read_split(os.path.join(checkpoint, "split.csv")).train
    train_label = class_indices(train.label, spec.classes)
    summary |= {
        "baseline": metrics.baseline(predictions, train_label, spec.age_mean_months),
        "sources": list(dict.fromkeys(records.source.tolist())),
        "checkpoint_step": step,
        "n_unreadable": len(source) - len(records),
        "n_without_patient_id": int((records.patient_id == "").sum()),
        "stage_one_known": stage_one_known,
    }
    found = gradcam.localisation(predictor.model, variables, source, predictions, records)
    if found:
        summary["saliency"] = found
    summary = metrics.to_json(summary)
    write_json(os.path.join(folder, "metrics.json"), summary)
    write_predictions(os.path.join(folder, "predictions.csv"), predictions, records)
    pictures = figures.draw_all(
        os.path.join(folder, "figures"),
        predictions,
        summary,
        read_history(os.path.join(checkpoint, "history.jsonl")),
        gradcam.examples(predictor.model, variables, source, predictions, records),
    )
    config = workdir.read_config(checkpoint)
    stage_one = os.path.expanduser(config["pretrained"])
    panels = os.path.join(stage_one, "figures", "panels.png")
    panel_names: tuple[str, ...] = ()
    if config["pretrained"] and os.path.exists(panels):
        objective = workdir.read_config(stage_one).get("objective")
        if objective in OBJECTIVES:  # A stage two may be another one's start: it has no panels.
            pictures["panels"] = panels
            panel_names = OBJECTIVES[objective].panel_names
    path = os.path.join(folder, "report.html")
    run_page.write(path, config, summary, pictures, panel_names)
    shown = [name for name in metrics.HEADLINES if summary[name] is not None]
    _log.info(
        "test: %s", ", ".join(f"{name} {summary[name]:.4g}" for name in shown) or "nothing to score"
    )
    _log.info("report: %s", path)
    return summary
