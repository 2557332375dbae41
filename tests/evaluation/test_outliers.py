"""Outlier detection against scikit-learn's distances, and on features with known outliers."""

import io

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from infantxray.evaluation import outliers
from infantxray.evaluation.roc import auc_by_kind


def make(n=400, c=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(c, c))
    return (rng.normal(size=(n, c)) @ mixing + 5).astype(np.float32)


def test_distances_are_those_of_scikit_learn():
    training, validation, test = make(), make(100, seed=1), make(50, seed=2)
    found = outliers.fit_detector(training, validation, k=3).distances(test)
    theirs = LedoitWolf().fit(training.astype(np.float64)).mahalanobis(test)
    assert found["mahalanobis"] == pytest.approx(np.sqrt(theirs), rel=1e-3)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (training, test)]
    distance, _ = NearestNeighbors(n_neighbors=3).fit(unit[0]).kneighbors(unit[1])
    assert found["knn"] == pytest.approx(distance[:, 2], abs=1e-3)


def test_outliers_are_found_and_ordinary_images_are_not():
    detector = outliers.fit_detector(make(), make(300, seed=1), quantile=0.95)
    ordinary, strange = make(300, seed=2), -make(100, seed=3)
    assert detector.unusual(ordinary).mean() == pytest.approx(0.05, abs=0.04)
    assert detector.unusual(strange).mean() > 0.8
    inside, outside = detector.distances(ordinary), detector.distances(strange)
    for name in detector.names:
        assert auc_by_kind(inside[name], {"negated": outside[name]})["negated"].low > 0.8


def test_another_score_joins_the_combined_one():
    rng = np.random.default_rng(0)
    error = rng.random(100)
    extra = {"reconstruction": error}
    detector = outliers.fit_detector(make(), make(100, seed=1), extra=extra)
    assert detector.names == ("mahalanobis", "knn", "reconstruction", "combined")
    test = make(2, seed=2)
    low, high = (
        detector.distances(test, {"reconstruction": np.full(2, v)})["combined"] for v in (0.5, 9)
    )
    assert (high > low).all()
    assert detector.unusual(test, {"reconstruction": np.full(2, 99.0)}).all()
    with pytest.raises(ValueError, match="fitted"):
        detector.distances(test)


def test_detectors_survive_a_file():
    detector = outliers.fit_detector(make(), make(100, seed=1))
    file = io.BytesIO()
    np.savez(file, **detector.arrays())
    file.seek(0)
    with np.load(file) as arrays:
        again = outliers.OutlierDetector.from_arrays(arrays)
    test = make(20, seed=2)
    assert (again.distances(test)["combined"] == detector.distances(test)["combined"]).all()
    assert again.names == detector.names


def test_fewer_images_than_features_and_constant_features():
    training = make(8, c=30)
    training[:, 0] = 1
    detector = outliers.fit_detector(training, make(5, c=30, seed=1), k=50)
    assert detector.k == 8
    found = detector.distances(make(4, c=30, seed=2))
    assert all(np.isfinite(values).all() for values in found.values())


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="1 training and 400"):
        outliers.fit_detector(make(1), make())
    with pytest.raises(ValueError, match="quantile"):
        outliers.fit_detector(make(), make(), quantile=1.0)
    with pytest.raises(ValueError, match=r"fitted on \[N, 12\]"):
        outliers.fit_detector(make(), make()).distances(make(c=3))
