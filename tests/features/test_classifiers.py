import numpy as np
import pytest
from frozen_features import clusters
from sklearn.linear_model import LogisticRegression, Ridge

from infantxray.features.classifiers import fit_linear, fit_ridge, fit_ridge_by_patient, nearest


@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_it_is_the_minimum_that_scikit_learn_finds(l2):
    features, labels = clusters(200, 0, spread=2.0)
    other, _ = clusters(50, 1, spread=2.0)
    predict = fit_linear(features, labels, 3, l2)
    mean, std = features.mean(0), features.std(0)
    reference = LogisticRegression(C=1 / (l2 * 200), tol=1e-8, max_iter=2000)
    reference.fit((features - mean) / std, labels)
    expected = reference.predict_proba((other - mean) / std)
    np.testing.assert_allclose(predict(other), expected, atol=5e-3)


def test_separable_classes_are_told_apart_on_new_images():
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


def test_a_class_without_images_is_improbable():
    features, labels = clusters(90, 0)
    probabilities = fit_linear(features, labels, 4)(features)
    assert probabilities.shape == (90, 4)
    assert probabilities[:, 3].max() < 0.1


@pytest.mark.parametrize("count", [120, 4])  # More images than features, and fewer.
def test_ridge_is_that_of_scikit_learn(count):
    features, _ = clusters(120, 0)
    targets = np.random.default_rng(0).normal(size=(120, 2)) + features[:, :1] / 10
    features, targets = features[:count], targets[:count]
    other, _ = clusters(30, 1)
    mean, std = features.mean(0), features.std(0)
    reference = Ridge(alpha=0.5 * count).fit((features - mean) / std, targets)
    expected = reference.predict((other - mean) / std)
    np.testing.assert_allclose(fit_ridge(features, targets, 0.5)(other), expected, rtol=1e-4)


def images_of_patients(count, signal):
    """Features `[2 * count, 40]` of two images each, and targets that know them as well as said."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(count, 40)), 2, axis=0)
    features += 0.1 * rng.normal(size=features.shape)
    targets = signal * features[:, :1] + np.repeat(rng.normal(size=(count, 1)), 2, axis=0)
    return features, targets, np.repeat(np.arange(count), 2)


def test_the_penalty_is_chosen_on_patients_who_are_left_out():
    features, targets, patient = images_of_patients(40, signal=0.0)
    # There is nothing to learn: the mean is best. Within a patient there is: one image tells of the
    # other, so folds that part them see a signal.
    by_patient = fit_ridge_by_patient(features, targets, patient)(features)
    by_image = fit_ridge_by_patient(features, targets, np.arange(80))(features)
    assert by_patient.std() < 0.1 * targets.std()
    assert by_image.std() > 0.5 * targets.std()


def test_the_penalty_leaves_what_can_be_learned():
    features, targets, patient = images_of_patients(150, signal=3.0)
    predict = fit_ridge_by_patient(features[:200], targets[:200], patient[:200])
    error = np.abs(predict(features[200:]) - targets[200:]).mean()
    assert error < 0.5 * np.abs(targets[200:] - targets[:200].mean()).mean()


def test_one_patient_gives_the_mean():
    features, targets, patient = images_of_patients(1, signal=1.0)
    predict = fit_ridge_by_patient(features, targets, patient)
    np.testing.assert_allclose(predict(features + 1), targets.mean(), atol=0.01)


def test_a_feature_that_hardly_varied_does_not_run_away():
    features, targets, patient = images_of_patients(6, signal=3.0)
    features[:, 1] = 1e-4 * features[:, 0]
    predict = fit_ridge_by_patient(features, targets, patient)
    other = features.copy()
    other[:, 1] = 1.0
    assert targets.min() <= predict(other).min() <= predict(other).max() <= targets.max()
    assert np.abs(fit_ridge(features, targets, 1e-3)(other)).max() > 100 * np.abs(targets).max()


def test_neighbours_are_those_of_all_cosines():
    features, _ = clusters(90, 0)
    other, _ = clusters(20, 1)
    rows, weights = nearest(features, other)
    mean, std = features.mean(0), features.std(0) + 1e-6
    a, b = (features - mean) / std, (other - mean) / std
    cosine = (b @ a.T) / np.linalg.norm(b, axis=1)[:, None] / np.linalg.norm(a, axis=1)[None]
    expected = np.argsort(-cosine, axis=1)[:, :20]
    assert [set(row) for row in rows] == [set(row) for row in expected]
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    votes = np.exp((np.take_along_axis(cosine, expected, 1) - 1) / 0.07)
    np.testing.assert_allclose(weights, votes / votes.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)


def test_fewer_images_than_neighbours():
    features, _ = clusters(3, 0)
    rows, weights = nearest(features, features)
    assert rows.shape == weights.shape == (3, 3)
    assert rows[:, 0].tolist() == [0, 1, 2]  # Each is nearest to itself.
