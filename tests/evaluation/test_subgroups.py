"""Subgroups against metrics of the parts, Welch's test, and simulated power."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from infantxray.evaluation import roc, subgroups
from infantxray.evaluation.estimates import Linearised, Scores
from infantxray.evaluation.metrics import Predictions, headline


def make(n=240, patients=None, seed=0, k=3):
    rng = np.random.default_rng(seed)
    label = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[label]
    label[:5] = -1
    ages = rng.uniform(0, 60, n)
    ages[7] = np.nan
    patient = np.arange(n) if patients is None else rng.integers(patients, size=n)
    return Predictions(
        classes=tuple("abcdef"[:k]),
        probabilities=np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        label=label,
        age_months=ages,
        age_predicted_months=ages + rng.normal(size=n),
        patient=patient,
    )


def mean_of(values, patient):
    return {"m": (lambda rows: Linearised.mean(values[rows], patient[rows]).embed(rows), None)}


def test_groups_have_the_metrics_of_their_images():
    predictions = make()
    groups = np.array(["x", "y", ""], object)[np.arange(240) % 3]
    found = subgroups.subgroups(groups, predictions.patient, subgroups.measures(predictions))
    assert found["unknown"] == 80
    for row in found["groups"]:
        expected = headline(predictions.take(groups == row["group"]))
        for name in ("accuracy", "recall", "roc_auc", "age_mae_months"):
            assert row[name].value == pytest.approx(expected[name], abs=1e-9)
            assert row[name].low < row[name].value < row[name].high
    assert [row["n_patients"] for row in found["groups"]] == [80, 80]


def test_a_class_of_one_patient_counts_as_in_the_headline():
    """Such a class has no variance of its own, and must not make the interval shorter."""
    predictions = make(120, k=3)
    rare = np.flatnonzero(predictions.label == 2)
    groups = np.full(120, "x", object)
    groups[rare[1:]] = "y"  # One patient of the third class stays.
    groups[::7] = "y"
    groups[rare[0]] = "x"
    rows = groups == "x"
    assert (predictions.label[rows] == 2).sum() == 1
    measures = subgroups.measures(predictions)
    found = subgroups.subgroups(groups, predictions.patient, measures)["groups"][0]
    expected = headline(predictions.take(rows))
    for name in ("recall", "roc_auc"):
        assert found[name].value == pytest.approx(expected[name], abs=1e-9)
        assert found[name].note.startswith("1 patients")
        # The share of the class in the variance of the mean.
        assert np.square(measures[name][0](rows).influence[rare[0]]) >= (0.5 / 3) ** 2


def test_thresholds_add_sensitivity_and_specificity():
    predictions = make()
    measures = subgroups.measures(predictions, {"b": 0.4})
    named, truth = predictions.probabilities[:, 1] >= 0.4, predictions.label == 1
    everyone = np.ones(240, bool)
    found = {name: measures[f"{name}/b"][0](everyone) for name in ("sensitivity", "specificity")}
    assert found["sensitivity"].value == pytest.approx(named[truth].mean())
    rest = (predictions.label >= 0) & ~truth
    assert found["specificity"].value == pytest.approx((~named)[rest].mean())


def test_findings_are_measured_on_their_known_images():
    rng = np.random.default_rng(0)
    probabilities, outcome = rng.random((100, 2)), rng.random((100, 2)) < 0.4
    known, rows = rng.random((100, 2)) < 0.7, np.arange(100) < 60
    measures = subgroups.finding_measures(
        ("a", "b"), probabilities, np.where(known, outcome, -1), known, np.arange(100), {"b": 0.5}
    )
    here = [known[:, k] & rows for k in range(2)]
    areas = [roc_auc_score(outcome[here[k], k], probabilities[here[k], k]) for k in range(2)]
    assert measures["roc_auc"][0](rows).value == pytest.approx(np.mean(areas))
    positive = here[1] & outcome[:, 1]
    hits = probabilities[positive, 1] >= 0.5
    assert measures["sensitivity/b"][0](rows).value == pytest.approx(hits.mean())


def test_gap_of_independent_groups_is_welch():
    rng = np.random.default_rng(0)
    values, second = rng.normal(size=100), np.arange(100) >= 60
    measure = {
        "m": (lambda rows: Linearised.mean(values[rows], np.arange(100)[rows]).embed(rows), None)
    }
    groups = np.where(second, "small", "large")
    (row,) = subgroups.subgroups(groups, np.arange(100), measure)["gaps"]
    welch = scipy.stats.ttest_ind(values[second], values[~second], equal_var=False)
    error = (values[second].mean() - values[~second].mean()) / welch.statistic
    assert (row["group"], row["reference"]) == ("small", "large")
    assert row["gap"].value == pytest.approx(values[second].mean() - values[~second].mean())
    assert row["gap"].standard_error == pytest.approx(error, rel=1e-9)
    assert row["gap"].p == pytest.approx(welch.pvalue, abs=0.01)
    assert row["detectable"] == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)


def test_patients_in_both_groups_are_paired():
    """The gap between two views of the same patients has the error of the paired difference."""
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(size=50), 2)
    values, view = own + 0.1 * rng.normal(size=100), np.tile(["ap", "lateral"], 50)
    patient = np.repeat(np.arange(50), 2)
    measure = mean_of(values, patient)
    (row,) = subgroups.subgroups(view, patient, measure)["gaps"]
    difference = values[::2] - values[1::2]
    assert row["gap"].standard_error == pytest.approx(difference.std(ddof=1) / np.sqrt(50))


def test_p_values_are_corrected_for_all_gaps():
    predictions = make()
    groups = np.array(list("wxyz"), object)[np.arange(240) % 4]
    measures = subgroups.measures(predictions)
    found = subgroups.subgroups(groups, predictions.patient, measures, all_pairs=True)["gaps"]
    assert len(found) == 6 * 4
    expected = multipletests([row["gap"].p for row in found], method="holm")[1]
    assert [row["p_holm"] for row in found] == pytest.approx(expected)
    few = subgroups.subgroups(groups, predictions.patient, measures)["gaps"]
    assert len(few) == 3 * 4


def test_the_detectable_gap_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(0)
    patient, groups = np.arange(200), np.repeat(["x", "y"], 100)
    found = []
    for _ in range(400):
        values = rng.normal(size=200)
        values[100:] += 2.8016 * np.sqrt(2 / 100)
        measure = {
            "m": (lambda rows, v=values: Linearised.mean(v[rows], patient[rows]).embed(rows), None)
        }
        (row,) = subgroups.subgroups(groups, patient, measure)["gaps"]
        found.append((row["gap"].p < 0.05, row["detectable"]))
    power, detectable = np.mean(found, axis=0)
    assert power == pytest.approx(0.8, abs=0.05)
    assert detectable == pytest.approx(2.8016 * np.sqrt(2 / 100), rel=0.02)


def test_gap_of_shares_is_newcombe():
    hits, second = np.arange(75) % 40 < 28, np.arange(75) >= 40
    (row,) = subgroups.subgroups(second.astype(str), np.arange(75), mean_of(hits, np.arange(75)))[
        "gaps"
    ]
    counts = (hits[second].sum(), 35, hits[~second].sum(), 40)
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    assert (row["gap"].low, row["gap"].high) == pytest.approx((low, high), abs=1e-9)


def test_small_groups_have_a_reason_or_a_note():
    predictions = make()
    groups = np.where(np.arange(240) == 10, "one", "rest")
    groups[:9] = "few"
    found = subgroups.subgroups(groups, predictions.patient, subgroups.measures(predictions))
    few, one, rest = found["groups"]
    assert np.isnan(one["accuracy"].value)
    assert one["accuracy"].note == "fewer than 2 patients"
    assert few["accuracy"].note.startswith("4 patients")
    assert rest["accuracy"].note == ""
    gaps = {(row["group"], row["metric"]): row for row in found["gaps"]}
    assert np.isnan(gaps["one", "accuracy"]["p_holm"])
    with pytest.raises(ValueError, match="3 group labels"):
        subgroups.subgroups(groups[:3], predictions.patient, {})
    assert subgroups.subgroups(np.full(240, ""), predictions.patient, {})["gaps"] == []


def test_macro_area_has_the_error_of_the_areas_when_there_are_two_classes():
    predictions = make(k=2, patients=60)
    rows = np.ones(240, bool)
    linear = subgroups.measures(predictions)["roc_auc"][0](rows)
    area = roc.auc(Scores.of_class(predictions, 1))
    _, index = np.unique(predictions.patient, return_inverse=True)
    found = linear.metric(index, (0.0, 1.0))
    assert found.value == pytest.approx(area.value)
    assert found.standard_error == pytest.approx(area.standard_error, rel=0.02)


def test_age_bands_are_those_of_the_metrics():
    ages = np.array([0.5, 11.9, 12.0, 300.0, np.nan])
    expected = ["0-28 days", "1-12 months", "1-2 years", "18 years and over", ""]
    assert subgroups.age_bands(ages).tolist() == expected


def test_small_groups_without_a_mistake_are_no_evidence_of_a_gap():
    """Their variance is estimated as zero."""
    groups = np.array(["large"] * 100 + ["small"] * 3, object)
    right = np.array([True] * 85 + [False] * 15 + [True] * 3)
    patient = np.arange(103)
    (share,) = subgroups.subgroups(groups, patient, mean_of(right, patient))["gaps"]
    assert share["gap"].value == pytest.approx(0.15)
    assert share["gap"].low < 0 < share["gap"].high
    assert share["gap"].p > 0.3
    assert share["detectable"] > 0.4
    (other,) = subgroups.subgroups(groups, patient, mean_of(right * 1.0, patient))["gaps"]
    assert np.isnan(other["gap"].p)
    assert "fewer than 5 patients" in other["gap"].note


def test_the_test_of_a_gap_agrees_with_its_interval():
    rng = np.random.default_rng(0)
    for n in (12, 40, 200):
        right, groups = rng.uniform(size=3 * n) < 0.8, np.array(["a", "a", "b"] * n, object)
        right[groups == "b"] &= rng.uniform(size=n) < 0.7
        patient = np.arange(3 * n)
        (row,) = subgroups.subgroups(groups, patient, mean_of(right, patient))["gaps"]
        assert (row["gap"].p < 0.05) == (not row["gap"].low < 0 < row["gap"].high)


def test_groups_come_in_the_order_of_their_numbers():
    names = ["1-12 months", "2-5 years", "12-18 years", "0-28 days", "100 to 150", "39 to 60", "F"]
    groups = np.repeat(np.array(names, object), 4)
    measure = {"size": (lambda rows: "not computed", None)}
    found = subgroups.subgroups(groups, np.arange(len(groups)), measure)
    assert [row["group"] for row in found["groups"]] == [
        *("0-28 days", "1-12 months", "2-5 years", "12-18 years", "39 to 60", "100 to 150", "F")
    ]
