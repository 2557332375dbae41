"""Runs that were never trained: the files of a run, with predictions drawn at random.

python tests/studies/fake_study.py FOLDER    # a report of eight encoders, to look at
"""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from configs import study as study_config  # noqa: E402
from data_pipeline.conditions import find_classes, finding_names  # noqa: E402
from data_pipeline.dataset import divide_sources  # noqa: E402
from data_pipeline.division import keep_labels  # noqa: E402
from data_pipeline.splits import write_split  # noqa: E402
from infantxray.commands import study  # noqa: E402
from infantxray.evaluation.predictions import Predictions, write_predictions  # noqa: E402
from infantxray.evaluation.summary import summarise, to_json  # noqa: E402
from infantxray.features.classifiers import METHODS  # noqa: E402
from infantxray.runs import settings, workdir  # noqa: E402
from infantxray.studies import plan  # noqa: E402

SKILL = {"without_pretraining": 0.9, "without_apn": 1.1, "full": 1.3}


def small_config():
    """Two encoders, three variants and two seeds on 200 images of 32 pixels."""
    config = study_config.get_config()
    config.study.encoders = ("shufflenet", "mobilenet_v2")
    config.study.seeds = (0, 1)
    config.study.pretrain_data = "phantom:adult:films=60,phantom:infant:films=120"
    config.data.train = "phantom:infant:films=120"
    config.data.image_size = 32
    config.bootstrap_samples = 200
    return config


def answer(records, classes, skill, rng, aged=True, names=None):
    """Predictions that are the better the larger `skill` is.

    With `names`, an image may have several findings.
    """
    if names is not None:
        found = answer(records, (), skill, rng, aged)
        findings = names.matrix(records)
        logits = rng.normal(size=findings.shape) + skill * np.nan_to_num(2 * findings - 1)
        probabilities = 1 / (1 + np.exp(-logits))
        return dataclasses.replace(
            found, classes=classes, probabilities=probabilities, findings=findings
        )
    label = np.array([classes.index(n) if n in classes else -1 for n in records.label])
    logits = rng.normal(size=(len(records), len(classes)))
    if classes:
        logits += skill * np.eye(len(classes))[np.maximum(label, 0)]
    ages = records.age_months + rng.normal(size=len(records)) * 8 / (1 + skill)
    return Predictions(
        classes=classes,
        probabilities=np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        label=label,
        age_months=records.age_months,
        age_predicted_months=ages if aged else np.full(len(records), np.nan),
        patient=records.patient,
    )


def divide(config):
    """The split of a study's stage two."""
    return divide_sources(settings.data_settings(config))


def write_report(config, folder, planned, failed):
    """The report of a study, as the command writes it."""
    from infantxray.reports import study_report

    return study_report.write(
        str(folder),
        planned,
        failed,
        data=settings.data_settings(config),
        best_metric=config.finetune.best_metric,
        bootstrap_samples=config.bootstrap_samples,
        seed=config.seed,
        settings=settings.to_dict(config),
    )


def finish(run, split, classes, names=None):
    """Writes into the folder of a run what it would have written."""
    folder = Path(run.folder)
    rng = np.random.default_rng(run.index)
    workdir.prepare(str(folder), run.settings)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "finished").touch()
    run.write_record({"seconds": 60.0 + run.index, "finished": True})
    panels = rng.integers(256, size=(96, 256), dtype=np.uint8)
    with open(folder / "history.jsonl", "w") as file:
        for step in range(0, 101, 20):
            row = {"step": step, "train/loss": 3 * np.exp(-step / 50) + 0.1 * rng.random()}
            row["validation/l1"] = 0.2 * np.exp(-step / 50) + 0.01 * rng.random()
            row["validation/roc_auc"] = 0.5 + 0.2 * step / 100 + 0.05 * rng.random()
            file.write(json.dumps(row) + "\n")
    if run.task == "pretrain":
        Image.fromarray(panels).save(folder / "figures" / "panels.png")
        return
    train = keep_labels(split.train, run.label_fraction, 0)
    write_split(folder / "split.csv", type(split)(train, split.validation, split.test))
    if run.task == "probe":
        for method in METHODS:
            answers = answer(split.test, classes, 0.5, rng, names=names)
            write_predictions(folder / f"predictions_{method}.csv", answers, split.test)
        (folder / "metrics.json").write_text("{}")
        return
    skill = SKILL[run.name] * (0.5 + 0.5 * run.label_fraction) + 0.1 * rng.normal()
    answers = answer(split.test, classes, skill, rng, aged=run.settings["age_head"], names=names)
    write_predictions(folder / "predictions.csv", answers, split.test)
    summary = summarise(answers, bootstrap_samples=0)
    summary["checkpoint_step"] = 100
    summary["label_notes"] = ["labels mapped: Mass → mass (3)"]
    summary["saliency"] = {"n": 80, "pointing_game": 0.3, "mass_in_box": 0.2, "box_share": 0.1}
    (folder / "metrics.json").write_text(json.dumps(to_json(summary)))
    (folder / "report.html").touch()
    Image.fromarray(panels).save(folder / "figures" / "saliency.png")


def finish_all(config, folder):
    """Finishes every run of a study; returns the plan."""
    planned = study.make_plan(config, str(folder))
    split = divide(config)
    data = settings.data_settings(config)
    classes = find_classes(data, split.train)
    names = finding_names(data, split, classes)
    for run in planned.runs:
        finish(run, split, classes, names)
    return planned


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(folder):
    plan.checkpoints.is_finished = lambda folder: Path(folder, "finished").exists()
    config = small_config()
    config.study.encoders = study_config.ENCODERS
    config.study.seeds = (0, 1, 2)
    config.study.label_fractions = (0.02, 0.1, 1.0)
    config.data.train = "phantom:infant:films=600:site=both"
    config.bootstrap_samples = 2000
    print(write_report(config, folder, finish_all(config, folder), {5: "a reason"}))


if __name__ == "__main__":
    main(sys.argv[1])
