"""Scores a stage-two model on held-out patients and writes the report."""

from __future__ import annotations

import json
import logging
import os

from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, FilmSource, class_indices
from data_pipeline.sources import open_sources
from data_pipeline.splits import check_unseen, read_split
from infantxray import data, diagnosis, runtime, workdir
from infantxray.evaluation import figures, gradcam, metrics, page
from infantxray.evaluation.calibration import calibration
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
        records = open_sources(config.data.test)
        # A set with a split of its own is scored on its test part.
        records = records.take(records.split == "test") if any(records.split == "test") else records
        check_unseen(split_csv, records, patient_ids, "this model was trained on")
        stage_one = _stage_one_split(config.checkpoint)
        if stage_one:
            check_unseen(stage_one, records, patient_ids, "stage one of this model was trained on")
    else:
        records = read_split(split_csv).test
    if not len(records):
        raise DataError("there are no test films")
    bad_files = BadFiles()
    source = data.film_source(
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
        )
    finally:
        diagnosis.write_bad_files(folder, bad_files)


def _stage_one_split(checkpoint: str) -> str:
    """`split.csv` of the stage one that a model started from; empty where there is none."""
    pretrained = workdir.read_config(checkpoint)["pretrained"]
    path = os.path.join(os.path.expanduser(pretrained), "split.csv")
    if not pretrained or pretrained.startswith("torch:"):
        return ""
    if not os.path.exists(path):
        _log.warning("%s is gone: whether stage one saw these patients cannot be checked", path)
        return ""
    return path


def evaluate(
    folder: str,
    *,
    checkpoint: str,
    source: FilmSource,
    predictor: diagnosis.Predictor,
    bootstrap_samples: int,
    seed: int,
) -> dict:
    """Writes `metrics.json`, `predictions.csv`, `figures/` and `report.html` into `folder`.

    Args:
      folder: where to.
      checkpoint: the workdir of stage two.
      source: films to score.
      predictor: runs its model.
      bootstrap_samples: for the intervals.
      seed: of the resampling.

    Returns:
      What `metrics.json` holds.
    """
    card = predictor.card
    variables, step = diagnosis.restore(checkpoint, card)
    predictions, records = predictor(variables, source)
    if not len(records):
        raise DataError("none of the test films could be read")
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
    panels = os.path.join(os.path.expanduser(config["pretrained"]), "figures", "panels.png")
    if config["pretrained"] and os.path.exists(panels):
        pictures["panels"] = panels
    path = os.path.join(folder, "report.html")
    page.write(path, config, summary, pictures)
    shown = [name for name in metrics.HEADLINES if summary[name] is not None]
    _log.info(
        "test: %s", ", ".join(f"{name} {summary[name]:.4g}" for name in shown) or "nothing to score"
    )
    _log.info("report: %s", path)
    return summary
