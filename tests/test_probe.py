import csv
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors

from configs import probe as probe_config
from infantxray import probe
from infantxray.models import encoders
from infantxray.probe import fit_linear, fit_ridge, nearest


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


def test_ridge_is_that_of_scikit_learn():
    features, _ = clusters(120, 0)
    targets = np.random.default_rng(0).normal(size=(120, 2)) + features[:, :1] / 10
    other, _ = clusters(30, 1)
    mean, std = features.mean(0), features.std(0)
    reference = Ridge(alpha=0.5 * 120).fit((features - mean) / std, targets)
    expected = reference.predict((other - mean) / std)
    np.testing.assert_allclose(fit_ridge(features, targets, 0.5)(other), expected, rtol=1e-4)


def test_neighbours_are_those_of_scikit_learn():
    features, _ = clusters(90, 0)
    other, _ = clusters(20, 1)
    rows, weights = nearest(features, other)
    mean, std = features.mean(0), features.std(0) + 1e-6
    reference = NearestNeighbors(n_neighbors=20, metric="cosine").fit((features - mean) / std)
    distance, expected = reference.kneighbors((other - mean) / std)
    assert [set(row) for row in rows] == [set(row) for row in expected]
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    votes = np.exp(-distance / 0.07)
    np.testing.assert_allclose(weights, votes / votes.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)


def test_fewer_films_than_neighbours():
    features, _ = clusters(3, 0)
    rows, weights = nearest(features, features)
    assert rows.shape == weights.shape == (3, 3)
    assert rows[:, 0].tolist() == [0, 1, 2]  # Each is nearest to itself.


class Tiny(nn.Module):
    """An encoder that compiles at once: means of patches, and their squares."""

    in_channels: int = 1
    dtype: jnp.dtype = jnp.float32
    num_features: int = 8

    @nn.compact
    def __call__(self, image, *, train):
        del train
        mean = nn.avg_pool(image, (8, 8), (8, 8))
        mean = nn.Dense(8)(jnp.concatenate([mean, mean**2], axis=-1))
        return (None, None, None, mean)


def test_a_frozen_encoder_is_probed(tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "tiny", Tiny)
    config = probe_config.get_config()
    config.encoder = "tiny"
    config.data.train = "phantom:infant:films=60"
    config.data.image_size = 32
    config.data.label_fraction = 0.8
    config.train_films = 40
    config.batch_size = 8
    config.bootstrap_samples = 5
    probe.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    with open(tmp_path / "split.csv", newline="") as file:
        tested = [row["image_path"] for row in csv.DictReader(file) if row["split"] == "test"]
    for method in ("linear", "knn"):
        with open(tmp_path / f"predictions_{method}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image_path"] for row in rows] == tested
        assert all(row["age_predicted_months"] for row in rows)
        assert summary[method]["n"] == len(tested)
        assert 0 <= summary[method]["accuracy"] <= 1
    before = (tmp_path / "metrics.json").stat().st_mtime_ns
    probe.run(config, str(tmp_path))  # Finished: nothing to do.
    assert (tmp_path / "metrics.json").stat().st_mtime_ns == before
