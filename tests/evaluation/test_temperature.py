"""Temperature scaling against scikit-learn's, and its effect on known miscalibration."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from infantxray.evaluation import temperature


class Stated(ClassifierMixin, BaseEstimator):
    """A classifier whose logits are its input."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        raise NotImplementedError

    def decision_function(self, x):
        return x[:, 0] if x.shape[1] == 1 else x


def make(n=2000, k=4, factor=2.0, seed=0):
    """Logits that are too large by a factor, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 1.5
    label = np.array([rng.choice(k, p=p) for p in softmax(logits, axis=1)])
    return logits * factor, label


@pytest.mark.parametrize("k", [2, 4])
def test_temperature_and_probabilities_are_those_of_scikit_learn(k):
    logits, label = make(k=k)
    # Of two classes scikit-learn takes one logit z for (-z, z).
    given = (logits[:, 1:] - logits[:, :1]) / 2 if k == 2 else logits
    theirs = CalibratedClassifierCV(
        FrozenEstimator(Stated().fit(given, label)), method="temperature", ensemble=False
    ).fit(given, label)
    probabilities = softmax(logits, axis=1)
    found = temperature.fit_temperature(probabilities, label)
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    assert found == pytest.approx(1 / beta, rel=1e-6)
    scaled = temperature.scale(probabilities, found)
    assert scaled == pytest.approx(theirs.predict_proba(given), abs=1e-6)


def test_the_derivative_of_the_log_loss_vanishes():
    logits, label = make()
    found = temperature.fit_temperature(softmax(logits, axis=1), label)
    assert found == pytest.approx(2, rel=0.1)

    def loss(t):
        return -log_softmax(logits / t, axis=1)[np.arange(len(label)), label].mean()

    step = 1e-4
    assert (loss(found + step) - loss(found - step)) / (2 * step) == pytest.approx(0, abs=1e-8)


def test_scaling_improves_calibration_and_keeps_the_argmax():
    logits, label = make()
    probabilities = softmax(logits, axis=1)
    fitted = temperature.fit_temperature(probabilities[:1000], label[:1000])
    found = temperature.before_and_after(probabilities[1000:], label[1000:], fitted)
    for name in ("expected_calibration_error", "log_loss", "brier"):
        assert found["after"][name] < found["before"][name]
    scaled = temperature.scale(probabilities, fitted)
    assert scaled.sum(1) == pytest.approx(1)
    assert (scaled.argmax(1) == probabilities.argmax(1)).all()


def test_findings_have_temperatures_of_their_known_images():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 2)) * 2
    positive = rng.random((4000, 2)) < expit(z / [3, 0.5])
    known = rng.random((4000, 2)) < 0.7
    positive[~known] = rng.random((~known).sum()) < 0.5
    found = [
        temperature.fit_temperature_binary(expit(z[:, f]), positive[:, f], known[:, f])
        for f in range(2)
    ]
    assert found == pytest.approx([3, 0.5], rel=0.15)
    both = temperature.scale_binary(expit(z), np.array(found))
    assert both == pytest.approx(expit(z / found))
    pair = np.stack([1 - expit(z[:, 0]), expit(z[:, 0])], 1)
    label = np.where(known[:, 0], positive[:, 0], -1)
    assert temperature.fit_temperature(pair, label) == pytest.approx(found[0])
    assert temperature.scale(pair, found[0])[:, 1] == pytest.approx(both[:, 0])


@pytest.mark.parametrize("gap", [0.8, 1e-6, 0.0])
def test_images_that_are_all_right_determine_no_temperature(gap):
    """The likelihood rises for ever; all probabilities would become 0 or 1."""
    p = 0.5 + gap / 2
    probabilities = np.array([[p, 1 - p], [1 - p, p], [p, 1 - p]])
    label = np.array([0, 1, 0])
    assert temperature.fit_temperature(probabilities, label) is None
    assert temperature.fit_temperature_binary(probabilities[:, 1], label) is None


def test_one_image_that_is_hardly_wrong_determines_no_temperature():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 50)
    logits = 3 * np.eye(3)[label] + rng.normal(size=(50, 3)) * 0.1
    for margin, determined in ((0.002, False), (0.5, True)):
        logits[0] = np.eye(3)[label[0] - 1] * margin
        found = temperature.fit_temperature(softmax(logits, axis=1), label)
        assert (found is not None) == determined


def test_probabilities_that_say_nothing_of_the_labels_determine_no_temperature():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert temperature.fit_temperature(probabilities, np.array([1, 0])) is None


def test_extreme_data():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert temperature.fit_temperature(probabilities, np.array([-1, -1])) is None
    assert temperature.fit_temperature_binary(np.empty(0), np.empty(0)) is None
    certain = temperature.scale(np.array([[1.0, 0.0]], np.float32), 2.0)
    assert np.isfinite(certain).all()
