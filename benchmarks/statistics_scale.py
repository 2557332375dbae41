"""Time and memory of every statistic of a large test set.

    python benchmarks/statistics_scale.py --output benchmarks/results/statistics_scale.md

100,000 images of 60,000 patients, 11 classes, and features of 512 channels; every table, curve and
interval of `infantxray/evaluation`, the bootstrap of `metrics.json` included. Takes a minute.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from infantxray.evaluation import (  # noqa: E402
    comparison,
    conformal,
    curves,
    metrics,
    operating_points,
    outliers,
    recalibration,
    roc,
    subgroups,
    summary,
    temperature,
)
from infantxray.evaluation.calibration import calibration  # noqa: E402
from infantxray.evaluation.estimates import Scores  # noqa: E402


def make(num_images: int, num_classes: int, seed: int) -> metrics.Predictions:
    rng = np.random.default_rng(0)
    label = rng.choice(num_classes, num_images, p=rng.dirichlet(np.full(num_classes, 3.0)))
    patient = rng.integers(int(0.6 * num_images), size=num_images)
    ages = rng.uniform(0, 216, num_images)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, num_classes)) + 2 * np.eye(num_classes)[label]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return metrics.Predictions(
        tuple(f"class {k}" for k in range(num_classes)),
        probabilities.astype(np.float32),
        label,
        ages,
        ages + rng.normal(size=num_images),
        patient,
    )


def steps(validation: metrics.Predictions, test: metrics.Predictions, other: metrics.Predictions):
    """Each statistic: its name and a call."""
    scores = [Scores.of_class(test, k) for k in range(len(test.classes))]
    seconds = [Scores.of_class(other, k) for k in range(len(test.classes))]
    fitted = [Scores.of_class(validation, k) for k in range(len(test.classes))]
    rules = operating_points.parse_rules("sensitivity:0.95,youden,specificity:0.9")
    thresholds = np.arange(0.01, 1, 0.01)

    def points():
        for before, after in zip(fitted, scores, strict=True):
            for rule in rules:
                chosen = operating_points.choose("", before, rule)
                operating_points.accuracy_at(chosen.threshold, after, [0.01, 0.1])

    def each(function, *others):
        def call():
            for row in zip(scores, *others, strict=True):
                function(*row)

        return call

    def sets():
        for method in ("lac", "aps"):
            for by_class in (False, True):
                fit = conformal.fit_sets(
                    validation.probabilities, validation.label, method=method, by_class=by_class
                )
                inside = conformal.predict_sets(fit, test.probabilities)
                conformal.set_coverage(
                    inside, test.label, test.patient, test.classes, test.age_months
                )

    def groups():
        site = np.array([f"site {i}" for i in range(6)], object)[test.patient % 6]
        measure = subgroups.measures(test, dict.fromkeys(test.classes, 0.5))
        for labels in (site, subgroups.age_bands(test.age_months)):
            subgroups.subgroups(labels, test.patient, measure)

    def scaling():
        fit = temperature.fit_temperature(validation.probabilities, validation.label)
        temperature.before_and_after(test.probabilities, test.label, fit)

    def detector():
        rng = np.random.default_rng(0)
        features = rng.normal(size=(len(test), 512)).astype(np.float32)
        outliers.fit_detector(features, features[:10_000]).distances(features)

    hits = [p.probabilities.argmax(1) == p.label for p in (test, other)]
    confidence = test.probabilities.max(1)
    yield (
        "metrics.json with its bootstrap of 1,000 samples",
        lambda: summary.summarise(test, bootstrap_samples=1000),
    )
    yield "calibration", lambda: calibration(test.probabilities, test.label)
    yield "operating points, 3 rules", points
    yield "ROC AUC", each(roc.auc)
    yield "ROC AUC, paired difference", each(roc.auc_difference, seconds)
    yield "partial AUC", each(lambda s: roc.partial_auc(s, max_fpr=0.1))
    yield "average precision", each(curves.average_precision)
    yield "Brier score and decomposition", each(lambda s: (curves.brier(s), brier(s)))
    yield (
        "decision curve, 99 thresholds",
        each(lambda s, o: curves.decision_curve(s, thresholds, o), seconds),
    )
    yield "calibration slope, intercept", each(recalibration.recalibration)
    yield "calibration curve, 200 samples", each(recalibration.calibration_curve)
    yield "probabilities by outcome", each(curves.outcome_distribution)
    yield "risk-coverage curve", lambda: curves.risk_coverage(confidence, ~hits[0])
    yield (
        "sign-flip test, 9,999 samples",
        lambda: comparison.sign_flip_test(*hits, test.patient),
    )
    yield (
        "AUC permutation test, 199 samples, one class",
        lambda: comparison.auc_permutation_test(scores[0], seconds[0], samples=199),
    )
    yield "reclassification", each(lambda s, o: comparison.reclassification(s, o, [0.5]), seconds)
    yield "subgroups, 6 sites and age bands", groups
    yield "temperature", scaling
    yield "conformal sets, 4 kinds", sets
    yield "outliers, 512 channels", detector


def brier(scores: Scores) -> dict[str, float]:
    return curves.brier_decomposition(scores, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--output", help="Markdown file to write.")
    arguments = parser.parse_args()
    validation, test, other = (
        make(n, arguments.classes, seed)
        for n, seed in ((arguments.images // 5, 1), (arguments.images, 2), (arguments.images, 3))
    )
    rows, total, processor = [], 0.0, 0.0
    for name, call in steps(validation, test, other):
        began, worked = time.perf_counter(), time.process_time()
        call()
        took, worked = time.perf_counter() - began, time.process_time() - worked
        total, processor = total + took, processor + worked
        rows.append(f"| {name} | {took:.2f} | {worked:.2f} |")
        print(rows[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = "\n".join(
        [
            "# Time of every statistic",
            "",
            f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
            f"{arguments.images:,} images, {arguments.classes} classes: `python "
            "benchmarks/statistics_scale.py --output benchmarks/results/statistics_scale.md`",
            "",
            f"In all {total:.0f} s, at most {peak:.2f} GiB (interpreter included). Processor time "
            f"is that of all threads, {processor:.0f} s in all: what one core takes where nobody "
            "else uses it.",
            "",
            "| statistic, of all classes | seconds | of processor |",
            "|---|---|---|",
            *rows,
        ]
    )
    print(text.split("\n")[4])
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
