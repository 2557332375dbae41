"""Comparison of two runs on the same patients."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from data_pipeline.manifest import Records
from infantxray.evaluation.comparison import sign_flip_test
from infantxray.evaluation.estimates import Scores
from infantxray.evaluation.predictions import Predictions, write_predictions
from infantxray.evaluation.roc import auc
from infantxray.reports import comparison, comparison_page

CLASSES = ("mass", "normal")


def make(folder, n=80, signal=1.0, order=None, start=0):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=n)
    logits = rng.normal(size=(n, 2)) + signal * np.eye(2)[label]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ages = np.round(rng.uniform(0, 36, n))
    records = Records.create(
        [f"{start + i}.png" for i in range(n)],
        source="s",
        patient_id=[f"p{(start + i) // 2}" for i in range(n)],
        label=[CLASSES[k] for k in label],
        age_months=ages,
    )
    predictions = Predictions(CLASSES, probabilities, label, ages, ages + 1, records.patient)
    rows = np.arange(n) if order is None else order
    folder.mkdir()
    write_predictions(folder / "predictions.csv", predictions.take(rows), records.take(rows))
    return predictions


def test_rows_are_brought_into_one_order_and_paired(tmp_path):
    one = make(tmp_path / "a", signal=0.3)
    two = make(tmp_path / "b", signal=3.0, order=np.random.default_rng(1).permutation(80))
    tested = comparison.read({"one": str(tmp_path / "a"), "two": str(tmp_path / "b")})
    assert tested.reference == "one"
    rows = {r["metric"]: r for r in comparison.paired(tested, permutations=199, seed=0)}
    hits = [(p.probabilities.argmax(1) == p.label) for p in (two, one)]
    assert rows["accuracy"]["difference"]["value"] == pytest.approx(hits[0].mean() - hits[1].mean())
    assert rows["accuracy"]["p_permutation"] == sign_flip_test(
        *hits, one.patient, samples=199, seed=0
    )
    assert rows["accuracy"]["difference"]["low"] > 0
    assert rows["age_mae_months"]["difference"]["value"] == pytest.approx(0, abs=1e-6)
    (mass, _) = comparison.by_condition(tested, permutations=99, seed=0)
    assert mass["value"]["value"] == pytest.approx(auc(Scores.of_class(two, 0)).value, abs=1e-6)
    assert mass["p_holm"] < 0.05
    agreement, images = comparison.disagreements(tested)
    assert sum(v for k, v in agreement[0].items() if k != "run") == 80
    assert agreement[0]["only_run"] > agreement[0]["only_reference"]
    assert all((hits[0] != hits[1])[row] for row in images)


def test_other_patients_are_refused_with_the_number_that_is_shared(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", start=60)
    folders = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    with pytest.raises(UserError, match="share 20 of 80 and 80 images, and 10 patients"):
        comparison.read(folders)
    with pytest.raises(UserError, match="not a finished run"):
        comparison.read(folders | {"b": str(tmp_path)})


def test_the_page_and_the_tables(tmp_path):
    make(tmp_path / "a", signal=0.3)
    make(tmp_path / "b", signal=3.0)
    tested = comparison.read({"one": str(tmp_path / "a"), "two": str(tmp_path / "b")})
    headline = {"accuracy": 0.5, "recall": 0.5, "precision": 0.5, "f1": 0.5, "roc_auc": None,
                "age_mae_months": 1.0, "n": 80, "n_patients": 40,
                "ci95": {"accuracy": [0.4, 0.6]}}  # fmt: skip
    comparison_page.write(
        str(tmp_path), tested, {"one": headline, "far": headline | {"external": True}},
        thresholds={"mass": 0.5}, preprocessing=Preprocessing(32), permutations=99, seed=0,
        settings={"task": "compare"},
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Is two better than one on the same 40 test patients", "Reclassification",
                  "external", "significant after correction (p &lt; .001)", "0.500"):  # fmt: skip
        assert words in page
    names = ("paired", "roc_auc", "reclassification", "agreement", "side_by_side")
    for name in names:
        assert (tmp_path / "tables" / f"{name}.tex").exists()


def test_runs_with_other_truths_are_refused(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    text = (tmp_path / "b" / "predictions.csv").read_text(encoding="utf-8")
    (tmp_path / "b" / "predictions.csv").write_text(text.replace(",mass,", ",normal,", 1))
    with pytest.raises(UserError, match="differ in the labels"):
        comparison.read({"a": str(tmp_path / "a"), "b": str(tmp_path / "b")})


def test_findings_are_counted_one_by_one(tmp_path):
    truth = np.array([[1, 0], [0, 1], [1, np.nan]])
    nothing = np.full(3, np.nan)
    answers = {
        "one": np.array([[0.9, 0.1], [0.1, 0.2], [0.9, 0.9]]),
        "two": np.array([[0.9, 0.6], [0.1, 0.7], [0.9, 0.1]]),
    }
    runs = {
        name: Predictions(CLASSES, p, np.full(3, -1), nothing, nothing, np.arange(3), truth)
        for name, p in answers.items()
    }
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    tested = comparison.Tested(runs, paths)
    (row,), images = comparison.disagreements(tested)
    counts = {"both_right": 3, "only_reference": 1, "only_run": 1, "both_wrong": 0}
    assert row == {"run": "two", **counts}
    assert images == [0, 1]  # Both differ by 0.5; the third image agrees in all that is known.
    for path in paths:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    (shown,) = comparison_page._pictures(tested, images, Preprocessing(32))
    assert shown.images[0][1] == ["true: mass", "one: mass", "two: mass|normal"]


def test_a_permutation_p_is_never_zero():
    assert comparison_page._p(1 / 10_000) == "< .001"
    assert comparison_page._p(0.0312) == "0.031"
    assert comparison_page._p(float("nan")) == "–"
