"""A committee of linear probes teaches as the mean of its members."""

import dataclasses

import numpy as np
import pytest
from small_encoder import small_encoder

from configs import finetune as finetune_config
from data_pipeline.decode import Preprocessing
from data_pipeline.loader import ImageSource
from data_pipeline.phantom import open_phantom
from infantxray.runs import settings
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import self_training, transfer
from infantxray.training.augment import Augmentation

HOW = Preprocessing(32)
CLASSES = ("mass", "normal")

# In one process, so that fixtures are made once.
pytestmark = pytest.mark.xdist_group("committee")


@pytest.fixture(scope="module")
def images():
    records = open_phantom("infant:films=220")
    rows = np.flatnonzero(np.isin(records.label, CLASSES) & (records.split == "train"))[:24]
    return ImageSource(records.take(rows), CLASSES, HOW, memory_mb=1)


def test_the_committee_is_the_mean_of_its_members(images, monkeypatch, caplog):
    """The members differ in the input scale of their weights, which each must be shown."""
    monkeypatch.setattr(self_training, "_AUGMENTED_COPIES", 1)
    scales = {"": ModelSpec("small", "float32", HOW).input_mean, "torch:other": 0.1}

    def with_scale(spec, place):
        return dataclasses.replace(spec, input_mean=scales[place])

    monkeypatch.setattr(transfer, "with_input_scale", with_scale)
    monkeypatch.setattr(transfer, "start_from", lambda place, encoder, variables: variables)
    caplog.set_level("INFO", logger="infantxray")

    def ask(*places):
        return self_training.ask_linear_probes(
            ModelSpec("small", "float32", HOW, CLASSES), places, images, images, images,
            augmentation=Augmentation(), batch_size=8, num_threads=1, seed=0,
        )  # fmt: skip

    with small_encoder():
        one, other, both = ask(""), ask("torch:other"), ask("", "torch:other")
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-5)
    assert both.dtype == np.float32
    assert "the mean of 2 linear probes" in caplog.text


def test_unreadable_images_do_not_move_the_answers(images, monkeypatch):
    """A probe with damaged files says of the other images what it says without them."""
    monkeypatch.setattr(self_training, "_AUGMENTED_COPIES", 0)
    records, bad = images.records, [3, 10]
    paths = records.image_path.copy()
    paths[bad] = "/nowhere/a.png"
    damaged = records.replace(image_path=paths)
    readable = np.delete(np.arange(len(records)), bad)

    def ask(records):
        source = ImageSource(records, CLASSES, HOW, on_error="skip", memory_mb=1)
        return self_training.ask_linear_probes(
            ModelSpec("small", "float32", HOW, CLASSES), [""], source, source, source,
            augmentation=Augmentation(), batch_size=8, num_threads=1, seed=0,
        )  # fmt: skip

    with small_encoder():
        found, expected = ask(damaged), ask(records.take(readable))
    assert found.shape == (len(records), len(CLASSES))
    np.testing.assert_allclose(found[readable], expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_members_are_named_by_place_and_must_exist(tmp_path):
    teaching = self_training.Teaching(linear_probe=True, committee="runs/a + runs/b")
    assert teaching.members == ["runs/a", "runs/b"]
    assert self_training.Teaching().members == []
    config = finetune_config.get_config("best")
    config.self_training.committee = f"{tmp_path}/none"
    with pytest.raises(settings.ConfigError, match="no stage-one checkpoint in"):
        settings.check(config)
    config.self_training.linear_probe = False
    with pytest.raises(settings.ConfigError, match=r"self_training\.linear_probe=True"):
        settings.check(config)
