"""Intervals and tests against brute force, scikit-learn and simulated data."""

import numpy as np
import pytest

from infantxray.evaluation import intervals as statistics
from infantxray.evaluation.intervals import (
    Resampling,
    Sampled,
    bootstrap,
    holm,
    mean_interval,
    percentile_interval,
)
from infantxray.evaluation.metrics import HEADLINES, headline, weighted_metrics
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.summary import summarise


def make_runs(seeds=3, n=60, k=3, skill=1.5, spread=0.0):
    """Runs of one model: the same images for every seed, two images a patient."""
    rng = np.random.default_rng(0)
    label = rng.integers(k, size=n)
    label[:2] = -1  # Unknown.
    ages = rng.uniform(0, 36, n).astype(np.float32)
    ages[5] = np.nan
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng(100 + seed)
        logits = rng.normal(size=(n, k))
        logits += (skill + spread * rng.normal()) * np.eye(k)[np.maximum(label, 0)]
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        runs.append(
            Predictions(
                classes=tuple("abcdef"[:k]),
                probabilities=np.round(probabilities, 1),  # Ties.
                label=label,
                age_months=ages,
                age_predicted_months=ages + rng.normal(size=n).astype(np.float32),
                patient=np.array([f"p{i // 2}" for i in range(n)], dtype=object),
            )
        )
    return runs


def test_weighted_metrics_are_those_of_repeated_images():
    """Brute force: a patient of weight 2 is a patient whose images are there twice."""
    (run,) = make_runs(seeds=1)
    keys = np.unique(run.patient)
    weights = np.random.default_rng(1).multinomial(len(keys), np.full(30, 1 / 30), size=40)
    fast = weighted_metrics(run, weights)
    for i, weight in enumerate(weights):
        copies = [
            np.repeat(np.flatnonzero(run.patient == k), w)
            for k, w in zip(keys, weight, strict=True)
        ]
        slow = headline(run.take(np.concatenate(copies)))
        for name in HEADLINES:
            assert fast[name][i] == pytest.approx(slow[name], abs=1e-6), name


def test_figures_of_a_class_are_those_of_metrics():
    (run,) = make_runs(seeds=1)
    figures = weighted_metrics(run, np.ones((1, 30)))
    for name, row in summarise(run, bootstrap_samples=0)["per_class"].items():
        for figure in ("recall", "precision", "f1", "roc_auc"):
            assert figures[f"{figure}/{name}"][0] == pytest.approx(row[figure], abs=1e-6)


def test_a_class_that_is_not_drawn_does_not_count():
    (run,) = make_runs(seeds=1)
    keys = np.unique(run.patient)
    of_class = [np.isin(0, run.label[run.patient == key]) for key in keys]
    weights = np.where(of_class, 0, 1)[None]
    kept = np.isin(run.patient, keys[weights[0] > 0])
    slow = headline(run.take(np.flatnonzero(kept)))
    fast = weighted_metrics(run, weights)
    for name in HEADLINES:
        assert fast[name][0] == pytest.approx(slow[name], abs=1e-6), name
    assert np.isnan(fast["recall/a"][0])


def test_figures_that_cannot_be_computed_are_nan():
    (run,) = make_runs(seeds=1)
    nothing = weighted_metrics(run, np.zeros((2, 30)))
    assert all(np.isnan(values).all() for values in nothing.values())


def test_an_interval_is_the_brute_force_one():
    """Patients and seeds drawn one by one, the figures from scratch each time."""
    runs = make_runs(spread=0.5)
    sampled = Resampling(runs[0].patient, 3, samples=2000, seed=0).metrics(runs)
    estimate = sampled.estimate("accuracy")
    accuracies = [headline(run)["accuracy"] for run in runs]
    assert estimate.mean == pytest.approx(np.mean(accuracies))
    assert estimate.sd == pytest.approx(np.std(accuracies, ddof=1))
    rng = np.random.default_rng(5)
    keys = np.unique(runs[0].patient)
    images = {key: np.flatnonzero(runs[0].patient == key) for key in keys}
    values = []
    for _ in range(2000):
        rows = np.concatenate([images[key] for key in rng.choice(keys, len(keys))])
        label = runs[0].label[rows]
        known = label >= 0
        drawn = rng.integers(3, size=2)
        values.append(
            np.mean([(runs[s].probabilities[rows].argmax(1) == label)[known].mean() for s in drawn])
        )
    half = (estimate.high - estimate.low) / 2
    # t quantiles lie between those of 2 degrees of freedom and of infinitely many.
    assert 1.96 * np.std(values) * 0.95 < half < 4.4 * np.std(values)
    drawn = sampled.drawn["accuracy"] * sampled.seeds.T
    assert np.std(drawn.sum(0)) == pytest.approx(np.std(values), rel=0.06)


def test_differences_are_paired():
    """Two models that err on the same patients differ surely, however few these are."""
    runs = make_runs(seeds=2)
    worse = [
        Predictions(**{**vars(run), "age_predicted_months": run.age_predicted_months + 0.0})
        for run in runs
    ]
    for run in worse:
        error = run.age_predicted_months - run.age_months
        run.age_predicted_months[:] = run.age_months + error + np.sign(error)  # One month each.
    resampling = Resampling(runs[0].patient, 2, samples=200, seed=0)
    difference = resampling.metrics(worse) - resampling.metrics(runs)
    estimate = difference.estimate("age_mae_months")
    assert estimate.mean == pytest.approx(1.0, abs=1e-5)
    assert estimate.high - estimate.low < 1e-3
    assert estimate.p < 1e-6
    same = resampling.metrics(runs) - resampling.metrics(runs)
    assert same.estimate("accuracy").p == 1.0


def simulate(trials, num_patients, num_seeds, seed_sd, shift=0.0, samples=200, seed=0):
    """Estimates of accuracy on data sets whose expected accuracy is known, [trials].

    Whether a run is right about a patient depends on the patient, the seed and chance.
    """
    rng = np.random.default_rng(seed)
    cut = 0.6745 * np.sqrt(2 + seed_sd**2)  # Expected accuracy 0.75.
    for _ in range(trials):
        patient = rng.normal(size=num_patients)
        run = seed_sd * rng.normal(size=(num_seeds, 1))
        right = cut + shift + patient + run + rng.normal(size=(num_seeds, num_patients)) > 0
        draws = Resampling(np.arange(num_patients), num_seeds, samples, int(rng.integers(2**31)))
        weights = draws.patients / num_patients
        yield Sampled(
            observed={"accuracy": right.mean(1)},
            drawn={"accuracy": right @ weights.T},
            seeds=draws.seed_weights((0,) * num_seeds),
            num_patients=num_patients,
        ).estimate("accuracy")


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(1, 0.0), (3, 0.1), (3, 0.3), (5, 0.3)])
def test_intervals_cover_what_they_say(num_seeds, seed_sd):
    found = list(simulate(400, 150, num_seeds, seed_sd))
    covered = np.mean([e.low <= 0.75 <= e.high for e in found])
    # 400 trials: 0.95 ± 0.022. Resampling both ways counts chance twice, so it may be too wide.
    assert 0.92 <= covered <= 0.995


def test_p_values_are_those_of_the_interval():
    for estimate in simulate(20, 100, 3, 0.2):
        shifted = estimate.mean / ((estimate.high - estimate.low) / 2)
        assert (abs(shifted) > 1) == (estimate.p < 0.05)


def test_what_is_said_of_given_stages_one_leaves_out_how_these_differ():
    """Runs 0 and 2 start from one stage one, 1 and 3 from another: brute force within each."""
    values = np.array([0.80, 0.60, 0.82, 0.66])
    draws = Resampling(np.arange(40), 4, 4000, 0)
    groups = (0, 1, 0, 1)
    weights = draws.seed_weights(groups)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(weights[:, [0, 2]].sum(1), 0.5)
    # One of two is drawn from each pair: the means are .70, .73, .71 and .74.
    assert set(np.round(weights @ values, 6)) == {0.7, 0.73, 0.71, 0.74}
    sampled = Sampled(
        observed={"accuracy": values},
        drawn={"accuracy": np.repeat(values[:, None], 4000, 1)},  # Patients do not matter here.
        seeds=weights,
        num_patients=40,
        groups=groups,
    )
    within = np.sqrt(((0.02**2 + 0.06**2) / 2 * 2) / 16)  # Σ n s² / N², n = 2, s² = d² / 2.
    low, high = 0.72 - 4.303 * within, 0.72 + 4.303 * within  # t of 2 degrees of freedom.
    estimate = sampled.estimate("accuracy")
    assert estimate.mean == pytest.approx(0.72)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.002)
    together = draws.seed_weights((0,) * 4) @ values
    assert together.std() > 2 * within


def test_holm_by_hand():
    adjusted = holm([0.01, 0.04, 0.03, np.nan])
    np.testing.assert_allclose(adjusted[:3], [0.03, 0.06, 0.06])
    assert np.isnan(adjusted[3])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_the_mean_over_models_is_taken_draw_by_draw():
    runs = make_runs(seeds=2)
    one = Resampling(runs[0].patient, 2, samples=50, seed=0).metrics(runs)
    both = statistics.average([one, one])
    assert both.estimate("f1") == one.estimate("f1")


def make(label, probabilities=None, age=None, predicted_age=None, patient=None, k=3):
    n = len(label)
    unknown = np.full(n, np.nan)
    return Predictions(
        classes=tuple("abcdef"[:k]),
        probabilities=np.eye(k)[label] if probabilities is None else probabilities,
        label=np.asarray(label),
        age_months=unknown if age is None else age,
        age_predicted_months=unknown if predicted_age is None else predicted_age,
        patient=np.arange(n) if patient is None else patient,
    )


def random_case(seed, n=60, k=4):
    rng = np.random.default_rng(seed)
    label = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[label] * rng.random((n, 1))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), label


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
    intervals = bootstrap(predictions, samples=60, seed=3)
    assert set(intervals) >= set(HEADLINES)
    for name in HEADLINES:
        expected = brute_force_bootstrap(predictions, lambda p, name=name: headline(p)[name], 60, 3)
        np.testing.assert_allclose(intervals[name], expected, err_msg=name)
    assert intervals == bootstrap(predictions, samples=60, seed=3)


def test_images_of_one_patient_are_not_independent():
    """Twenty copies of the same image of each patient do not make the interval shorter."""
    probabilities, label = random_case(2, n=15)

    def width(copies):
        predictions = make(
            np.repeat(label, copies), np.repeat(probabilities, copies, 0),
            patient=np.repeat(np.arange(15), copies), k=4,
        )  # fmt: skip
        low, high = bootstrap(predictions, samples=200, seed=0)["accuracy"]
        return high - low

    assert width(20) == pytest.approx(width(1))


def test_an_interval_that_no_sample_can_compute_is_nan():
    intervals = bootstrap(make([0, 0, 0]), samples=10, seed=0)
    assert np.isnan(intervals["roc_auc"]).all()
    assert np.isfinite(intervals["accuracy"]).all()


def test_a_percentile_interval_is_numpys_over_finite_values():
    values = np.random.default_rng(0).normal(size=500)
    expected = np.percentile(values, [2.5, 97.5])
    assert percentile_interval(values) == pytest.approx(tuple(expected))
    assert percentile_interval(np.append(values, [np.nan] * 9)) == pytest.approx(tuple(expected))
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()


def test_the_interval_of_a_mean_resamples_patients():
    """Copies of a patient's image make it no shorter, and it is that of the normal theory."""
    rng = np.random.default_rng(0)
    values, patient = rng.normal(size=200), np.arange(200)
    low, high = mean_interval(values, patient, samples=4000, seed=0)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    copies = mean_interval(np.repeat(values, 5), np.repeat(patient, 5), samples=4000, seed=0)
    assert copies == pytest.approx((low, high))
