import json

import pytest

from configs import finetune
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from infantxray import workdir
from infantxray.workdir import ModelCard


def test_the_same_command_may_come_again(tmp_path):
    folder = str(tmp_path / "new" / "run")
    workdir.prepare(folder, finetune.get_config())
    workdir.prepare(folder, finetune.get_config())
    saved = workdir.read_config(folder)
    assert saved["task"] == "finetune"
    assert saved["data"]["image_size"] == 64
    assert saved["optimizer"]["learning_rate"] == 1e-3


def test_tuples_and_types_survive_the_comparison(tmp_path):
    config = finetune.get_config()
    config.data.classes = ("mass", "normal")
    workdir.prepare(str(tmp_path), config)
    workdir.prepare(str(tmp_path), config)
    assert workdir.read_config(str(tmp_path))["data"]["classes"] == ["mass", "normal"]


def test_another_setting_is_refused_and_named(tmp_path):
    workdir.prepare(str(tmp_path), finetune.get_config())
    before = (tmp_path / "config.json").read_text()
    changed = finetune.get_config()
    changed.optimizer.learning_rate = 0.5
    changed.batch_size = 8
    with pytest.raises(UserError) as caught:
        workdir.prepare(str(tmp_path), changed)
    message = str(caught.value)
    assert "batch_size (16 -> 8)" in message
    assert "optimizer.learning_rate (0.001 -> 0.5)" in message
    assert "another --workdir" in message
    assert (tmp_path / "config.json").read_text() == before
    changed.seed, changed.data.resize = 5, "crop"
    with pytest.raises(UserError, match="and 1 more"):
        workdir.prepare(str(tmp_path), changed)


def test_settings_that_do_not_change_the_result_may_change(tmp_path):
    workdir.prepare(str(tmp_path), finetune.get_config())
    changed = finetune.get_config()
    changed.log_every_steps = 1
    changed.data.num_threads = 1
    changed.data.cache = "/cache"
    changed.data.memory_mb = 0
    workdir.prepare(str(tmp_path), changed)
    assert workdir.read_config(str(tmp_path))["data"]["cache"] == "/cache"


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match=r"not the workdir of a run: it has no config\.json"):
        workdir.read_config(str(tmp_path))
    with pytest.raises(UserError, match=r"it has no preprocessing\.json"):
        ModelCard.read(str(tmp_path))
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        workdir.read_config(str(tmp_path))


@pytest.mark.parametrize(
    "card",
    [
        ModelCard("vgg19", "float32", Preprocessing(image_size=64)),
        ModelCard(
            "resnet50",
            "bfloat16",
            Preprocessing(image_size=96, resize="crop", trim_borders=True),
            ("normal", "Söhne, & <b>"),
            17.123456789012345,
            8.1,
        ),
    ],
)
def test_card_round_trip(tmp_path, card):
    card.write(str(tmp_path))
    assert ModelCard.read(str(tmp_path)) == card
    assert json.loads((tmp_path / "preprocessing.json").read_text())["encoder"] == card.encoder


def test_home_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    card = ModelCard("vgg19", "float32", Preprocessing(image_size=64))
    card.write(str(tmp_path))
    assert ModelCard.read("~") == card


def test_nothing_half_written_is_left(tmp_path):
    workdir.prepare(str(tmp_path), finetune.get_config())
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
