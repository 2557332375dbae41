"""ROC areas against pauc, scikit-learn and covariances computed from all pairs of images."""

import numpy as np
import pauc
import pytest
from sklearn.metrics import roc_auc_score

from infantxray.evaluation import roc
from infantxray.evaluation.estimates import Scores


def make(n=150, patients=None, seed=0, decimals=2):
    """Scores of two models with ties; `patients` shares images among so many."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) if patients is None else rng.integers(patients, size=n)
    own = rng.normal(size=n)[patient]
    positive = own + rng.normal(size=n) > 0.5
    first = positive + own + rng.normal(size=n)
    second = first + rng.normal(size=n)
    return [Scores.of(positive, np.round(s, decimals), patient) for s in (first, second)]


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_delong_is_that_of_pauc(decimals):
    first, second = make(decimals=decimals)
    areas, covariance, _ = roc.delong([first, second])
    theirs = [pauc.ROC(s.positive, s.score, direction="<") for s in (first, second)]
    assert areas == pytest.approx([t.auc for t in theirs], abs=1e-12)
    for i in range(2):
        assert covariance[i, i] == pytest.approx(pauc.var(theirs[i]), abs=1e-12)
    assert covariance[0, 1] == pytest.approx(pauc.cov(*theirs), abs=1e-12)
    difference = roc.auc_difference(first, second)
    assert difference.p == pytest.approx(pauc.compare(*theirs).p_value, abs=1e-9)


def obuchowski(first, second):
    """Variance of the first area and covariance of both, from all pairs."""
    positive, patient = first.positive, first.patient
    everyone = np.unique(patient)
    m, n = positive.sum(), (~positive).sum()
    sums = []
    for s in (first, second):
        difference = s.score[positive][:, None] - s.score[~positive]
        wins = (difference > 0) + 0.5 * (difference == 0)
        area = wins.mean()
        of_positive, of_negative = wins.mean(1), wins.mean(0)
        sums.append(
            [
                [(values[patient[side] == p] - area).sum() for p in everyone]
                for values, side in ((of_positive, positive), (of_negative, ~positive))
            ]
        )
    counts = [len(np.unique(patient[side])) for side in (positive, ~positive)]
    total = len(everyone)

    def covariance(a, b):
        s10 = counts[0] / (counts[0] - 1) / m * np.dot(a[0], b[0])
        s01 = counts[1] / (counts[1] - 1) / n * np.dot(a[1], b[1])
        s11 = total / (total - 1) * (np.dot(a[0], b[1]) + np.dot(a[1], b[0]))
        return s10 / m + s01 / n + s11 / (m * n)

    return covariance(sums[0], sums[0]), covariance(sums[0], sums[1])


@pytest.mark.parametrize("patients", [None, 40])
def test_covariance_is_that_of_all_pairs(patients):
    scores = make(patients=patients, decimals=1)
    _, covariance, _ = roc.delong(scores)
    variance, both = obuchowski(*scores)
    assert covariance[0, 0] == pytest.approx(variance, abs=1e-12)
    assert covariance[0, 1] == pytest.approx(both, abs=1e-12)


def test_copies_of_images_add_no_certainty():
    first, _ = make()
    copied = Scores.of(*(np.repeat(v, 4) for v in (first.positive, first.score, first.patient)))
    one, four = roc.auc(first), roc.auc(copied)
    assert four.value == pytest.approx(one.value)
    assert four.standard_error == pytest.approx(one.standard_error)
    linear = roc.auc_linearised(first)
    assert (linear.influence**2).sum() == pytest.approx(one.standard_error**2)


def test_a_difference_to_itself_is_none():
    first, _ = make()
    found = roc.auc_difference(first, first)
    assert (found.value, found.p) == (0, 1)


def test_perfect_separation_and_single_patients_have_an_interval_and_a_note():
    perfect = roc.auc(Scores.of([0] * 30 + [1] * 20, np.arange(50.0)))
    assert perfect.value == perfect.high == 1
    assert 0.85 < perfect.low < 1
    assert "Newcombe" in perfect.note
    alone = roc.auc(Scores.of([0] * 30 + [1], [*range(30), 20.5]))
    assert alone.low < alone.value < alone.high
    wrong = roc.auc(Scores.of([1] * 20 + [0] * 30, np.arange(50.0)))
    assert wrong.low == 0
    assert wrong.high == pytest.approx(1 - perfect.low)


def test_what_cannot_be_computed_is_none_with_a_reason():
    scores = Scores.of([1, 1, 1], [0.1, 0.2, 0.3])
    for found in (roc.auc(scores), roc.auc_difference(scores, scores)):
        assert np.isnan(found.value)
        assert found.note == "no negative image"
    with pytest.raises(ValueError, match="same images"):
        roc.auc_difference(*make()[:1], make(seed=1)[0])
    with pytest.raises(ValueError, match="no negative image"):
        roc.delong([scores])


@pytest.mark.parametrize("limit", [0.03, 0.1, 0.37, 0.9])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_partial_area_is_that_of_scikit_learn(limit, decimals):
    scores = make(decimals=decimals)[0]
    found = roc.partial_auc(scores, max_fpr=limit).value
    theirs = roc_auc_score(scores.positive, scores.score, max_fpr=limit)
    assert found == pytest.approx(theirs, abs=1e-12)
    # The same area from the other side: misses are false alarms of the negated outcome.
    found = roc.partial_auc(scores, min_sensitivity=1 - limit).value
    theirs = roc_auc_score(~scores.positive, -scores.score, max_fpr=limit)
    assert found == pytest.approx(theirs, abs=1e-12)


def test_error_of_a_partial_area_is_that_of_the_bootstrap():
    scores = make(n=400, decimals=9)[0]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(500):
        rows = rng.integers(400, size=400)
        part = Scores.of(scores.positive[rows], scores.score[rows])
        drawn.append(roc.partial_auc(part, max_fpr=0.2).value)
    found = roc.partial_auc(scores, max_fpr=0.2)
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.12)
    assert found.low < found.value < found.high


def test_partial_area_refuses_impossible_ranges():
    scores = make()[0]
    with pytest.raises(ValueError, match="give max_fpr or"):
        roc.partial_auc(scores)
    with pytest.raises(ValueError, match=r"within \(0, 1\)"):
        roc.partial_auc(scores, max_fpr=1.5)


def test_area_of_each_kind_of_outlier():
    inside = np.arange(20.0)
    found = roc.auc_by_kind(inside, {"noise": inside + 100, "same": inside})
    assert found["noise"].value == 1
    assert found["same"].value == pytest.approx(0.5)
