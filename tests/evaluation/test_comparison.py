"""Permutation tests against scipy and DeLong's, reclassification against counts."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar

from infantxray.evaluation import comparison, roc
from infantxray.evaluation.estimates import Scores


def make(n=200, gain=0.0, seed=0, patients=None):
    rng = np.random.default_rng(seed)
    patient = np.arange(n) if patients is None else rng.integers(patients, size=n)
    positive = rng.random(n) < 0.4
    shared = rng.normal(size=n)
    first = positive + shared + 0.7 * rng.normal(size=n)
    second = (1 + gain) * positive + shared + 0.7 * rng.normal(size=n)
    return [Scores.of(positive, s, patient) for s in (first, second)]


def test_sign_flips_are_those_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=12), rng.normal(size=12) + 0.4
    exact = scipy.stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples"
    )
    found = comparison.sign_flip_test(first, second, np.arange(12), samples=20_000)
    assert found == pytest.approx(exact.pvalue, abs=0.01)


def test_sign_flips_of_hits_are_mcnemar():
    rng = np.random.default_rng(1)
    first, second = rng.random(300) < 0.8, rng.random(300) < 0.72
    table = [[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)]
    found = comparison.sign_flip_test(first, second, np.arange(300), samples=20_000)
    assert found == pytest.approx(mcnemar(table, exact=True).pvalue, abs=0.012)


def test_patients_flip_as_one():
    """Copies of the images change nothing."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=20), rng.normal(size=20) + 0.5
    one = comparison.sign_flip_test(first, second, np.arange(20))
    copied = comparison.sign_flip_test(*(np.repeat(v, 3) for v in (first, second, np.arange(20))))
    assert copied == one
    assert comparison.sign_flip_test(first, first, np.arange(20)) == 1
    assert np.isnan(comparison.sign_flip_test(first[:0], second[:0], np.arange(0)))


@pytest.mark.parametrize("gain", [0.0, 0.7])
def test_permutations_of_areas_agree_with_delong(gain):
    first, second = make(gain=gain)
    found = comparison.auc_permutation_test(first, second)
    assert found == pytest.approx(roc.auc_difference(first, second).p, abs=0.05)
    assert (found < 0.05) == (gain > 0)
    assert comparison.auc_permutation_test(first, first, samples=20) == 1


def test_permutation_of_areas_is_exact_for_few_patients():
    """All swaps of six patients, with each area from scikit-learn's definition."""
    first, second = make(n=6, seed=5)
    assert first.positive.any()
    ranks = [scipy.stats.rankdata(s.score) for s in (first, second)]

    def area(rank):
        return roc.auc(Scores.of(first.positive, rank)).value

    statistics = []
    for bits in range(2**6):
        swap = (bits >> np.arange(6)) & 1 == 1
        one, other = np.where(swap, ranks[1], ranks[0]), np.where(swap, ranks[0], ranks[1])
        statistics.append(abs(area(one) - area(other)))
    exact = np.mean(np.array(statistics) >= statistics[0] - 1e-9)
    found = comparison.auc_permutation_test(first, second, samples=4000)
    assert found == pytest.approx(exact, abs=0.03)


def test_reclassification_counts_and_improvement():
    positive = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], bool)
    first = Scores.of(positive, [0.1, 0.2, 0.6, 0.9, 0.1, 0.3, 0.6, 0.7, 0.9])
    second = Scores.of(positive, [0.6, 0.2, 0.9, 0.1, 0.1, 0.1, 0.1, 0.7, 0.2])
    found = comparison.reclassification(first, second, [0.25, 0.5])
    assert found["positive"] == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert found["negative"] == [[1, 0, 0], [1, 0, 0], [2, 0, 1]]
    assert found["nri_positive"].value == 0
    assert found["nri_negative"].value == pytest.approx(3 / 5)
    assert found["nri"].value == pytest.approx(3 / 5)
    # Pencina's standard error with independent images, n - 1 in place of n.
    moves = np.array([0, 1, 1, 1, 0])
    assert found["nri_negative"].standard_error == pytest.approx(moves.std(ddof=1) / np.sqrt(5))


def test_reclassification_needs_the_same_images_and_increasing_thresholds():
    first, second = make()
    with pytest.raises(ValueError, match="increase"):
        comparison.reclassification(first, second, [0.5, 0.2])
    with pytest.raises(ValueError, match="same images"):
        comparison.reclassification(first, make(seed=1)[0], [0.5])
    found = comparison.reclassification(*[Scores.of([0, 0], [0.1, 0.9])] * 2, [0.5])
    assert found["nri"].note == "no positive image"
