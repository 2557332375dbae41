"""Conformal sets against MAPIE, and coverage on simulated patients."""

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.regression import SplitConformalRegressor
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from infantxray.evaluation import conformal


class Stated(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are its input."""

    def fit(self, x, y):
        self.classes_ = np.arange(x.shape[1])
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


class StatedAge(RegressorMixin, BaseEstimator):
    """A regressor whose prediction is its input."""

    def fit(self, x, y):
        self.n_features_in_ = 1
        return self

    def predict(self, x):
        return x[:, 0]


def make(n, k=5, seed=0, skew=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 2 + (np.arange(k) * -0.7 if skew else 0)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = np.array([rng.choice(k, p=p) for p in probabilities])
    return probabilities, label


class NoChance(np.random.RandomState):
    """MAPIE's adaptive scores are randomised by a uniform number; here it is 0."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.zeros(size)


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_are_those_of_mapie(method, coverage):
    (fit, truth), (test, _) = make(100), make(300, seed=1)
    theirs = SplitConformalClassifier(
        Stated().fit(fit, truth),
        confidence_level=coverage,
        conformity_score=method,
        random_state=NoChance(),
    ).conformalize(fit, truth)
    parameters = {} if method == "lac" else {"include_last_label": False}
    _, inside = theirs.predict_set(test, conformity_score_params=parameters)
    sets = conformal.fit_sets(fit, truth, coverage=coverage, method=method)
    # MAPIE leaves no adaptive set empty.
    found = conformal.predict_sets(sets, test, at_least_one=method == "aps")
    assert (found == inside[:, :, 0]).all()


def test_a_set_for_a_single_image_is_the_definition():
    """Nine scores and a coverage of 0.8: the eighth is the threshold."""
    truth = np.zeros(9, int)
    stated = np.linspace(0.1, 0.9, 9)
    sets = conformal.fit_sets(np.stack([stated, 1 - stated], 1), truth, coverage=0.8)
    assert sets.thresholds == pytest.approx((0.8, 0.8))
    found = conformal.predict_sets(sets, np.array([[0.3, 0.7], [0.15, 0.85], [0.2, 0.8]]))
    assert found.tolist() == [[True, True], [False, True], [True, True]]


def test_adaptive_sets_take_classes_by_probability():
    found = conformal.nonconformity(np.array([[0.2, 0.5, 0.3]]), "aps")
    assert found[0] == pytest.approx([1.0, 0.5, 0.8])


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_is_at_least_that_chosen(method, by_class):
    hits = []
    for seed in range(30):
        fit, truth = make(400, seed=seed, skew=True)
        test, answer = make(400, seed=1000 + seed, skew=True)
        sets = conformal.fit_sets(fit, truth, coverage=0.9, method=method, by_class=by_class)
        inside = conformal.predict_sets(sets, test, at_least_one=False)
        hit = inside[np.arange(400), answer]
        hits.append([hit[answer == k].mean() for k in range(5)] if by_class else [hit.mean()])
    for share in np.mean(hits, axis=0):
        assert share > 0.885
    if method == "lac" and not by_class:
        assert np.mean(hits) < 0.915


def test_classes_without_enough_images_are_in_every_set():
    fit, truth = make(200)
    truth[truth == 4] = -1
    sets = conformal.fit_sets(fit, truth, by_class=True)
    assert sets.thresholds[4] == float("inf")
    assert conformal.predict_sets(sets, make(50, seed=1)[0])[:, 4].all()


def test_no_set_is_empty_unless_asked():
    sets = conformal.ConformalSets("lac", 0.5, (0.1, 0.1), False)
    image = np.array([[0.6, 0.4]])
    assert conformal.predict_sets(sets, image).tolist() == [[True, False]]
    assert conformal.predict_sets(sets, image, at_least_one=False).tolist() == [[False, False]]
    with pytest.raises(ValueError, match="give lac or aps"):
        conformal.fit_sets(image, np.array([0]), method="raps")
    with pytest.raises(ValueError, match="coverage"):
        conformal.fit_sets(image, np.array([0]), coverage=90)


def test_coverage_is_reported_by_class_and_age_band():
    inside = np.array([[1, 0], [1, 1], [0, 1], [0, 1]], bool)
    label, ages = np.array([0, 0, 0, -1]), np.array([5.0, 13.0, np.nan, 5.0])
    found = conformal.set_coverage(inside, label, np.arange(4), ("a", "b"), ages)
    assert found["all"]["coverage"].value == pytest.approx(2 / 3)
    assert found["all"]["mean_size"] == pytest.approx(4 / 3)
    assert found["all"]["single"] == pytest.approx(2 / 3)
    assert list(found["class"]) == ["a"]
    assert list(found["age_band"]) == ["1-12 months", "1-2 years"]
    assert found["age_band"]["1-12 months"]["n"] == 1


def test_age_intervals_are_those_of_mapie():
    rng = np.random.default_rng(0)
    age = rng.uniform(0, 100, 150)
    predicted = age + rng.normal(size=150) * 5
    theirs = SplitConformalRegressor(
        StatedAge().fit(None, None), confidence_level=0.9, prefit=True
    ).conformalize(predicted[:100, None], age[:100])
    _, limits = theirs.predict_interval(predicted[100:, None])
    width = conformal.fit_age_interval(predicted[:100], age[:100], coverage=0.9)
    low, high = conformal.age_interval(predicted[100:], width)
    assert high == pytest.approx(limits[:, 1, 0])
    assert low == pytest.approx(np.maximum(limits[:, 0, 0], 0))


def test_age_intervals_follow_the_difficulty_and_cover():
    rng = np.random.default_rng(0)
    age = rng.uniform(0, 200, 4000)
    difficulty = 1 + age / 20
    predicted = age + rng.normal(size=4000) * difficulty
    age[:10] = np.nan
    fit, test = slice(0, 2000), slice(2000, 4000)
    width = conformal.fit_age_interval(predicted[fit], age[fit], difficulty=difficulty[fit])
    assert width == pytest.approx(1.645, rel=0.06)
    low, high = conformal.age_interval(predicted[test], width, difficulty[test])
    found = conformal.age_interval_coverage(low, high, age[test], np.arange(2000))
    for name in ("all", "1-2 years", "12-18 years"):
        assert found[name].value == pytest.approx(0.9, abs=0.07)
    assert (low >= 0).all()
    assert conformal.fit_age_interval(predicted[20:25], age[20:25], coverage=0.9) is None
