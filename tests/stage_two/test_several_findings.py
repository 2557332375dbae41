"""Several findings an image, from the phantom to the report, the probes and `predict`."""

import csv
import dataclasses
import html
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_figures import quick_figures
from sklearn.metrics import roc_auc_score
from small_encoder import small_encoder

import infantxray
from configs import compare as compare_config
from configs import evaluate as evaluate_config
from configs import finetune as finetune_config
from configs import label_efficiency as label_efficiency_config
from configs import predict as predict_config
from configs import probe as probe_config
from data_pipeline.conditions import finding_names
from data_pipeline.dataset import Reader
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.labels import FindingNames
from data_pipeline.manifest import Records
from data_pipeline.manifest_writing import write_manifest
from data_pipeline.phantom import open_phantom
from data_pipeline.splits import read_split
from infantxray.commands import compare, evaluate, finetune, label_efficiency, predict, probe
from infantxray.evaluation.predictions import NO_FINDING, read_predictions
from infantxray.runs import settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import answers, loss, trust_fitting
from infantxray.stage_two.inference import Predictor

PHANTOM = "phantom:infant:findings=2:films=110:severity=obvious"

# In one process, so that fixtures are made once.
pytestmark = pytest.mark.xdist_group("several_findings")


@pytest.fixture(scope="module", autouse=True)
def _small_encoder():
    with small_encoder():
        yield


@pytest.fixture(autouse=True)
def _quick_figures():
    """For all runs but those of the module's fixtures."""
    with quick_figures():
        yield


def small(config):
    if "encoder" in config:
        config.encoder = "small"
    config.data.image_size = 32
    config.batch_size = 16
    config.data.train = PHANTOM
    config.labels = "multi"
    config.bootstrap_samples = 10
    return config


def stage_two():
    config = small(finetune_config.get_config())
    config.train_steps = 4
    config.log_every_steps = config.eval_every_steps = config.checkpoint_every_steps = 2
    config.condition_on = "sex,view"
    config.class_weights = "balanced"
    config.data.label_fraction = 0.6
    config.self_training.linear_probe = True
    config.data.label_map = "no finding=normal,lump=mass"
    return config


def run(command, config, folder):
    settings.check(config)
    command.run(config, str(folder))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    with quick_figures(whole=True):
        run(finetune, stage_two(), folder)
    return folder


def test_macro_auc_is_that_of_scikit_learn(finetuned):
    metrics = json.loads((finetuned / "metrics.json").read_text())
    predictions, _ = read_predictions(finetuned / "predictions.csv")
    assert predictions.multi_label
    assert "lump" in predictions.classes
    assert not {"normal", "no finding", "mass"} & set(predictions.classes)
    assert (predictions.probabilities.sum(1) > 1.01).any()
    truth = predictions.findings == 1
    both = truth.any(0) & ~truth.all(0)
    assert both.sum() >= 5
    expected = roc_auc_score(truth[:, both], predictions.probabilities[:, both], average="macro")
    assert metrics["roc_auc"] == pytest.approx(expected, abs=1e-6)
    assert metrics["ci95"]["roc_auc"][0] <= metrics["roc_auc"] <= metrics["ci95"]["roc_auc"][1]
    assert "confusion_matrix" not in metrics
    assert set(metrics["per_class"]) == set(predictions.classes)


def test_images_without_labels_learn_from_the_probe(finetuned):
    taught = np.load(finetuned / "teachers" / "soft_labels.npy")
    assert taught.shape[1] == 10
    assert (taught.sum(1) > 1.01).any()
    assert ((taught >= 0) & (taught <= 1)).all()


def test_report_and_predictions_name_findings(finetuned):
    page = (finetuned / "report.html").read_text()
    assert "mass → lump" in page
    assert "findings" in page
    words = html.unescape(re.sub(r"<[^>]+>", " ", page.split("All settings")[0]))
    for of_one_condition in ("By condition", "One condition against", "See the confusion matrix",
                             "the most frequent condition", "some conditions",
                             "every condition", "true condition", "; cross-entropy"):  # fmt: skip
        assert of_one_condition not in words
    for said in ("By finding", "the more frequent answer for each finding",
                 "Each finding, over the images in which it is known",
                 "The pixels of one image, and sex and view where known",
                 "loss: binary cross-entropy over the known findings"):  # fmt: skip
        assert said in words
    with open(finetuned / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        named = [n[2:] for n, p in row.items() if n.startswith("p_") and float(p) >= 0.5]
        assert row["predicted"] == ("|".join(named) or NO_FINDING)
    assert any("|" in row["label"] for row in rows)
    assert (finetuned / "figures" / "saliency.png").exists()


def test_external_data_in_other_words(finetuned, tmp_path):
    records = open_phantom("infant:findings=2:films=40:seed=9:severity=obvious")
    records = records.take(records.split == "test").take(np.arange(12))
    records = records.replace(label=np.array(["Hernia", *records.label[1:]], dtype=object))
    write_manifest(tmp_path / "other.csv", records)
    config = evaluate_config.get_config()
    config.checkpoint, config.bootstrap_samples = str(finetuned), 10
    config.data.test = f"manifest:{tmp_path / 'other.csv'}"
    config.data.label_map = "lump=mass"
    run(evaluate, config, tmp_path / "external")
    metrics = json.loads((tmp_path / "external" / "metrics.json").read_text())
    assert any("Hernia" in note for note in metrics["label_notes"])
    predictions, _ = read_predictions(tmp_path / "external" / "predictions.csv")
    assert np.isnan(predictions.findings[0]).all()
    assert np.isfinite(predictions.findings[1:]).all()


def test_predict_uses_sex_and_view_where_they_are_known(finetuned, tmp_path):
    records = open_phantom("infant:findings=2:films=40:seed=9")
    records = records.take(np.arange(4))
    unknown = records.replace(sex=np.full(4, "", object), view=np.full(4, "", object))
    config = predict_config.get_config()
    config.checkpoint = str(finetuned)
    for name, part in (("known", records), ("unknown", unknown)):
        write_manifest(tmp_path / f"{name}.csv", part)
        config.data.test = f"manifest:{tmp_path / f'{name}.csv'}"
        run(predict, config, tmp_path / name)
    known, _ = read_predictions(tmp_path / "known" / "predictions.csv")
    without, _ = read_predictions(tmp_path / "unknown" / "predictions.csv")
    assert np.isfinite(without.probabilities).all()
    # What the manifest says of its images is known in the file, too.
    truth = FindingNames(known.classes).matrix(records)
    np.testing.assert_array_equal(known.findings, truth)
    assert np.isfinite(truth).any()
    model = infantxray.load(finetuned)
    paths = list(records.image_path)
    told = model.predict(paths, sex=list(records.sex), view=list(records.view))
    np.testing.assert_allclose(told.probabilities, known.probabilities, atol=1e-5)
    np.testing.assert_allclose(model.predict(paths).probabilities, without.probabilities, atol=1e-5)
    assert told.predicted == known.names()
    with pytest.raises(ValueError, match="1 values of sex for 4 images"):
        model.predict(paths, sex=["F"])
    with pytest.raises(ValueError, match="sex is 'girl'; expected 'F', 'M', or '' for unknown"):
        model.predict(paths, sex="girl")
    assert not np.array_equal(known.probabilities, without.probabilities)


@pytest.fixture
def uncalibrated(finetuned, tmp_path, monkeypatch):
    """The run without its calibration, and with enough validation images for one."""
    monkeypatch.setattr(trust_fitting, "_MIN_OUTCOME", 3)
    monkeypatch.setattr(trust_fitting, "MIN_VALIDATION", 20)
    folder = tmp_path / "run"
    shutil.copytree(finetuned, folder, ignore=shutil.ignore_patterns("figures", "tables"))
    (folder / "trust.json").unlink()
    return folder


def change_config(folder, **changes):
    workdir.write_config(str(folder), workdir.read_config(str(folder)) | changes)


def test_calibration_is_fitted_again_as_by_the_run(uncalibrated):
    """One temperature a finding, no sets, and the coverage of the run."""
    change_config(uncalibrated, coverage=0.8)
    (member,) = answers.load_members([str(uncalibrated)])
    data = settings.data_settings(stage_two())
    split, spec = read_split(uncalibrated / "split.csv"), member.spec
    expected = trust_fitting.fit(
        Predictor(spec, batch_size=32, num_threads=4),
        member.variables,
        Reader(
            data,
            spec.classes,
            names=finding_names(data, split, spec.classes),
            context=spec.context,
        ),
        split.train,
        split.validation,
        coverage=0.8,
    )
    found = member.trust
    for field in dataclasses.fields(found):
        if field.name != "detector":
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert len(found.temperature) == len(spec.classes)
    assert found.sets is None
    assert found.coverage == 0.8
    assert (uncalibrated / "trust.json").exists()
    # As an earlier version wrote it.
    dataclasses.replace(found, temperature=2.0).write(str(uncalibrated))
    model = infantxray.load(uncalibrated)
    assert (model.trust.temperature, model.trust.points) == (None, ())
    assert model.trust.age_half_width_months == found.age_half_width_months
    (member,) = answers.load_members([str(uncalibrated)])
    assert member.trust.temperature == found.temperature


def test_no_coverage_means_no_calibration(uncalibrated, tmp_path):
    change_config(uncalibrated, coverage=0.0)
    config = predict_config.get_config()
    config.checkpoint, config.data.test = str(uncalibrated), "phantom:infant:findings=2:films=1"
    run(predict, config, tmp_path / "out")
    assert not (uncalibrated / "trust.json").exists()
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        columns = csv.DictReader(file).fieldnames
    assert "positive_youden" in columns  # By the report's thresholds.
    assert not {"conditions", "age_low_months", "distance"} & set(columns)


def test_runs_are_compared_finding_by_finding(finetuned, tmp_path):
    config = compare_config.get_config()
    config.runs, config.permutations = f"one={finetuned},two={finetuned}", 9
    run(compare, config, tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    predictions, _ = read_predictions(finetuned / "predictions.csv")
    assert {row["condition"] for row in found["by_condition"]} == set(predictions.classes)
    assert all(row["difference"]["value"] == 0 for row in found["paired"])
    page = (tmp_path / "report.html").read_text()
    assert "ROC AUC by finding" in page
    assert "condition" not in page.split("All settings")[0].split("</style>")[1]


def test_probes_follow(tmp_path):
    run(probe, small(probe_config.get_config()), tmp_path / "probe")
    summary = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    for method in ("linear", "knn"):
        predictions, _ = read_predictions(tmp_path / "probe" / f"predictions_{method}.csv")
        assert predictions.multi_label
        assert summary[method]["roc_auc"] is not None
    config = small(label_efficiency_config.get_config())
    config.encoders, config.label_fractions, config.draws = "pixels", (0.5,), 2
    run(label_efficiency, config, tmp_path / "labels")
    assert (tmp_path / "labels" / "report.html").exists()


def test_joined_labels_are_refused_where_one_condition_is_learned(tmp_path):
    config = stage_two()
    config.labels, config.condition_on = "single", ""
    with pytest.raises(DataError, match=r"several findings.*config\.labels=multi"):
        run(finetune, config, tmp_path)


class TestMasks:
    """Unknown findings teach nothing, finding by finding."""

    @staticmethod
    def grad(findings, soft=None, weights=None):
        spec = ModelSpec("small", "float32", Preprocessing(32), ("a", "b", "c"), multi_label=True)
        batch = {"findings": jnp.asarray(findings, jnp.float32)}
        if soft is not None:
            batch["soft_label"] = jnp.asarray(soft, jnp.float32)
        weights = jnp.ones((2, 3)) if weights is None else jnp.asarray(weights, jnp.float32)

        def mean(logits):
            weight = loss.finding_targets(batch, weights)[1].sum(-1)
            value = loss.loss_terms(spec, {"logits": logits}, batch, weights)["cross_entropy"]
            return (value * weight).sum() / weight.sum()

        logits = jnp.asarray([[0.5, -1.0, 2.0], [0.0, 1.0, -1.0]])
        return np.asarray(jax.grad(mean)(logits)), float(mean(logits)), np.asarray(logits)

    def test_each_finding_has_its_own_mask(self):
        findings = [[1, np.nan, 0], [np.nan, np.nan, 1]]
        grad, value, logits = self.grad(findings)
        assert (grad[np.isnan(findings)] == 0).all()
        assert (grad[np.isfinite(findings)] != 0).all()
        known = np.isfinite(findings)
        each = np.log1p(np.exp(logits)) - np.nan_to_num(findings) * logits
        assert value == pytest.approx(each[known].mean(), rel=1e-5)

    def test_a_teacher_speaks_for_images_without_any_truth(self):
        findings = [[np.nan] * 3, [1, np.nan, 0]]
        grad, _, logits = self.grad(findings, soft=[[0.2, 0.3, 0.9], [0.5, 0.5, 0.5]])
        sigmoid = 1 / (1 + np.exp(-logits[0]))
        assert grad[0] == pytest.approx((sigmoid - [0.2, 0.3, 0.9]) / 5, rel=1e-4)
        assert grad[1, 1] == 0

    def test_weights_weigh_presence_and_absence_in_what_a_teacher_says(self):
        """The minimum is where that of findings drawn from the teacher's answer would be."""
        spec = ModelSpec("small", "float32", Preprocessing(32), ("a", "b", "c"), multi_label=True)
        weights = jnp.array([[0.5, 1.0, 0.5], [4.0, 1.0, 4.0]])
        soft = np.array([[0.2, 0.3, 0.0]], np.float32)
        batch = {"findings": jnp.full((1, 3), jnp.nan), "soft_label": soft}
        drawn = (np.random.default_rng(0).permutation(10)[:, None] < 10 * soft).astype(np.float32)

        def gradient(logits, batch):
            def total(logits):
                weight = loss.finding_targets(batch, weights)[1].sum(-1)
                outputs = {"logits": jnp.broadcast_to(logits, (len(weight), 3))}
                value = loss.loss_terms(spec, outputs, batch, weights)["cross_entropy"]
                return (value * weight).sum() / weight.sum()

            return jax.grad(total)(logits)

        logits = jnp.array([[0.5, -1.0, 2.0]])
        np.testing.assert_allclose(
            gradient(logits, batch), gradient(logits, {"findings": jnp.asarray(drawn)}), rtol=1e-4
        )

    def test_weights_of_presence_and_absence(self):
        findings = np.array([[1, 0, np.nan], [0, 0, 1], [0, 1, np.nan]], np.float32)
        weights = loss._finding_weights("balanced", findings)
        assert weights[:, 0] == pytest.approx([3 / 4, 3 / 2])
        assert weights[:, 2] == pytest.approx([0.5, 0.5])


def test_context_of_records_is_read_without_regard_to_capitals():
    from data_pipeline.context import context_matrix, find_context

    records = Records.create(
        [f"{i}.png" for i in range(24)],
        source="s",
        sex=["F"] * 12 + ["M"] * 10 + [""] * 2,
        view=["AP", "ap "] * 11 + ["PA", ""],
    )
    names = find_context(records, ("sex", "view"))
    assert names == ("sex=F", "sex=M", "view=AP")
    matrix = context_matrix(names, sex=records.sex, view=records.view)
    assert matrix[0].tolist() == [1, 0, 1]
    assert matrix[22].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"condition_on names sex"):
        find_context(records.take([0, 1]), ("sex",))
