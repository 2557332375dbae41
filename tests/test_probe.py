import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from infantxray.probe import fit_linear


def clusters(n, seed, spread=1.0, k=3, d=5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(k, d)) * 3
    labels = rng.integers(k, size=n)
    features = centres[labels] + spread * rng.normal(size=(n, d))
    # Features of very different scales, as encoders have them.
    return (features * np.array([1, 100, 0.01, 1, 1]) + 50).astype(np.float32), labels


def test_it_is_the_minimum_that_scikit_learn_finds():
    features, labels = clusters(200, 0, spread=2.0)
    other, _ = clusters(50, 1, spread=2.0)
    predict = fit_linear(features, labels, 3)
    mean, std = features.mean(0), features.std(0)
    reference = LogisticRegression(C=1 / (1e-2 * 200), tol=1e-8, max_iter=2000)
    reference.fit((features - mean) / std, labels)
    expected = reference.predict_proba((other - mean) / std)
    np.testing.assert_allclose(predict(other), expected, atol=5e-3)


def test_separable_classes_are_told_apart_on_new_films():
    predict = fit_linear(*clusters(150, 0), 3)
    features, labels = clusters(60, 1)
    probabilities = predict(features)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.95


def test_features_without_information_give_the_frequencies():
    features = np.ones((40, 3), np.float32)  # A constant feature must not become NaN.
    labels = np.array([0] * 30 + [1] * 10)
    probabilities = fit_linear(features, labels, 2)(features[:1])
    assert probabilities[0] == pytest.approx([0.75, 0.25], abs=0.01)


def test_a_class_without_films_is_improbable():
    features, labels = clusters(90, 0)
    probabilities = fit_linear(features, labels, 4)(features)
    assert probabilities.shape == (90, 4)
    assert probabilities[:, 3].max() < 0.1
