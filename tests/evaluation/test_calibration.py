import math

import numpy as np
import pytest
import sklearn.metrics as reference

from infantxray.evaluation.calibration import calibration


def random_case(n=200, k=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, rng.integers(k, size=n)


def test_against_an_independent_computation():
    probabilities, label = random_case()
    result = calibration(probabilities, label, num_bins=10)
    gap = 0.0
    for low in np.arange(10) / 10:
        images = [
            (p.max(), p.argmax() == y)
            for p, y in zip(probabilities, label, strict=True)
            if low <= p.max() < low + 0.1
        ]
        if images:
            confidence, hit = np.mean(images, axis=0)
            gap += len(images) / 200 * abs(confidence - hit)
    assert result["expected_calibration_error"] == pytest.approx(gap, abs=1e-9)
    brier = np.mean([((p - np.eye(4)[y]) ** 2).sum() for p, y in zip(probabilities, label)])  # noqa: B905
    assert result["brier"] == pytest.approx(brier)
    assert result["log_loss"] == pytest.approx(reference.log_loss(label, probabilities))
    assert sum(b["n"] for b in result["bins"]) == 200


def test_a_model_that_says_what_it_does():
    """Sure at 0.8, right in four of five."""
    probabilities = np.tile([0.8, 0.2], (10, 1))
    label = np.array([0] * 8 + [1] * 2)
    result = calibration(probabilities, label)
    assert result["expected_calibration_error"] == pytest.approx(0.0, abs=1e-9)
    assert result["bins"] == [
        {"confidence": pytest.approx(0.8), "accuracy": pytest.approx(0.8), "n": 10}
    ]
    assert result["brier"] == pytest.approx(0.32)


def test_boundaries():
    perfect = calibration(np.eye(3), np.arange(3))
    assert perfect["expected_calibration_error"] == 0.0
    assert perfect["brier"] == 0.0
    assert perfect["log_loss"] == 0.0
    wrong = calibration(np.eye(3), np.array([1, 2, 0]))
    assert wrong["expected_calibration_error"] == pytest.approx(1.0)
    assert wrong["brier"] == pytest.approx(2.0)
    assert math.isfinite(wrong["log_loss"])
    assert wrong["log_loss"] > 50


def test_unknown_labels_are_left_out():
    probabilities, label = random_case(50)
    more = np.concatenate([probabilities, probabilities[:7]])
    unknown = np.concatenate([label, np.full(7, -1)])
    assert calibration(more, unknown) == calibration(probabilities, label)
    nothing = calibration(probabilities[:3], np.full(3, -1))
    assert math.isnan(nothing["brier"])
    assert math.isnan(nothing["expected_calibration_error"])
    assert nothing["bins"] == []
