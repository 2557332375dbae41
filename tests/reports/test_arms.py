"""The table of arms: labels used in stage one, and where stage two stops improving."""

import dataclasses
import json

import numpy as np
import pytest

from infantxray.evaluation.predictions import Predictions
from infantxray.reports.arms import arms
from infantxray.studies.plan import Run
from infantxray.studies.results import Model, Results

SETTINGS = {"batch_size": 32, "optimizer": {"learning_rate": 2e-3}}


def make_run(index, task, settings, folder, needs=()):
    return Run(index, task, "shufflenet", "x", 0.1, 0, str(folder), settings, [], needs)


@pytest.fixture
def rows(tmp_path):
    curves = {"none": [0.5, 0.795, 0.8, 0.7], "source": [0.9, 0.8, 0.7, 0.6], "random": []}
    objectives = {"none": "masked_hog", "source": "supervised+l1", "random": ""}
    runs, models = [], []
    for name, curve in curves.items():
        needs = ()
        if objectives[name]:
            needs = (len(runs),)
            stage_one = {"objective": objectives[name]}
            runs.append(make_run(needs[0], "pretrain", stage_one, tmp_path))
        folder = tmp_path / name
        folder.mkdir()
        lines = [{"step": 10 * (i + 1), "validation/roc_auc": v} for i, v in enumerate(curve)]
        (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
        runs.append(make_run(len(runs), "finetune", SETTINGS, folder, needs))
        none = Predictions((), np.zeros((0, 0)), np.zeros(0, int), *[np.zeros(0)] * 2, np.zeros(0))
        models.append(Model("shufflenet", name, 0.1, (runs[-1],), (none,)))
    fields = {field.name: None for field in dataclasses.fields(Results)}
    table = arms(Results(**fields | {"models": tuple(models)}), runs, "roc_auc")
    return {row[1]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_the_two_kinds_of_stage_one_are_kept_apart(rows):
    used = {name: row["Labels used in stage one"] for name, row in rows.items()}
    assert used == {"none": "none", "source": "source", "random": "none"}
    assert rows["source"]["Objective of stage one"] == "supervised+l1"
    assert rows["random"]["Objective of stage one"] == "–"


def test_where_arms_stop_improving(rows):
    row = rows["none"]
    assert (row["Close to best, step"], row["Best, step"], row["Last step"]) == ("20", "30", "40")
    assert rows["source"]["Best, step"] == "10"
    assert rows["random"]["Best, step"] == "–"
    assert row["Batch and learning rate"] == "32 at 0.002"
