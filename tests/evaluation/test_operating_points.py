"""Thresholds and diagnostic accuracy against definitions and statsmodels."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from infantxray.evaluation import operating_points as points
from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.operating_points import Rule


def make(n=300, patients=None, seed=0, decimals=2):
    rng = np.random.default_rng(seed)
    patient = np.arange(n) if patients is None else rng.integers(patients, size=n)
    positive = rng.random(n) < 0.3
    score = np.round(1 / (1 + np.exp(-1.0 * positive - rng.normal(size=n))), decimals)
    return Scores.of(positive, score, patient)


def test_rules_are_parsed_and_printed():
    text = "sensitivity:0.95,youden,specificity:0.9"
    assert ",".join(map(str, points.parse_rules(text))) == text
    assert points.parse_rules(" ") == ()


@pytest.mark.parametrize("text", ["sensitivity", "recall:0.9", "specificity:1", "youden:0.5", "x"])
def test_unknown_rules_are_refused(text):
    with pytest.raises(ValueError, match="give youden, sensitivity:X"):
        points.parse_rules(text)
    with pytest.raises(ValueError, match="given twice"):
        points.parse_rules("youden,youden")


@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_thresholds_are_the_best_that_reach_the_target(decimals):
    scores = make(decimals=decimals)
    fpr, tpr, thresholds = roc_curve(scores.positive, scores.score, drop_intermediate=False)
    found = points.choose("x", scores, Rule("sensitivity", 0.9))
    assert found.threshold == thresholds[np.argmax(tpr >= 0.9)]
    assert found.sensitivity >= 0.9
    found = points.choose("x", scores, Rule("specificity", 0.9))
    assert found.threshold == thresholds[np.flatnonzero(1 - fpr >= 0.9)[-1]]
    assert found.specificity >= 0.9
    found = points.choose("x", scores, Rule("youden"))
    assert found.sensitivity + found.specificity - 1 == pytest.approx((tpr - fpr).max())
    applied = points.accuracy_at(found.threshold, scores)
    assert applied["sensitivity"].value == pytest.approx(found.sensitivity)
    assert applied["specificity"].value == pytest.approx(found.specificity)


def test_a_target_that_few_images_cannot_resolve_has_a_note():
    scores = Scores.of([1] * 15 + [0] * 50, np.linspace(0, 1, 65)[::-1])
    assert "15 images" in points.choose("x", scores, Rule("sensitivity", 0.95)).note
    assert points.choose("x", scores, Rule("sensitivity", 0.9)).note == ""
    assert points.choose("x", Scores.of([0, 0], [0.1, 0.2]), Rule("youden")) is None


def test_an_unreachable_specificity_calls_nobody_positive():
    scores = Scores.of([0, 0, 1], [0.9, 0.8, 0.1])
    found = points.choose("x", scores, Rule("specificity", 0.9))
    assert found.threshold > 0.9
    assert points.accuracy_at(found.threshold, scores)["ppv"].note == "no image called positive"


def test_accuracy_at_a_threshold_is_that_of_the_table():
    scores = make()
    found = points.accuracy_at(0.6, scores, [0.01, 0.5])
    named, positive = scores.score >= 0.6, scores.positive
    tp, fp = (named & positive).sum(), (named & ~positive).sum()
    fn, tn = (~named & positive).sum(), (~named & ~positive).sum()
    for name, hits, count in (
        ("sensitivity", tp, tp + fn),
        ("specificity", tn, tn + fp),
        ("ppv", tp, tp + fp),
        ("npv", tn, tn + fn),
    ):
        low, high = proportion_confint(hits, count, method="wilson")
        assert found[name].value == pytest.approx(hits / count, abs=1e-12)
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-9)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    assert found["lr_positive"].value == pytest.approx(sensitivity / (1 - specificity))
    assert found["lr_negative"].value == pytest.approx((1 - sensitivity) / specificity)
    for p in (0.01, 0.5):
        ppv = sensitivity * p / (sensitivity * p + (1 - specificity) * (1 - p))
        npv = specificity * (1 - p) / (specificity * (1 - p) + (1 - sensitivity) * p)
        assert found[f"ppv@{p:g}"].value == pytest.approx(ppv, abs=1e-12)
        assert found[f"npv@{p:g}"].value == pytest.approx(npv, abs=1e-12)
    for metric in found.values():
        assert metric.low < metric.value < metric.high
    with pytest.raises(ValueError, match="prevalences"):
        points.accuracy_at(0.6, scores, [5.0])


def test_likelihood_ratios_resemble_the_log_method():
    """Simel, Samsa and Matchar, J Clin Epidemiol 1991;44:763, where samples are large."""
    scores = make(n=20_000)
    found = points.accuracy_at(0.6, scores)["lr_positive"]
    named, positive = scores.score >= 0.6, scores.positive
    a, b = (named & positive).sum(), (named & ~positive).sum()
    error = np.sqrt(1 / a - 1 / positive.sum() + 1 / b - 1 / (~positive).sum())
    low, high = found.value * np.exp(np.array([-1.96, 1.96]) * error)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)


def test_a_perfect_specificity_has_no_upper_likelihood_ratio():
    scores = Scores.of([1] * 30 + [0] * 30, [0.9] * 20 + [0.1] * 40)
    found = points.accuracy_at(0.5, scores, [0.1])
    assert found["lr_positive"].high == float("inf")
    assert found["ppv@0.1"].high == 1
    assert 0 < found["ppv@0.1"].low < 1


def test_without_positive_images_only_what_has_a_denominator_is_computed():
    found = points.accuracy_at(0.5, Scores.of([0] * 20, np.linspace(0, 1, 20)), [0.1])
    for name in ("sensitivity", "lr_positive", "lr_negative", "ppv@0.1"):
        assert np.isnan(found[name].value)
        assert found[name].note
    assert found["specificity"].value == 0.5


def test_operating_points_survive_json():
    found = tuple(points.choose("pneumonia", make(), Rule(r, 0.9)) for r in ("sensitivity",))
    assert points.from_json(points.to_json(found)) == found
