"""Intervals against statsmodels, and properties that clustered patients must have."""

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from infantxray.evaluation import estimates
from infantxray.evaluation.estimates import Linearised, Scores


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 11), (40, 41), (95, 100), (20, 20)])
def test_proportion_of_independent_images_is_wilson(hits, count):
    found = estimates.proportion(np.arange(count) < hits, np.arange(count))
    low, high = proportion_confint(hits, count, method="wilson")
    assert found.value == pytest.approx(hits / count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert bool(found.note) == (count < estimates.FEW_PATIENTS)


def test_copies_of_images_add_no_certainty():
    """Five equal images a patient are worth one image a patient."""
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.8
    alone = estimates.proportion(hits, np.arange(400))
    copied = estimates.proportion(np.repeat(hits, 5), np.repeat(np.arange(400), 5))
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.01)
    # All hits: Kish's number is that of the patients.
    copied = estimates.proportion(np.ones(100, bool), np.repeat(np.arange(20), 5))
    assert copied.low == pytest.approx(estimates.proportion(np.ones(20), np.arange(20)).low)


def test_clustered_standard_error_is_that_of_a_cluster_robust_regression():
    rng = np.random.default_rng(1)
    patient = rng.integers(30, size=120)
    values = rng.normal(size=30)[patient] + rng.normal(size=120)
    _, index = np.unique(patient, return_inverse=True)
    found = Linearised.mean(values, index).metric(index)
    fit = sm.OLS(values, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": patient})
    assert found.standard_error == pytest.approx(fit.bse[0], rel=1e-9)


def test_difference_of_independent_shares_is_newcombe():
    first, second = (
        estimates.proportion(np.arange(n) < k, np.arange(n)) for k, n in ((30, 40), (12, 35))
    )
    found = estimates.difference(first, second, 1.0, 0.0)
    low, high = confint_proportions_2indep(30, 40, 12, 35, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_ratio_is_the_inverse_of_the_inverse_ratio():
    first, second = (
        estimates.proportion(np.arange(n) < k, np.arange(n)) for k, n in ((30, 40), (12, 35))
    )
    one, other = estimates.ratio(first, second, 0.2), estimates.ratio(second, first, 0.2)
    assert one.low < one.value < one.high
    assert (one.low, one.high) == pytest.approx((1 / other.high, 1 / other.low))
    none = estimates.proportion(np.zeros(20), np.arange(20))
    assert estimates.ratio(first, none).high == float("inf")
    assert 0 < estimates.ratio(first, none).low < float("inf")
    assert np.isnan(estimates.ratio(none, none).value)
    assert estimates.ratio(none, none).note


def test_metrics_without_an_interval_say_why():
    one = Linearised.mean(np.arange(4.0), np.zeros(4, int)).metric(np.zeros(4, int))
    assert np.isnan(one.low)
    assert "one patient" in one.note
    same = Linearised.mean(np.ones(20), np.arange(20)).metric(np.arange(20), (0.0, 1.0))
    assert np.isnan(same.low)
    assert "no variation" in same.note
    nothing = estimates.proportion(np.zeros(0, bool), np.zeros(0, int), "positive image")
    assert np.isnan(nothing.value)
    assert nothing.note == "no positive image"


def test_interval_within_bounds_is_symmetric_on_the_logit_scale():
    found = estimates.t_interval(0.9, 0.05, np.inf, (0.0, 1.0))
    low, middle, high = (np.log(v / (1 - v)) for v in (found.low, found.value, found.high))
    assert high - middle == pytest.approx(middle - low)
    assert high - middle == pytest.approx(1.959963984540054 * 0.05 / (0.9 * 0.1))


def test_scores_leave_unknown_images_out_and_refuse_what_they_cannot_use():
    scores = Scores.of([1, 0, -1, 1], [0.9, 0.2, np.nan, 0.7], list("abac"), np.array([1, 1, 0, 1]))
    assert len(scores) == 3
    assert scores.num_patients == 3
    assert scores.sides() == (2, 1)
    with pytest.raises(ValueError, match="finite score"):
        Scores.of([1, 0], [0.5, np.nan])
    with pytest.raises(ValueError, match="outcome of 0 or 1"):
        Scores.of([1, -1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"\(2,\) and score \(3,\)"):
        Scores.of([1, 0], [0.5, 0.4, 0.2])
    with pytest.raises(ValueError, match=r"patient \(3,\)"):
        Scores.of([1, 0], [0.5, 0.4], [1, 2, 3])
