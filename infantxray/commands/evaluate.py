"""Scores a stage-two model on held-out patients and writes the report."""

from __future__ import annotations

import json
import logging
import os

import numpy as np

from data_pipeline import dataset as data
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, ImageSource, class_indices
from data_pipeline.manifest import Records
from data_pipeline.sources import open_sources
from data_pipeline.splits import check_unseen, read_split
from infantxray.evaluation import metrics
from infantxray.evaluation import saliency as gradcam
from infantxray.evaluation.calibration import calibration
from infantxray.reports import figures
from infantxray.reports import run_page as page
from infantxray.runs import runtime, workdir
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.stage_two import inference as diagnosis
from infantxray.training.writers import read_history

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Evaluates `config.checkpoint` on `config.data.test` into the workdir `folder`."""
    runtime.setup()
    card = diagnosis.read_card(config.checkpoint)
    patient_ids = workdir.read_config(config.checkpoint)["data"]["patient_ids"]
    split_csv = os.path.join(os.path.expanduser(config.checkpoint), "split.csv")
    workdir.prepare(folder, config)
    if config.data.test:
        records = _test_part(config.data)
        _warn_of_other_conditions(records, card.classes)
        check_unseen(split_csv, records, patient_ids, "this model was trained on")
        stage_one = _stage_one_split(config.checkpoint)
        if stage_one:
            check_unseen(stage_one, records, patient_ids, "stage one of this model was trained on")
    else:
        records = read_split(split_csv).test
        stage_one = ""  # Stage two has checked its own test patients.
    if not len(records):
        raise DataError("there are no test images")
    bad_files = BadFiles()
    source = data.image_source(
        config.data, records, card.classes, card.preprocessing, training=False, bad_files=bad_files
    )
    predictor = diagnosis.Predictor(
        card,
        batch_size=config.batch_size,
        num_threads=config.data.num_threads,
        patient_ids=patient_ids,
    )
    try:
        evaluate(
            folder,
            checkpoint=config.checkpoint,
            source=source,
            predictor=predictor,
            bootstrap_samples=config.bootstrap_samples,
            seed=config.seed,
            stage_one_known=stage_one is not None,
        )
    finally:
        diagnosis.write_bad_files(folder, bad_files)


def _test_part(settings) -> Records:
    """The images of `config.data`; of a source with a split of its own those for testing."""
    records = open_sources(settings.test)
    test = records.split == "test"
    if settings.given_splits == "ignore" or not test.any() or test.all():
        return records
    _log.info(
        "scored: %d of %d images, the test part of the split that they bring "
        "(config.data.given_splits=ignore scores all)",
        test.sum(),
        len(records),
    )
    return records.take(test)


def _warn_of_other_conditions(records: Records, classes: tuple[str, ...]) -> None:
    if not classes:
        return
    names, counts = np.unique(records.label[records.has_label].astype(str), return_counts=True)
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        if name not in classes:
            _log.warning(
                "%d images of %r are left out of the diagnosis: the model knows %s",
                count,
                name,
                ", ".join(classes),
            )


def _stage_one_split(checkpoint: str) -> str | None:
    """`split.csv` of the stage one that a model started from.

    Empty where there was no stage one here, None where its folder is gone.
    """
    pretrained = workdir.read_config(checkpoint)["pretrained"]
    path = os.path.join(os.path.expanduser(pretrained), "split.csv")
    if not pretrained or pretrained.startswith("torch:"):
        return ""
    if not os.path.exists(path):
        _log.warning("%s is gone: whether stage one saw these patients cannot be checked", path)
        return None
    return path


def evaluate(
    folder: str,
    *,
    checkpoint: str,
    source: ImageSource,
    predictor: diagnosis.Predictor,
    bootstrap_samples: int,
    seed: int,
    stage_one_known: bool = True,
) -> dict:
    """Writes `metrics.json`, `predictions.csv`, `figures/` and `report.html` into `folder`.

    Args:
      folder: where to.
      checkpoint: the workdir of stage two.
      source: images to score.
      predictor: runs its model.
      bootstrap_samples: for the intervals.
      seed: of the resampling.
      stage_one_known: whether it could be checked whom stage one was trained on.

    Returns:
      What `metrics.json` holds.
    """
    card = predictor.card
    variables, step = diagnosis.restore(checkpoint, card)
    predictions, records = predictor(variables, source)
    if not len(records):
        raise DataError("none of the test images could be read")
    summary = metrics.summarise(predictions, bootstrap_samples=bootstrap_samples, seed=seed)
    if card.classes:
        summary["calibration"] = calibration(predictions.probabilities, predictions.label)
    trained_on = read_split(os.path.join(os.path.expanduser(checkpoint), "split.csv")).train
    train_label = class_indices(trained_on.label, card.classes)
    summary |= {
        "baseline": metrics.baseline(predictions, train_label, card.age_mean_months),
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
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2, ensure_ascii=False)
        file.write("\n")
    diagnosis.write_predictions(os.path.join(folder, "predictions.csv"), predictions, records)
    pictures = figures.draw_all(
        os.path.join(folder, "figures"),
        predictions,
        summary,
        read_history(os.path.join(os.path.expanduser(checkpoint), "history.jsonl")),
        gradcam.examples(predictor.model, variables, source, predictions, records),
    )
    config = workdir.read_config(checkpoint)
    stage_one = os.path.expanduser(config["pretrained"])
    panels = os.path.join(stage_one, "figures", "panels.png")
    panel_names = ()
    if config["pretrained"] and os.path.exists(panels):
        pictures["panels"] = panels
        panel_names = OBJECTIVES[workdir.read_config(stage_one)["objective"]].panel_names
    path = os.path.join(folder, "report.html")
    page.write(path, config, summary, pictures, panel_names)
    shown = [name for name in metrics.HEADLINES if summary[name] is not None]
    _log.info(
        "test: %s", ", ".join(f"{name} {summary[name]:.4g}" for name in shown) or "nothing to score"
    )
    _log.info("report: %s", path)
    return summary
