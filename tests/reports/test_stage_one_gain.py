"""What stage one gave: its probe, and a run from random weights with the same settings."""

import json

import pytest

from configs import finetune
from infantxray.reports import stage_one_gain

SUMMARY = {"n": 10, "n_patients": 8, "sources": ["phantom:infant"]}


def write_run(folder, metrics=None, **changes):
    folder.mkdir()
    settings = json.loads(finetune.get_config().to_json_best_effort()) | changes
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return settings


@pytest.fixture
def pretrained(tmp_path):
    write_run(tmp_path / "pretrain", task="pretrain", objective="l1")
    rows = [{"step": 0, "probe/roc_auc": 0.6}, {"step": 9}, {"step": 20, "probe/roc_auc": 0.7}]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "pretrain" / "history.jsonl").write_text(lines, encoding="utf-8")
    return str(tmp_path / "pretrain")


def test_without_a_run_from_random_weights_it_is_said_how_to_get_one(tmp_path, pretrained):
    settings = write_run(tmp_path / "fine", pretrained=pretrained)
    write_run(tmp_path / "unfinished")
    write_run(tmp_path / "longer", SUMMARY | {"accuracy": 0.9}, train_steps=7)
    write_run(tmp_path / "elsewhere", SUMMARY | {"n": 11, "accuracy": 0.9})
    found = stage_one_gain.read(str(tmp_path / "fine"), settings, SUMMARY)
    assert found == {
        "pretrained": pretrained, "objective": "l1", "probe": {"before": 0.6, "after": 0.7},
    }  # fmt: skip
    text = stage_one_gain.sentence(found)
    assert "from 0.600 (random weights) to 0.700, on validation patients" in text
    assert "--config.pretrained=" in text


def test_the_same_settings_from_random_weights_are_found_beside_the_run(tmp_path, pretrained):
    settings = write_run(tmp_path / "fine", pretrained=pretrained, bootstrap_samples=7)
    write_run(tmp_path / "random", SUMMARY | {"accuracy": 0.9, "age_mae_months": 3.14})
    found = stage_one_gain.read(str(tmp_path / "fine"), settings, SUMMARY)
    assert found["random_weights"]["accuracy"] == 0.9
    text = stage_one_gain.sentence(found)
    assert "accuracy 0.900 and mean absolute age error 3.1 months" in text
    assert "random); configs/compare.py" in text


def test_a_run_from_random_weights_has_no_stage_one(tmp_path):
    settings = write_run(tmp_path / "fine")
    assert stage_one_gain.read(str(tmp_path / "fine"), settings, SUMMARY) == {}
    assert stage_one_gain.sentence({}) == ""
