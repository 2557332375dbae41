"""A damaged checkpoint stops the command that reads it; `config.resume=last_good` goes on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import finetune as finetune_config
from data_pipeline import files
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.manifest import Records
from infantxray.commands import finetune
from infantxray.evaluation import operating_points
from infantxray.evaluation.operating_points import read_points
from infantxray.evaluation.predictions import Predictions, read_predictions
from infantxray.models import ENCODERS
from infantxray.models.encoders import vgg
from infantxray.runs import settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference
from infantxray.training import checkpoints, partial_restore, sharding
from infantxray.training.checkpoints import CheckpointError


def config(**changes):
    values = finetune_config.get_config()
    values.encoder = "tiny"
    values.batch_size = 8
    values.train_steps = 3
    values.log_every_steps = values.checkpoint_every_steps = 1
    values.data.train = "phantom:infant:films=60"
    values.data.image_size = 32
    values.bootstrap_samples = 0
    values.coverage = 0.0  # Needs the predictions of the evaluation, which is left out here.
    values.update(changes)
    return values


def arrays(folder):
    """Parameters of the latest checkpoint."""
    spec = inference.read_spec(str(folder))
    abstract = jax.eval_shape(
        lambda: inference.init_variables(inference.build_model(spec), 32, jax.random.key(0))
    )
    steps = checkpoints.checkpoint_steps(str(folder))
    return partial_restore.restore_variables(str(folder), steps[-1], abstract)[0]


def test_the_last_good_checkpoint_is_used_on_demand_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(ENCODERS, "tiny", functools.partial(vgg.VGG, stages=(vgg.Stage(1, 8),) * 5))
    one = jax.devices()[:1]
    monkeypatch.setattr(sharding.jax, "devices", lambda: one)
    monkeypatch.setattr(finetune, "evaluate", lambda folder, **options: None)
    folder = tmp_path / "run"
    finetune.run(config(), str(folder))
    expected = arrays(folder)
    assert checkpoints.checkpoint_steps(str(folder)) == [2, 3]

    largest = max(folder.glob("checkpoints/3/state/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(bytes(content))
    with pytest.raises(CheckpointError) as caught:
        finetune.run(config(), str(folder))
    assert str(largest) in str(caught.value)
    assert "the newest whole checkpoint is step 2" in str(caught.value)
    assert "--config.resume=last_good" in str(caught.value)

    caplog.set_level("INFO")
    finetune.run(config(resume="last_good"), str(folder))
    assert "continuing from the checkpoint of step 2" in caplog.text
    assert "resumed at step 2" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, arrays(folder), expected)
    # The setting may be dropped again.
    assert workdir.changed_settings(str(folder), settings.to_dict(config())) == []


@pytest.mark.parametrize(
    ("probability", "months", "message"),
    [
        (np.nan, 3.0, "probabilities that are not finite for b.png and 0 more"),
        (0.5, 1e31, r"an age beyond any human's \(1e\+31 months\) for b.png"),
        (0.5, np.nan, "an age beyond any human's"),
        (0.5, -np.inf, "an age beyond any human's"),
    ],
)
def test_predictions_that_cannot_be_stop_with_a_sentence(probability, months, message):
    spec = ModelSpec("vgg19", "float32", Preprocessing(32), ("a", "b"), 10.0, 5.0)
    records = Records.create(["a.png", "b.png"], source="s")
    predictions = Predictions(
        classes=spec.classes,
        probabilities=np.array([[0.5, 0.5], [0.5, probability]]),
        label=np.zeros(2, int),
        age_months=np.zeros(2),
        age_predicted_months=np.array([-3.0, months]),
        patient=np.array(["a", "b"]),
    )
    with pytest.raises(inference.ImplausiblePredictionError, match=message):
        inference.check_plausible(spec, predictions, records)
    inference.check_plausible(spec, predictions.take(np.array([0])), records)


def test_thresholds_and_predictions_that_were_changed_are_errors(tmp_path):
    assert read_points(str(tmp_path)) == []
    point = operating_points.OperatingPoint("a", "youden", 0.25, 0.9, 0.8, 10, 20)
    (tmp_path / "operating_points.json").write_text(operating_points.to_json([point]))
    (tmp_path / "predictions.csv").write_text("image_path,label\n")
    files.write_checksums(tmp_path, ["operating_points.json", "predictions.csv"])
    assert read_points(str(tmp_path)) == [point]
    (tmp_path / "operating_points.json").write_text(
        operating_points.to_json([dataclasses.replace(point, threshold=0.26)])
    )
    (tmp_path / "predictions.csv").write_text("image_path,labal\n")
    with pytest.raises(DataError, match=r"operating_points\.json was changed"):
        read_points(str(tmp_path))
    with pytest.raises(DataError, match=r"predictions\.csv was changed"):
        read_predictions(tmp_path / "predictions.csv")
    files.remove_checksums(tmp_path)
    (tmp_path / "operating_points.json").write_text('[{"finding": ')
    with pytest.raises(DataError, match=r"operating_points\.json is damaged"):
        read_points(str(tmp_path))
