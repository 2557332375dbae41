import json
import math

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from infantxray.evaluation import metrics
from infantxray.evaluation.metrics import Predictions

NAN = float("nan")


def make(label, probabilities=None, age=None, predicted_age=None, patient=None, k=3):
    label = np.asarray(label)
    n = len(label)
    if probabilities is None:
        probabilities = np.eye(k)[np.maximum(label, 0)] if k else np.zeros((n, 0))
    return Predictions(
        classes=tuple("abcdefghijk"[:k]),
        probabilities=np.asarray(probabilities, np.float32),
        label=label,
        age_months=np.asarray(age if age is not None else [NAN] * n, np.float32),
        age_predicted_months=np.asarray(
            predicted_age if predicted_age is not None else [NAN] * n, np.float32
        ),
        patient=np.asarray(patient if patient is not None else range(n), dtype=object),
    )


def random_case(seed, n=60, k=4, ties=False, absent=()):
    rng = np.random.default_rng(seed)
    label = rng.choice([c for c in range(k) if c not in absent], n)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[label] * rng.random((n, 1))
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), label


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn(seed, ties, absent):
    probabilities, label = random_case(seed, ties=ties, absent=absent)
    predicted = probabilities.argmax(1)
    present = sorted(set(label))
    ours = metrics.classification(probabilities, label)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        label, predicted, labels=present, average="macro", zero_division=0
    )
    areas = [reference.roc_auc_score(label == c, probabilities[:, c]) for c in present]
    assert ours == pytest.approx(
        {
            "accuracy": reference.accuracy_score(label, predicted),
            "recall": recall,
            "precision": precision,
            "f1": f1,
            "roc_auc": np.mean(areas),
        }
    )
    each = metrics.per_class(metrics.confusion_matrix(label, predicted, 4))
    values = reference.precision_recall_fscore_support(
        label, predicted, labels=present, zero_division=0
    )
    for name, column in zip(("precision", "recall", "f1"), values, strict=False):
        np.testing.assert_allclose(each[name][present], column)
        assert np.isnan(np.delete(each[name], present)).all()


def test_confusion_matrix_is_scikit_learns():
    probabilities, label = random_case(0, k=5)
    predicted = probabilities.argmax(1)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(label, predicted, 5),
        reference.confusion_matrix(label, predicted, labels=range(5)),
    )
    # Rows are the truth.
    assert metrics.confusion_matrix(np.array([0]), np.array([2]), 3)[0, 2] == 1


_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30).filter(
    lambda rows: len({positive for positive, _ in rows}) == 2
)


@settings(max_examples=100, deadline=None)
@given(_scores)
def test_area_and_curve_against_counting_pairs(rows):
    positive = np.array([p for p, _ in rows])
    score = np.array([s for _, s in rows], float)
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in score[positive] for b in score[~positive]
    ]
    area = metrics.roc_auc(positive, score)
    assert area == pytest.approx(np.mean(pairs))
    false, true = metrics.roc_curve(positive, score)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(area)


def test_curve_is_scikit_learns():
    probabilities, label = random_case(3, ties=True)
    ours = metrics.roc_curve(label == 1, probabilities[:, 1])
    theirs = reference.roc_curve(label == 1, probabilities[:, 1], drop_intermediate=False)[:2]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)


def test_precision_and_recall_are_scikit_learns():
    probabilities, label = random_case(3, ties=True)
    recall, precision = metrics.pr_curve(label == 1, probabilities[:, 1])
    theirs = reference.precision_recall_curve(label == 1, probabilities[:, 1])
    np.testing.assert_allclose(precision, theirs[0][:-1][::-1])
    np.testing.assert_allclose(recall, theirs[1][:-1][::-1])


def test_area_needs_both_sides():
    assert math.isnan(metrics.roc_auc(np.ones(3, bool), np.arange(3.0)))
    assert math.isnan(metrics.roc_auc(np.zeros(3, bool), np.arange(3.0)))
    assert math.isnan(metrics.roc_auc(np.zeros(0, bool), np.zeros(0)))


def test_unknown_labels_are_left_out():
    probabilities, label = random_case(1)
    more = np.concatenate([probabilities, probabilities[:5]])
    unknown = np.concatenate([label, np.full(5, -1)])
    assert metrics.classification(more, unknown) == metrics.classification(probabilities, label)


def test_a_class_never_predicted_has_precision_zero_and_one_without_cases_none():
    confusion = np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]])
    scores = metrics.per_class(confusion)
    np.testing.assert_allclose(scores["recall"], [0.75, 0.0, NAN])
    np.testing.assert_allclose(scores["precision"], [0.6, 0.0, NAN])
    np.testing.assert_allclose(scores["f1"], [2 / 3, 0.0, NAN])


def test_age_error_is_over_images_of_known_age():
    predictions = make([0, 0, 0], age=[10, NAN, 4], predicted_age=[13, 99, 3])
    assert metrics.age_mae(predictions) == pytest.approx(2.0)
    assert math.isnan(metrics.age_mae(make([0, 1])))


def test_age_bands_share_out_every_image_once():
    ages = [0.0, 0.5, 0.91, 0.93, 11.99, 12.0, 23.9, 24, 59, 60, 143, 144, 215, 216, 900, NAN]
    predictions = make([0] * len(ages), age=ages, predicted_age=np.nan_to_num(ages) + 1)
    bands = metrics.by_age_band(predictions)
    assert [(b["band"], b["n"]) for b in bands] == [
        ("0-28 days", 3),
        ("1-12 months", 2),
        ("1-2 years", 2),
        ("2-5 years", 2),
        ("5-12 years", 2),
        ("12-18 years", 2),
        ("18 years and over", 2),
        ("unknown", 1),
    ]
    assert bands[0]["age_mae_months"] == pytest.approx(1.0)
    assert math.isnan(bands[-1]["age_mae_months"])
    assert [b["band"] for b in metrics.by_age_band(make([0, 0], age=[1.5, 30]))] == [
        "1-12 months",
        "2-5 years",
    ]


def brute_force_bootstrap(predictions, figure, samples, seed):
    """The same draws, image by image in plain Python."""
    patients = sorted(set(predictions.patient.tolist()))
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        rows = []
        for i in rng.integers(len(patients), size=len(patients)):
            rows += [j for j, p in enumerate(predictions.patient) if p == patients[i]]
        values.append(figure(predictions.take(np.array(rows))))
    return np.percentile([v for v in values if np.isfinite(v)], [2.5, 97.5])


def test_bootstrap_against_brute_force():
    probabilities, label = random_case(5, n=40)
    patient = np.random.default_rng(0).choice([f"p{i}" for i in range(12)], 40).astype(object)
    predictions = make(
        label, probabilities, age=np.arange(40.0), predicted_age=np.arange(40.0) ** 1.1,
        patient=patient, k=4,
    )  # fmt: skip
    intervals = metrics.bootstrap(predictions, metrics.headline, samples=60, seed=3)
    assert set(intervals) == set(metrics.HEADLINES)
    for name in metrics.HEADLINES:
        expected = brute_force_bootstrap(
            predictions, lambda p, name=name: metrics.headline(p)[name], 60, 3
        )
        np.testing.assert_allclose(intervals[name], expected, err_msg=name)
    assert intervals == metrics.bootstrap(predictions, metrics.headline, samples=60, seed=3)


def test_images_of_one_patient_are_not_independent():
    """Twenty copies of the same image of each patient do not make the interval shorter."""
    probabilities, label = random_case(2, n=15)

    def width(copies):
        predictions = make(
            np.repeat(label, copies), np.repeat(probabilities, copies, 0),
            patient=np.repeat(np.arange(15), copies), k=4,
        )  # fmt: skip
        low, high = metrics.bootstrap(predictions, metrics.headline, samples=200, seed=0)[
            "accuracy"
        ]
        return high - low

    assert width(20) == pytest.approx(width(1))


def test_an_interval_that_no_sample_can_compute_is_nan():
    intervals = metrics.bootstrap(make([0, 0, 0]), metrics.headline, samples=10, seed=0)
    assert np.isnan(intervals["roc_auc"]).all()
    assert np.isfinite(intervals["accuracy"]).all()


def summary(predictions, **options):
    result = metrics.to_json(metrics.summarise(predictions, **options))
    json.dumps(result, allow_nan=False)
    return result


def test_summary_has_every_figure_of_the_contract():
    probabilities, label = random_case(0, n=50)
    result = summary(
        make(label, probabilities, age=np.full(50, 5.0), predicted_age=np.full(50, 7.5),
             patient=np.arange(50) // 2, k=4),
        bootstrap_samples=20,
    )  # fmt: skip
    assert {
        "n", "accuracy", "recall", "precision", "f1", "roc_auc", "age_mae_months", "per_class",
        "confusion_matrix", "age_bands", "ci95",
    } <= result.keys()  # fmt: skip
    assert (result["n"], result["n_patients"]) == (50, 25)
    assert result["age_mae_months"] == pytest.approx(2.5)
    assert result["not_computed"] == {}
    assert sum(row["n"] for row in result["per_class"].values()) == 50
    np.testing.assert_array_equal(
        np.array(result["confusion_matrix"]).sum(1), np.bincount(label, minlength=4)
    )
    for name in metrics.HEADLINES:
        low, high = result["ci95"][name]
        assert low <= result[name] <= high
    assert "ci95" not in summary(make(label, probabilities, k=4), bootstrap_samples=0)


def test_what_cannot_be_computed_is_null_with_its_reason():
    """Never 0 and never 1."""
    absent = summary(make([0, 0, 1]), bootstrap_samples=0)
    assert absent["per_class"]["c"] == {
        "n": 0, "recall": None, "precision": None, "f1": None, "roc_auc": None,
    }  # fmt: skip
    assert absent["not_computed"] == {
        "per_class.c": "no image of this class",
        "age_mae_months": "the model has no age head",
        "age_bands": "no label, no second class or no age in some bands",
    }
    assert absent["recall"] == 1.0  # Over the classes that have cases.

    single = summary(make([1, 1], age=[NAN, NAN], predicted_age=[3, 4]), bootstrap_samples=5)
    assert single["roc_auc"] is None
    assert single["ci95"]["roc_auc"] == [None, None]
    assert single["not_computed"]["roc_auc"] == "images of one class alone"
    assert single["not_computed"]["age_mae_months"] == "no image has a known age"

    unlabelled = summary(make([-1, -1], [[1, 0, 0]] * 2), bootstrap_samples=0)
    for name in metrics.HEADLINES[:-1]:
        assert unlabelled[name] is None
        assert "no image has a known label" in unlabelled["not_computed"][name]

    ages = summary(make([-1, -1], age=[3, 4], predicted_age=[3, 5], k=0), bootstrap_samples=0)
    assert ages["accuracy"] is None
    assert ages["not_computed"]["accuracy"] == "the model has no condition head"
    assert ages["age_mae_months"] == 0.5
    assert "per_class" not in ages


@pytest.mark.parametrize(
    "predictions",
    [
        make([0, 0, 1]),
        make([1, 1], age=[NAN, 3], predicted_age=[3, 4]),
        make([-1, -1], [[1, 0, 0]] * 2),
        make([-1, -1], age=[3, 4], predicted_age=[3, 5], k=0),
    ],
)
def test_every_headline_that_is_null_has_a_reason(predictions):
    result = summary(predictions, bootstrap_samples=0)
    for name in metrics.HEADLINES:
        assert (result[name] is None) == (name in result["not_computed"]), name


def test_to_json():
    value = {
        "a": (np.float32(0.5), NAN, math.inf),
        "b": [np.int64(3), {"c": None, "d": "text", "e": True}],
    }
    assert metrics.to_json(value) == {
        "a": [0.5, None, None],
        "b": [3, {"c": None, "d": "text", "e": True}],
    }


def test_the_baseline_never_looks_at_the_image():
    predictions = metrics.Predictions(
        classes=("a", "b"),
        probabilities=np.array([[0.9, 0.1]] * 4, np.float32),
        label=np.array([0, 1, 1, -1]),
        age_months=np.array([1.0, 5.0, np.nan, 9.0]),
        age_predicted_months=np.zeros(4),
        patient=np.array(list("wxyz"), dtype=object),
    )
    result = metrics.baseline(predictions, np.array([1, 1, 0, -1]), 4.0)
    assert result == {
        "majority_class": "b",
        "accuracy": pytest.approx(2 / 3),
        "age_mae_months": pytest.approx((3 + 1 + 5) / 3),
    }
    nothing = metrics.baseline(predictions, np.array([-1]), None)
    assert nothing["majority_class"] is None
    assert math.isnan(nothing["accuracy"])
    assert math.isnan(nothing["age_mae_months"])


def test_baseline_is_the_guess_of_who_never_looks():
    predictions = make([0, 1, 1, -1], age=[2, NAN, 8, 5])
    trained = np.array([2, 1, 1, -1, -1, -1])
    result = metrics.baseline(predictions, trained, 4.0)
    # Named by the training images, scored on the test images.
    assert result["majority_class"] == "b"
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["age_mae_months"] == pytest.approx((2 + 4 + 1) / 3)
    nothing = metrics.baseline(make([-1, -1]), trained, None)
    assert nothing["majority_class"] is None
    assert math.isnan(nothing["accuracy"])
    assert math.isnan(nothing["age_mae_months"])
