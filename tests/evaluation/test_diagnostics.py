"""Metrics of each finding as plain values, thresholds, and subgroups."""

import json

import numpy as np
import pytest

from infantxray.evaluation import diagnostics, operating_points, roc
from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.summary import to_json

CLASSES = ("normal", "mass", "absent")


def make(n=300, seed=0, signal=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    logits = rng.normal(size=(n, 3)) + signal * np.eye(3)[label] - [0, 0, 4]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ages = rng.uniform(0, 36, n)
    return Predictions(CLASSES, probabilities, label, ages, ages + 1, np.arange(n) // 2)


def test_each_finding_has_its_metrics_and_curves():
    test, pixels = make(), make(signal=0.5, seed=0)
    metrics, curves = diagnostics.findings(test, pixels)
    scores = Scores.of_class(test, 1)
    assert metrics["mass"]["roc_auc"] == diagnostics.to_dict(roc.auc(scores))
    assert metrics["mass"]["roc_auc_over_pixels"]["value"] > 0
    assert metrics["mass"]["roc_auc_over_pixels"]["p"] < 0.05
    assert metrics["mass"]["prevalence"]["value"] == pytest.approx(scores.positive.mean())
    assert curves.keys() == {"normal", "mass"}
    assert metrics["absent"]["roc_auc"]["note"] == "no positive image"
    row = curves["mass"]["net_benefit"][10]
    assert row["model"]["value"] > row["baseline"]["value"]
    json.dumps(to_json([metrics, curves]), allow_nan=False)


def test_the_baseline_of_a_linear_model_is_a_probability():
    test, pixels = make(), make(signal=0.5)
    wild = Predictions(**{**vars(pixels), "probabilities": 4 * pixels.probabilities - 1})
    _, curves = diagnostics.findings(test, wild)
    never = [row["baseline"]["value"] for row in curves["mass"]["net_benefit"]]
    assert np.isfinite(never).all()


def test_thresholds_come_from_validation_images_alone():
    validation, test = make(seed=1), make(seed=2)
    rules = operating_points.parse_rules("sensitivity:0.9,youden")
    points = diagnostics.choose_points(validation, rules)
    assert [(p.finding, p.rule) for p in points] == [
        (name, rule) for name in CLASSES[:2] for rule in ("sensitivity:0.9", "youden")
    ]
    rows = diagnostics.at_points(test, points, (0.1,))
    for point, row in zip(points, rows, strict=True):
        k = CLASSES.index(point.finding)
        called = test.probabilities[:, k] >= point.threshold
        assert row["sensitivity"]["value"] == pytest.approx(called[test.label == k].mean())
        assert row["validation"]["sensitivity"] >= 0.9 or point.rule == "youden"
        assert row["ppv@0.1"]["value"] < row["ppv"]["value"]


def test_prevalences_are_read_and_checked():
    assert operating_points.parse_prevalences(" 0.01, 0.2") == (0.01, 0.2)
    assert operating_points.parse_prevalences("") == ()
    for text in ("1", "0", "a", "0.1,nan"):
        with pytest.raises(ValueError, match="between 0 and 1"):
            operating_points.parse_prevalences(text)


def test_subgroups_that_divide_nothing_are_left_out():
    test = make()
    sex = np.array(["F", "M", ""] * 100, dtype=object)
    found = diagnostics.by_subgroup(test, {"sex": sex, "site": np.full(300, "a", object)})
    assert found.keys() == {"sex"}
    assert found["sex"]["unknown"] == 100
    assert {row["metric"] for row in found["sex"]["gaps"]} >= {"accuracy", "age_mae_months"}
    assert all(isinstance(row["gap"], dict) for row in found["sex"]["gaps"])
