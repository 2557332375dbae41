import dataclasses
import json
import math

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.manifest import Records
from infantxray.evaluation import metrics, operating_points
from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.metrics import Predictions
from infantxray.evaluation.predictions import read_predictions, write_predictions
from infantxray.evaluation.summary import (
    baseline,
    by_age_band,
    calibration_of,
    summarise,
    to_json,
)

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
    each = metrics.weighted_metrics(make(label, probabilities, k=4))
    values = reference.precision_recall_fscore_support(
        label, predicted, labels=present, zero_division=0
    )
    for name, column in zip(("precision", "recall", "f1"), values, strict=False):
        found = np.array([each[f"{name}/{c}"][0] for c in "abcd"])
        np.testing.assert_allclose(found[present], column)
        assert np.isnan(np.delete(found, present)).all()
    for c, area in zip(present, areas, strict=True):
        assert each[f"roc_auc/{'abcd'[c]}"][0] == pytest.approx(area)


@pytest.mark.parametrize("seed", range(3))
def test_weights_against_scikit_learn(seed):
    """A weighting of the patients is `sample_weight`."""
    probabilities, label = random_case(seed, ties=True)
    predicted, patient = probabilities.argmax(1), np.arange(60) // 3
    weights = np.random.default_rng(seed).integers(5, size=(4, 20))
    found = metrics.weighted_metrics(make(label, probabilities, patient=patient, k=4), weights)
    for i, weight in enumerate(weights[:, patient]):
        kept = weight > 0
        options = {"sample_weight": weight[kept]}
        present = sorted(set(label[kept]))
        expected = {"accuracy": reference.accuracy_score(label[kept], predicted[kept], **options)}
        names = ("precision", "recall", "f1")
        values = reference.precision_recall_fscore_support(
            label[kept], predicted[kept], labels=present, average="macro", zero_division=0,
            **options,
        )  # fmt: skip
        expected |= dict(zip(names, values[:3], strict=True))
        areas = [
            reference.roc_auc_score(label[kept] == c, probabilities[kept, c], **options)
            for c in present
        ]
        expected["roc_auc"] = np.mean(areas)
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, abs=1e-12), name


def test_confusion_matrix_is_scikit_learns():
    probabilities, label = random_case(0, k=5)
    found = summarise(make(label, probabilities, k=5), bootstrap_samples=0)["confusion_matrix"]
    expected = reference.confusion_matrix(label, probabilities.argmax(1), labels=range(5))
    np.testing.assert_array_equal(found, expected)


_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30).filter(
    lambda rows: len({positive for positive, _ in rows}) == 2
)


@settings(max_examples=100, deadline=None)
@given(_scores)
def test_area_against_counting_pairs(rows):
    positive = np.array([p for p, _ in rows])
    score = np.array([s for _, s in rows], float)
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in score[positive] for b in score[~positive]
    ]
    area = metrics.roc_auc(positive, score)
    assert area == pytest.approx(np.mean(pairs))


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
    # Class a three times right and once taken for c; class b twice taken for a; no class c.
    label, predicted = np.array([0, 0, 0, 0, 1, 1]), [0, 0, 0, 2, 0, 0]
    found = metrics.weighted_metrics(make(label, np.eye(3)[predicted]))
    for name, expected in (
        ("recall", [0.75, 0.0, NAN]),
        ("precision", [0.6, 0.0, NAN]),
        ("f1", [2 / 3, 0.0, NAN]),
    ):
        np.testing.assert_allclose([found[f"{name}/{c}"][0] for c in "abc"], expected)


def test_age_error_is_over_images_of_known_age():
    predictions = make([0, 0, 0], age=[10, NAN, 4], predicted_age=[13, 99, 3])
    assert metrics.headline(predictions)["age_mae_months"] == pytest.approx(2.0)
    assert math.isnan(metrics.headline(make([0, 1]))["age_mae_months"])


def test_age_bands_share_out_every_image_once():
    ages = [0.0, 0.5, 0.91, 0.93, 11.99, 12.0, 23.9, 24, 59, 60, 143, 144, 215, 216, 900, NAN]
    predictions = make([0] * len(ages), age=ages, predicted_age=np.nan_to_num(ages) + 1)
    bands = by_age_band(predictions)
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
    assert [b["band"] for b in by_age_band(make([0, 0], age=[1.5, 30]))] == [
        "1-12 months",
        "2-5 years",
    ]


def summary(predictions, **options):
    result = to_json(summarise(predictions, **options))
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
    assert to_json(value) == {
        "a": [0.5, None, None],
        "b": [3, {"c": None, "d": "text", "e": True}],
    }


def test_the_baseline_never_looks_at_the_image():
    predictions = Predictions(
        classes=("a", "b"),
        probabilities=np.array([[0.9, 0.1]] * 4, np.float32),
        label=np.array([0, 1, 1, -1]),
        age_months=np.array([1.0, 5.0, np.nan, 9.0]),
        age_predicted_months=np.zeros(4),
        patient=np.array(list("wxyz"), dtype=object),
    )
    result = baseline(predictions, np.array([1, 1, 0, -1]), 4.0)
    assert result == {
        "majority_class": "b",
        "accuracy": pytest.approx(2 / 3),
        "age_mae_months": pytest.approx((3 + 1 + 5) / 3),
    }
    nothing = baseline(predictions, np.array([-1]), None)
    assert nothing["majority_class"] is None
    assert math.isnan(nothing["accuracy"])
    assert math.isnan(nothing["age_mae_months"])


def test_baseline_is_the_guess_of_who_never_looks():
    predictions = make([0, 1, 1, -1], age=[2, NAN, 8, 5])
    trained = np.array([2, 1, 1, -1, -1, -1])
    result = baseline(predictions, trained, 4.0)
    # Named by the training images, scored on the test images.
    assert result["majority_class"] == "b"
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["age_mae_months"] == pytest.approx((2 + 4 + 1) / 3)
    nothing = baseline(make([-1, -1]), trained, None)
    assert nothing["majority_class"] is None
    assert math.isnan(nothing["accuracy"])
    assert math.isnan(nothing["age_mae_months"])


class TestSeveralFindings:
    @staticmethod
    def predictions(n=60, k=4, seed=0):
        rng = np.random.default_rng(seed)
        findings = (rng.random((n, k)) < 0.4).astype(np.float32)
        findings[rng.random((n, k)) < 0.2] = np.nan
        findings[:, -1] = 0  # Never present.
        return Predictions(
            tuple("abcd")[:k],
            rng.random((n, k)),
            np.full(n, -1),
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.array([f"p{i // 2}" for i in range(n)], object),
            findings,
        )

    def test_against_scikit_learn(self):
        run = self.predictions()
        found = metrics.weighted_metrics(run)
        areas, scores = [], []
        for k, name in enumerate(run.classes[:-1]):
            known = np.isfinite(run.findings[:, k])
            truth, p = run.findings[known, k], run.probabilities[known, k]
            areas.append(reference.roc_auc_score(truth, p))
            scores.append(reference.f1_score(truth, p >= 0.5))
            assert found[f"roc_auc/{name}"][0] == pytest.approx(areas[-1])
            assert found[f"f1/{name}"][0] == pytest.approx(scores[-1])
        assert np.isnan(found["roc_auc/d"][0])
        assert found["roc_auc"][0] == pytest.approx(np.mean(areas))
        assert found["f1"][0] == pytest.approx(np.mean(scores))
        known = np.isfinite(run.findings)
        right = ((run.probabilities >= 0.5) == (run.findings == 1))[known]
        assert found["accuracy"][0] == pytest.approx(right.mean())

    def test_weights_are_repeated_patients(self):
        run = self.predictions()
        weights = np.ones((1, 30))
        weights[0, 3], weights[0, 5] = 3, 0
        keys = np.unique(run.patient)
        times = {keys[3]: 3, keys[5]: 0}
        rows = np.repeat(np.arange(60), [times.get(p, 1) for p in run.patient])
        one, other = (
            metrics.weighted_metrics(run, weights),
            metrics.weighted_metrics(run.take(rows)),
        )
        for name in one:
            np.testing.assert_allclose(one[name], other[name])

    def test_unknown_findings_count_nowhere(self):
        run = self.predictions()
        changed = run.probabilities.copy()
        changed[np.isnan(run.findings)] = 0.99
        other = dataclasses.replace(run, probabilities=changed)
        one, two = metrics.weighted_metrics(run), metrics.weighted_metrics(other)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])

    def test_operating_points_are_those_of_each_finding(self):
        run = self.predictions()
        scores = Scores.of_class(run, 1)
        known = np.isfinite(run.findings[:, 1])
        assert len(scores) == known.sum()
        assert (scores.positive == (run.findings[known, 1] == 1)).all()
        point = operating_points.choose("b", scores, operating_points.Rule("sensitivity", 0.9))
        called = run.probabilities[known, 1] >= point.threshold
        assert called[scores.positive].mean() == pytest.approx(point.sensitivity)
        assert point.sensitivity >= 0.9
        assert (
            operating_points.choose("d", Scores.of_class(run, 3), operating_points.Rule("youden"))
            is None
        )

    def test_calibration_counts_every_known_finding(self):
        run = self.predictions()
        found = calibration_of(run)
        known = np.isfinite(run.findings)
        truth, p = run.findings[known], run.probabilities[known]
        assert found["log_loss"] == pytest.approx(reference.log_loss(truth, p))
        assert found["brier"] == pytest.approx(reference.brier_score_loss(truth, p))
        assert sum(b["n"] for b in found["bins"]) == known.sum()

    def test_summary_and_blind_guess(self):
        run = self.predictions()
        found = to_json(summarise(run, bootstrap_samples=5))
        assert found["multi_label"]
        assert found["per_class"]["a"]["n"] == int((run.findings[:, 0] == 1).sum())
        assert found["not_computed"] == {
            "per_class.d": "no image in which it is known to be present",
            "age_mae_months": "the model has no age head",
            "age_bands": "no label, no second class or no age in some bands",
        }
        right = (run.probabilities >= 0.5) == (run.findings == 1)
        assert found["exact_match"] == (right | np.isnan(run.findings)).all(1).mean()
        train = np.array([[1, 0, 1, 0], [1, 0, np.nan, 0]], np.float32)
        guess = baseline(run, run.label, None, train)["accuracy"]
        known = np.isfinite(run.findings)
        assert guess == ((run.findings == 1) == np.array([[1, 0, 1, 0]]))[known].mean()

    def test_the_file_gives_the_same_back(self, tmp_path):
        run = self.predictions()
        names = [
            "|".join(n for n, value in zip(run.classes, row, strict=True) if value == 1) or "normal"
            for row in run.findings
        ]
        records = Records.create(
            [f"{i}.png" for i in range(60)],
            source="s",
            label=names,
            patient_id=list(run.patient),
        )
        write_predictions(tmp_path / "predictions.csv", run, records)
        found, _ = read_predictions(tmp_path / "predictions.csv")
        np.testing.assert_array_equal(found.findings, run.findings)
        np.testing.assert_allclose(found.probabilities, run.probabilities, atol=1e-6)
        assert found.names() == run.names()
