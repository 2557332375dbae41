"""Workdirs of an earlier version (commit 17b1f40) are still read: constant weights, phantom images.

Stage one (`l1`), stage two, and stage two without an age head; each with the predictions that that
version made for its first test images.
"""

import csv
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from quick_figures import quick_figures

import infantxray
from configs import evaluate as evaluate_config
from configs import finetune, pretrain
from configs import predict as predict_config
from infantxray.commands import evaluate, predict
from infantxray.runs import settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import transfer
from infantxray.training import checkpoints

ARCHIVE = Path(__file__).parent / "fixtures" / "workdirs_17b1f40.tar.xz"
STAGE_TWO = ("stage_two", "without_apn")


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", STAGE_TWO)
def test_the_api_predicts_what_that_version_predicted(workdirs, name):
    expected = json.loads((workdirs / name / "expected.json").read_text())
    model = infantxray.load(workdirs / name)
    result = model.predict(expected["image_path"])
    assert result.classes == ("normal", "aeroperitoneum", "mass")
    np.testing.assert_allclose(result.probabilities, expected["probabilities"], atol=1e-6)
    assert np.ptp(result.probabilities, axis=1).min() > 0.01  # They could differ.
    if name == "stage_two":
        np.testing.assert_allclose(result.age_months, expected["age_months"], rtol=1e-5)
    else:
        assert np.isnan(result.age_months).all()


def test_stage_one_embeds_and_reconstructs(workdirs):
    model = infantxray.load(workdirs / "stage_one")
    images = np.full((2, 40, 30), 100, np.uint8)
    assert model.embed(images).shape == (2, 960)
    assert model.reconstruct(images).shape == (2, 32, 32)


@pytest.mark.parametrize("name", STAGE_TWO)
def test_predict_and_evaluate_take_them(workdirs, tmp_path, name):
    expected = json.loads((workdirs / name / "expected.json").read_text())
    config = predict_config.get_config()
    config.checkpoint = str(workdirs / name)
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["image_path", *expected["image_path"]]) + "\n")
    config.data.test = f"manifest:{manifest}"
    predict.run(config, str(tmp_path / "predict"))
    with open(tmp_path / "predict" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["p_mass"]) for row in rows] == pytest.approx(
        [row[2] for row in expected["probabilities"]], abs=1e-5
    )
    config = evaluate_config.get_config()
    config.checkpoint, config.bootstrap_samples = str(workdirs / name), 10
    with quick_figures():
        evaluate.run(config, str(tmp_path / "evaluate"))
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert metrics["n"] > 0
    assert (metrics["age_mae_months"] is None) == (name == "without_apn")


def test_stage_two_starts_from_their_stage_one(workdirs):
    how = ModelSpec.read(str(workdirs / "stage_one")).preprocessing
    spec = ModelSpec("shufflenet", "float32", how, ("a", "b"))
    transfer.check_stage_one(str(workdirs / "stage_one"), spec.encoder, spec.preprocessing)
    assert checkpoints.is_finished(str(workdirs / "stage_one"))
    _, variables = transfer.untrained_model(spec, str(workdirs / "stage_one"), seed=0)
    saved = infantxray.load(workdirs / "stage_one").encoder[1]
    for part in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, variables[part]["encoder"], saved[part])


@pytest.mark.parametrize("name", ["stage_one", "stage_two"])
def test_their_command_is_not_taken_for_another_one(workdirs, name):
    """Settings that were added since count only where they have another value than the default."""
    folder = str(workdirs / name)
    config = (finetune if name == "stage_two" else pretrain).get_config()
    earlier = workdir.read_config(folder)
    added = config.to_dict().keys() - earlier.keys()
    config.update({k: earlier[k] for k in earlier.keys() & config.to_dict().keys()})
    if name == "stage_two":
        config.batch_norm_images = 0  # What that version did; its default is another one now.
    assert ("labels" in added) == (name == "stage_two")
    assert workdir.changed_settings(folder, settings.to_dict(config)) == []
    config.data.label_map = "a=b"
    (changed,) = workdir.changed_settings(folder, settings.to_dict(config))
    assert changed.startswith("data.label_map (")
