"""Which earlier runs `evaluate` looks at for the patients that it scores."""

import json

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.manifest import Records
from data_pipeline.splits import Split, write_split
from infantxray.commands.evaluate import _check_stage_one


def patients(*names):
    return Records.create([f"/{n}.png" for n in names], source="s", patient_id=list(names))


def make_run(folder, trained, **config):
    folder.mkdir()
    nobody = patients("x").take(np.zeros(0, int))
    write_split(
        folder / "split.csv",
        Split(train=patients(*trained), validation=patients(f"{trained}v"), test=nobody),
    )
    settings = {"task": "pretrain", "pretrained": ""} | config
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def model(tmp_path):
    """A stage two that follows two stages one, with a committee of two others, one of a chain."""
    first = make_run(tmp_path / "first", "a")
    second = make_run(tmp_path / "second", "b", pretrained=first)
    third = make_run(tmp_path / "third", "c")
    member = make_run(tmp_path / "member", "d", pretrained=third)
    teaching = {"committee": f"torch:file.pth+{member}"}
    return make_run(tmp_path / "model", "e", pretrained=second, self_training=teaching)


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        ("a", "stage one of this model was trained on"),
        ("b", "stage one of this model was trained on"),
        ("c", "committee that taught this model .*member.* was trained on"),
        ("d", "committee that taught this model .*member.* was trained on"),
    ],
)
def test_every_run_that_taught_a_model_is_looked_at(model, patient, message):
    with pytest.raises(DataError, match=message):
        _check_stage_one(model, patients(patient, "new"), "shared")


def test_others_may_be_scored(model):
    """Validation patients of stage one have chosen nothing that stage two takes."""
    assert _check_stage_one(model, patients("new", "av", "bv", "dv"), "shared")


def test_a_run_that_is_gone_is_said_and_the_others_are_checked(model, tmp_path, caplog):
    (tmp_path / "first" / "split.csv").unlink()
    assert not _check_stage_one(model, patients("new"), "shared")
    assert "first/split.csv is missing" in caplog.text
    with pytest.raises(DataError, match="member"):
        _check_stage_one(model, patients("c"), "shared")
