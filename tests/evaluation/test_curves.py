"""Curves against scikit-learn, statsmodels, dcurves and numerical derivatives."""

import dcurves
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss

from infantxray.evaluation import curves, recalibration
from infantxray.evaluation.estimates import Scores


def make(n=200, patients=None, seed=0, decimals=3):
    rng = np.random.default_rng(seed)
    patient = np.arange(n) if patients is None else rng.integers(patients, size=n)
    x = rng.normal(size=n)
    positive = rng.random(n) < expit(0.7 * x - 0.5 + 0.5 * rng.normal(size=n)[patient])
    probability = np.round(np.clip(expit(x), 0.01, 0.99), decimals)
    return Scores.of(positive, probability, patient)


@pytest.mark.parametrize("decimals", [1, 3])
def test_average_precision_is_that_of_scikit_learn(decimals):
    scores = make(decimals=decimals)
    theirs = average_precision_score(scores.positive, scores.score)
    assert curves.average_precision(scores).value == pytest.approx(theirs, abs=1e-12)


def test_influence_on_average_precision_is_its_derivative():
    """Of the weighted average precision of scikit-learn, image by image."""
    scores = make(n=40, decimals=1)
    linear = curves._average_precision(scores)
    step, found = 1e-6, []
    for i in range(40):
        weights = np.ones(40)
        weights[i] += step
        value = average_precision_score(scores.positive, scores.score, sample_weight=weights)
        found.append((value - linear.value) / step)
    groups = scores.positive.sum()
    assert linear.influence == pytest.approx(
        np.array(found) * np.sqrt(groups / (groups - 1)), abs=1e-5
    )


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.62])
def test_net_benefit_is_that_of_dcurves(threshold):
    scores, other = make(), make(seed=1)
    other = Scores.of(scores.positive, other.score)
    frame = pd.DataFrame({"y": scores.positive.astype(int), "m": scores.score, "b": other.score})
    theirs = dcurves.dca(data=frame, outcome="y", modelnames=["m", "b"], thresholds=[threshold])
    theirs = theirs.set_index("model")["net_benefit"]
    (row,) = curves.decision_curve(scores, [threshold], other)
    assert row["model"].value == pytest.approx(theirs["m"], abs=1e-9)
    assert row["baseline"].value == pytest.approx(theirs["b"], abs=1e-9)
    assert row["all"].value == pytest.approx(theirs["all"], abs=1e-9)
    assert row["over_all"].value == pytest.approx(theirs["m"] - theirs["all"], abs=1e-9)
    assert row["over_baseline"].value == pytest.approx(theirs["m"] - theirs["b"], abs=1e-9)
    for name in ("model", "baseline", "all"):
        assert row[name].low < row[name].value < row[name].high


def test_decision_curve_refuses_impossible_thresholds_and_other_images():
    with pytest.raises(ValueError, match="thresholds"):
        curves.decision_curve(make(), [0.0])
    with pytest.raises(ValueError, match="same images"):
        curves.decision_curve(make(), [0.5], make(seed=1))


@pytest.mark.parametrize("patients", [None, 60])
def test_recalibration_is_that_of_statsmodels(patients):
    scores = make(patients=patients)
    x, y = logit(scores.score), scores.positive.astype(float)
    kind = {} if patients is None else {
        "cov_type": "cluster",
        "cov_kwds": {"groups": scores.patient, "use_correction": False},
    }  # fmt: skip
    family = sm.families.Binomial()
    fits = (
        ("slope", sm.GLM(y, sm.add_constant(x), family=family).fit(tol=1e-13, **kind), 1),
        ("intercept", sm.GLM(y, np.ones(len(y)), family, offset=x).fit(tol=1e-13, **kind), 0),
    )
    found = recalibration.recalibration(scores)
    groups = len(np.unique(scores.patient))
    factor = 1 if patients is None else np.sqrt(groups / (groups - 1))
    for name, fit, place in fits:
        assert found[name].value == pytest.approx(fit.params[place], abs=1e-9)
        assert found[name].standard_error == pytest.approx(fit.bse[place] * factor, abs=1e-9)
    if patients is None:
        low, high = fits[0][1].conf_int()[1]
        assert (found["slope"].low, found["slope"].high) == pytest.approx((low, high), abs=1e-9)


def test_recalibration_of_separated_outcomes_is_none_with_a_reason():
    scores = Scores.of(np.arange(40) >= 20, np.linspace(0.01, 0.99, 40))
    found = recalibration.recalibration(scores)["slope"]
    assert np.isnan(found.value)
    assert "separated" in found.note
    assert "no positive" in recalibration.recalibration(Scores.of([0, 0], [0.1, 0.2]))["slope"].note


def test_calibration_curve_is_a_logistic_regression_on_a_spline():
    scores = make(n=300, decimals=9)
    found = recalibration.calibration_curve(scores, num_points=9, samples=50)
    x = logit(scores.score)
    knots = np.quantile(x, [0.05, 0.35, 0.65, 0.95])

    def basis(v):
        """Harrell's truncated power basis, written out."""

        def cube(u):
            return np.where(u > 0, u, 0) ** 3

        a, b, c, d = knots
        columns = [np.ones_like(v), v]
        for k in (a, b):
            columns.append(
                cube(v - k) - cube(v - c) * (d - k) / (d - c) + cube(v - d) * (c - k) / (d - c)
            )
        return np.stack(columns, 1)

    fit = sm.GLM(scores.positive.astype(float), basis(x), family=sm.families.Binomial()).fit()
    at = basis(np.linspace(*np.quantile(x, [0.01, 0.99]), 9))
    assert found["observed"] == pytest.approx(fit.predict(at), abs=1e-6)
    assert (np.array(found["low"]) <= found["observed"]).all()
    assert (np.array(found["high"]) >= found["observed"]).all()
    assert found["ici"] == pytest.approx(np.abs(fit.predict(basis(x)) - scores.score).mean())


def test_calibration_curve_finds_overconfidence():
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000) * 2
    scores = Scores.of(rng.random(4000) < expit(x / 2), expit(x))
    found = recalibration.calibration_curve(scores, samples=50)
    assert found["high"][-1] < found["predicted"][-1]
    assert found["low"][0] > found["predicted"][0]
    few = recalibration.calibration_curve(Scores.of(np.arange(60) < 4, np.linspace(0.1, 0.9, 60)))
    assert few["observed"] == []
    assert "fewer than 15" in few["note"]


@pytest.mark.parametrize("num_bins", [None, 7])
def test_brier_decomposition_adds_up(num_bins):
    scores = make(decimals=1)
    found = curves.brier_decomposition(scores, num_bins)
    theirs = brier_score_loss(scores.positive, scores.score)
    assert found["brier"] == pytest.approx(theirs, abs=1e-12)
    assert curves.brier(scores).value == pytest.approx(theirs, abs=1e-12)
    total = found["reliability"] - found["resolution"] + found["uncertainty"]
    assert total + found["within_bin"] == pytest.approx(theirs, abs=1e-12)
    if num_bins is None:
        assert found["within_bin"] == pytest.approx(0, abs=1e-12)
        by_hand = 0.0
        for p in np.unique(scores.score):
            rows = scores.score == p
            by_hand += rows.mean() * (p - scores.positive[rows].mean()) ** 2
        assert found["reliability"] == pytest.approx(by_hand, abs=1e-12)


def test_distribution_by_outcome_counts_every_image():
    scores = make()
    found = curves.outcome_distribution(scores, 10)
    for name, side in (("positive", scores.positive), ("negative", ~scores.positive)):
        counts, _ = np.histogram(scores.score[side], found["edges"])
        assert found[name]["counts"] == counts.tolist()
        assert found[name]["quantiles"][2] == pytest.approx(np.median(scores.score[side]))
    alone = curves.outcome_distribution(Scores.of([1], [1.0]))
    assert alone["negative"]["quantiles"] == []
    assert sum(alone["positive"]["counts"]) == 1


def test_risk_coverage_is_the_mean_over_random_orders_of_ties():
    rng = np.random.default_rng(0)
    confidence, wrong = np.round(rng.random(30), 1), rng.random(30) < 0.3
    found = curves.risk_coverage(confidence, wrong)
    areas, best = [], []
    for _ in range(3000):
        order = np.lexsort((rng.random(30), -confidence))
        areas.append((np.cumsum(wrong[order]) / np.arange(1, 31)).mean())
    best = (np.cumsum(np.sort(wrong)) / np.arange(1, 31)).mean()
    assert found["area"] == pytest.approx(np.mean(areas), abs=0.005)
    assert found["excess_area"] == pytest.approx(found["area"] - best)
    assert found["risk"][-1] == pytest.approx(wrong.mean())
    assert np.isnan(curves.risk_coverage(confidence[:0], wrong[:0])["area"])
