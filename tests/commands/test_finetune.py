"""What stage two decides before its first step. Training itself: test_end_to_end.py."""

import numpy as np
import pytest

from configs import finetune as finetune_config
from data_pipeline.dataset import DataSettings, open_split
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource, mixed_batches
from data_pipeline.manifest import Records
from data_pipeline.splits import read_split
from infantxray.commands import finetune
from infantxray.runs import settings
from infantxray.stage_two import self_training
from infantxray.stage_two.supervised import validation_metrics

CLASSES = ("mass", "normal")
HOW = Preprocessing(image_size=32)


def make_source(num_labelled, num_aged=0, num_images=200):
    label = [CLASSES[i % 2] if i < num_labelled else "" for i in range(num_images)]
    ages = [float(i) if i < num_aged else np.nan for i in range(num_images)]
    paths = [f"{i}.png" for i in range(num_images)]
    return ImageSource(
        Records.create(paths, source="s", label=label, age_months=ages), CLASSES, HOW
    )


def test_a_checkpoint_is_chosen_on_a_hundred_images_or_not_at_all(caplog):
    """Twelve images reach an AUC of 1 by chance, long before training is at its end."""
    config = finetune_config.get_config()
    assert finetune._best_metric(config, make_source(100)) == "roc_auc"
    assert caplog.text == ""
    assert finetune._best_metric(config, make_source(99, num_aged=200)) is None
    assert "99 validation images with a known condition are too few" in caplog.text
    config.best_metric = "age_mae_months"
    assert finetune._best_metric(config, make_source(0, num_aged=100)) == "age_mae_months"
    assert finetune._best_metric(config, make_source(200, num_aged=99)) is None
    assert "99 validation images with a known age" in caplog.text


def test_self_training_is_skipped_where_every_image_has_a_label(caplog):
    caplog.set_level("INFO", logger="infantxray")
    teaching = self_training.Teaching(linear_probe=True)
    assert self_training.is_needed(teaching, CLASSES, make_source(199))
    assert not self_training.is_needed(teaching, CLASSES, make_source(200))
    assert "self-training is skipped" in caplog.text
    assert not self_training.is_needed(self_training.Teaching(), CLASSES, make_source(3))
    with pytest.raises(UserError, match="no training image has a label"):
        self_training.is_needed(self_training.Teaching(teacher_steps=10), (), make_source(0))


def test_rare_labels_are_drawn_for_every_batch(caplog):
    """Of 200 images with an age 10 have a condition: as they come, most batches would have none."""
    caplog.set_level("INFO", logger="infantxray")
    config = finetune_config.get_config()
    assert not finetune._labels_are_rare(config, make_source(50, num_aged=200))
    assert not finetune._labels_are_rare(config, make_source(0, num_aged=200))
    assert caplog.text == ""
    rare = make_source(10, num_aged=200)
    assert finetune._labels_are_rare(config, rare)
    assert "10 of 200 images" in caplog.text
    assert "make up 8 of every 32" in caplog.text
    rows = []
    read = rare.read_batch
    rare.read_batch = lambda drawn: rows.append(drawn) or {"label": rare.labels[drawn]}
    batches = mixed_batches(
        rare,
        config.batch_size,
        num_labelled=self_training.num_labelled(config.batch_size, config.labelled_fraction),
        seed=config.seed,
        num_threads=1,
    )
    batch = next(batches)
    rare.read_batch = read
    assert (batch["label"][:8] >= 0).all()
    assert len(batch["label"]) == 32
    assert len(set(rows[0][8:])) == 24


def open_data(config, folder):
    """The divided records, and the model that they call for."""
    data = settings.build(DataSettings, config.data)
    split = open_split(data, str(folder))
    return split, finetune._specify(config, data, split)


def write_manifest(folder, test_labels):
    rows = ["image_path,patient_id,label,split"]
    for role, labels in (
        ("train", ["mass", "normal"] * 9),
        ("validation", ["mass", "normal"] * 2),
        ("test", test_labels),
    ):
        rows += [f"{role}{i}.png,{role}{i},{name},{role}" for i, name in enumerate(labels)]
    (folder / "films.csv").write_text("\n".join(rows) + "\n")
    (folder / "run").mkdir()
    config = finetune_config.get_config()
    config.data.train = f"manifest:{folder / 'films.csv'}"
    return config


def test_conditions_that_are_tested_alone_are_refused(tmp_path, caplog):
    """Left out in silence, the score would be of an easier task than the one that was set."""
    config = write_manifest(tmp_path, ["mass", "normal", "Normal", "rare", "rare"])
    with pytest.raises(UserError, match=r"test have a condition.*'Normal', 'rare' \(training"):
        open_data(config, tmp_path / "run")
    config.data.classes = ("mass", "normal")  # On purpose.
    _, spec = open_data(config, tmp_path / "run")
    assert spec.classes == ("mass", "normal")
    assert "no image for" not in caplog.text


def test_conditions_that_nobody_is_tested_for_are_named(tmp_path, caplog):
    config = write_manifest(tmp_path, ["mass", "mass"])
    open_data(config, tmp_path / "run")
    assert "no image for test has: normal" in caplog.text


def test_who_has_no_validation_images_still_trains(tmp_path):
    config = write_manifest(tmp_path, ["mass", "normal"])
    text = (tmp_path / "films.csv").read_text().replace(",validation", ",train")
    (tmp_path / "films.csv").write_text(text)
    config.data.validation_fraction = 0.0
    split, _ = open_data(config, tmp_path / "run")
    assert (len(split.train), len(split.validation), len(split.test)) == (22, 0, 2)
    assert validation_metrics(None, make_source(0, num_images=0), {}) == {}


def test_images_of_which_nothing_is_known(tmp_path):
    (tmp_path / "films.csv").write_text("image_path\na.png\nb.png\n")
    config = finetune_config.get_config()
    config.data.train = f"manifest:{tmp_path / 'films.csv'}"
    with pytest.raises(UserError, match="a manifest gives them in its columns label and age_mon"):
        open_data(config, tmp_path)


def test_a_length_by_the_data_is_said_in_the_report():
    config = finetune_config.get_config("best")
    notes = []
    source, few = make_source(200), make_source(40, num_aged=40)
    found = finetune._length(config, 200, source, source, "roc_auc", notes)
    assert (found.total_steps, found.batch_size, found.early_stopping_evals) == (342, 64, 4)
    assert found.eval_every_steps == found.checkpoint_every_steps == 29
    assert "200 labelled images" in notes[0]
    assert "342 steps of 64 images" in notes[0]
    assert "learning rate 0.001" in notes[0]
    # Unlabelled images do not count, images that teachers draw do.
    found = finetune._length(config, 200, few, few, None, notes, drawn_by_teachers=6400)
    assert (found.total_steps, found.early_stopping_evals) == (100, 0)
    config.train_steps = 7
    found = finetune._length(config, 200, source, source, "roc_auc", notes)
    assert (found.total_steps, found.least_steps, len(notes)) == (7, 0, 2)


def test_batchnorm_statistics_are_those_of_all_training_images(tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begin(*arguments):
        raise Begun(arguments[-1])

    monkeypatch.setattr(finetune, "make_task", begin)
    config = finetune_config.get_config()
    config.data.train = "phantom:infant:films=60"
    config.data.label_fraction, config.data.image_size = 0.3, 32
    with pytest.raises(Begun) as begun:
        finetune.run(config, str(tmp_path / "run"))
    (statistics,) = begun.value.args
    train = read_split(tmp_path / "run" / "split.csv").train
    assert not train.has_label.all()
    used = statistics.keywords["source"].records.image_path
    assert sorted(used) == sorted(train.image_path)
