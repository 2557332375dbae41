"""Calibration, sets, intervals and outliers: fitted, stored, applied."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.manifest import Records
from infantxray.evaluation import operating_points
from infantxray.evaluation.predictions import Predictions
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import answers
from infantxray.stage_two import trust_fitting as module
from infantxray.stage_two.trust import Trust

CLASSES = ("a", "b", "c")
SPEC = ModelSpec("none", "float32", Preprocessing(image_size=32), CLASSES, 20.0, 10.0)


class Source:
    """Records whose images are their features."""

    def __init__(self, records):
        self.records = records
        self.labels = np.array([CLASSES.index(x) if x else -1 for x in records.label])


def make_records(n, seed, labelled=True):
    rng = np.random.default_rng(seed)
    return Records.create(
        [f"{seed}/{i}.png" for i in range(n)],
        source="s",
        label=[CLASSES[k] if labelled else "" for k in rng.integers(0, 3, n)],
        age_months=rng.uniform(0, 40, n),
    )


class SurePredictor:
    """Is too sure of conditions, and wrong about ages by up to 5 months."""

    spec = SPEC

    def outputs(self, variables, source):
        n = len(source.labels)
        rng = np.random.default_rng(n)
        logits = rng.normal(size=(n, 3)) + 2 * np.eye(3)[np.maximum(source.labels, 0)]
        p = np.exp(4 * logits)
        months = source.records.age_months + rng.uniform(-5, 5, n)
        yield (
            {
                "probabilities": (p / p.sum(1, keepdims=True)).astype(np.float32),
                "age": ((months - 20) / 10).astype(np.float32),
                "features": rng.normal(size=(n, 6)).astype(np.float32),
            },
            np.arange(n),
        )


def fit(validation, training=None, **options):
    training = make_records(400, 1) if training is None else training
    return module.fit(SurePredictor(), None, Source, training, validation, **options)


def test_a_sure_model_is_cooled_and_sets_cover():
    trust = fit(make_records(600, 2), coverage=0.8)
    assert trust.skipped == ""
    assert 2 < trust.temperature < 8
    assert 3.5 < trust.age_half_width_months < 4.5
    assert trust.age_range_months[0] < 2
    assert {p.finding for p in trust.points if p.rule == "youden"} == set(CLASSES)
    test = make_records(700, 3)
    ((found, _),) = SurePredictor().outputs(None, Source(test))
    predictions = Predictions(
        CLASSES,
        found["probabilities"],
        Source(test).labels,
        test.age_months,
        SPEC.age_in_months(found["age"]),
        test.patient,
    )
    scored = trust.score(predictions)
    json.dumps(scored, allow_nan=False)
    before, after = (
        scored["calibration"][when]["expected_calibration_error"] for when in ("before", "after")
    )
    assert after < before / 2
    assert abs(scored["sets"]["all"]["coverage"]["value"] - 0.8) < 0.06
    assert abs(scored["age"]["all"]["value"] - 0.8) < 0.06
    answered = [row["accuracy"]["value"] for row in scored["abstention"]]
    assert answered[-1] > answered[0] + 0.05


def test_each_finding_has_its_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)) * [1, 2, 1]
    present = rng.uniform(size=(400, 3)) < 1 / (1 + np.exp(-logits))
    present[:, 2] = False
    predictions = Predictions(
        CLASSES,
        (1 / (1 + np.exp(-3 * logits))).astype(np.float32),
        np.full(400, -1),
        np.full(400, np.nan),
        np.full(400, np.nan),
        np.arange(400),
        present.astype(np.float32),
    )
    values, reasons = module._fit_conditions(
        predictions, 0.9, operating_points.parse_rules("youden")
    )
    assert reasons == ["calibration of c: fewer than 10 validation images with or without it"]
    assert values["temperature"][:2] == pytest.approx((3, 3), rel=0.35)
    assert values["temperature"][2] == 1
    assert "sets" not in values
    assert [point.finding for point in values["points"]] == ["a", "b"]
    scored = Trust(**values).score(predictions)["calibration"]
    assert scored["after"]["log_loss"] < scored["before"]["log_loss"] - 0.1


class RightPredictor(SurePredictor):
    """Is right about every image, and rightly unsure how right."""

    def outputs(self, variables, source):
        ((found, rows),) = super().outputs(variables, source)
        rng = np.random.default_rng(1)
        own = rng.uniform(0.5, 0.9, len(rows))[:, None]
        right = np.eye(3)[np.maximum(source.labels, 0)]
        yield found | {"probabilities": (right * own + (1 - right) * (1 - own) / 2)}, rows


def test_a_model_that_is_always_right_is_not_scaled(caplog):
    """Probabilities of 0.5 to 0.9 would become 0 and 1."""
    trust = module.fit(RightPredictor(), None, Source, make_records(400, 1), make_records(60, 2))
    assert trust.temperature is None
    assert "calibration: the validation images determine no temperature" in trust.skipped
    assert "determine no temperature" in caplog.text
    assert {point.finding for point in trust.points} == set(CLASSES)
    p = np.array([[0.6, 0.3, 0.1]])
    judged = trust.judge(p, np.zeros(1), None)
    assert judged.probabilities == pytest.approx(p)
    assert judged.in_set.tolist() == [[True, False, False]]
    json.dumps(trust.score(predictions_of(RightPredictor())), allow_nan=False)


def predictions_of(predictor):
    test = make_records(100, 3)
    ((found, _),) = predictor.outputs(None, Source(test))
    months = SPEC.age_in_months(found["age"])
    label = Source(test).labels
    return Predictions(
        CLASSES, found["probabilities"], label, test.age_months, months, test.patient
    )


def test_findings_that_are_always_right_are_not_scaled():
    rng = np.random.default_rng(0)
    present = rng.uniform(size=(400, 3)) < 0.3
    logits = rng.normal(size=(400, 3)) + np.where(present, 1, -1)
    logits[:, 1] = np.where(present[:, 1], 0.5, -0.5)
    p = 1 / (1 + np.exp(-logits))

    def fit_findings(columns):
        unknown = np.full(400, np.nan)
        predictions = Predictions(
            tuple(np.array(CLASSES)[columns]),
            p[:, columns],
            np.full(400, -1),
            unknown,
            unknown,
            np.arange(400),
            present[:, columns].astype(np.float32),
        )
        rules = operating_points.parse_rules("youden")
        return module._fit_conditions(predictions, 0.9, rules)

    values, (reason,) = fit_findings([0, 1, 2])
    assert reason.startswith("calibration of b: the validation images determine no temperature")
    assert values["temperature"][1] == 1
    assert 0.2 < values["temperature"][0] < 2
    assert [point.finding for point in values["points"]] == ["a", "b", "c"]
    values, _ = fit_findings([1])
    assert "temperature" not in values
    assert [point.finding for point in values["points"]] == ["b"]


@pytest.mark.parametrize(
    ("changes", "multi_label", "fits"),
    [
        ({"temperature": 2.0}, False, True),
        ({"temperature": None}, True, True),
        ({"temperature": (1.0, 2.0, 3.0)}, True, True),
        ({"temperature": 2.0}, True, False),
        ({"temperature": (1.0, 2.0, 3.0)}, False, False),
        ({"temperature": 1e-3}, False, False),
        ({"temperature": (1.0, 1e3, 3.0)}, True, False),
    ],
)
def test_calibration_of_another_kind_does_not_suit(changes, multi_label, fits):
    spec = dataclasses.replace(SPEC, multi_label=multi_label)
    assert module.suits(Trust(**changes), spec) == fits
    sets = fit(make_records(300, 2)).sets
    assert module.suits(Trust(sets=sets), spec) != multi_label


def test_thresholds_go_with_the_probabilities(monkeypatch, tmp_path):
    """Of an uncalibrated model: those that were fitted on its own probabilities."""
    of_report, of_trust = (
        operating_points.OperatingPoint("a", "youden", limit, 0.9, 0.9, 20, 30)
        for limit in (0.2, 0.3)
    )
    monkeypatch.setattr(answers, "read_spec", lambda folder: SPEC)
    monkeypatch.setattr(answers, "restore", lambda folder, spec: (None, 1))
    monkeypatch.setattr(answers, "read_points", lambda folder: [of_report])
    for trust, expected in (
        (None, (of_report,)),
        (Trust(), (of_report,)),
        (Trust(points=(of_trust,)), (of_trust,)),
        (Trust(temperature=2.0), ()),
    ):
        monkeypatch.setattr(answers, "for_workdir", lambda *args, found=trust, **how: found)
        assert answers.load_members([str(tmp_path)])[0].points == expected


def test_far_features_are_unlike_the_training_images():
    trust = fit(make_records(300, 2))
    features = np.zeros((2, 6), np.float32)
    features[1] = 30
    judged = trust.judge(np.full((2, 3), 1 / 3), np.zeros(2), features)
    assert judged.unlike_training.tolist() == [False, True]
    assert judged.in_set.any(1).all()


def test_too_few_validation_images_are_a_reason(caplog):
    trust = fit(make_records(49, 2))
    assert (trust.temperature, trust.sets, trust.detector) == (None, None, None)
    assert "49 validation images have a known condition, fewer than 50" in trust.skipped
    assert "skipped" in caplog.text
    judged = trust.judge(np.full((2, 3), 0.3), np.zeros(2), np.zeros((2, 6)))
    assert judged.in_set is None
    assert judged.unlike_training is None
    assert np.isnan(judged.age_low_months).all()
    unlabelled = fit(make_records(80, 2, labelled=False))
    assert unlabelled.temperature is None
    assert unlabelled.detector is not None


def test_it_reads_back_what_it_wrote(tmp_path):
    assert Trust.read(str(tmp_path)) is None
    trust = dataclasses.replace(fit(make_records(300, 2)), test={"x": 1})
    trust.write(str(tmp_path))
    found = Trust.read(str(tmp_path))
    for field in dataclasses.fields(Trust):
        if field.name != "detector":
            assert getattr(found, field.name) == getattr(trust, field.name), field.name
    np.testing.assert_array_equal(found.detector.whitening, trust.detector.whitening)
    assert found.distance_threshold == trust.distance_threshold
    (tmp_path / "trust.json").write_text("{}")
    with pytest.raises(UserError, match=r"trust\.json is damaged.*delete it"):
        Trust.read(str(tmp_path))


def test_a_run_whose_images_are_gone_is_used_without(tmp_path, caplog):
    trust = module.for_workdir(str(tmp_path), SPEC, None)
    assert trust == Trust(skipped=trust.skipped)
    assert "calibration and outlier detection are skipped" in caplog.text
