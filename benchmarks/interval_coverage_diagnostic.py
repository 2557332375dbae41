"""Coverage of the 95 % intervals of diagnostic metrics, on simulated data.

    python benchmarks/interval_coverage_diagnostic.py \
        --output benchmarks/results/diagnostic_intervals.md

A binormal score: its logit is the true log odds, so that probabilities are calibrated, with an area
under the ROC curve of 0.856; a second model on the same images has 0.802. Clustered patients have 1
to 5 images, whose outcomes and scores are correlated. Every interval is counted as "with a note"
where the metric says that it rests on few patients.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import platform
import sys
import time
from pathlib import Path

import numpy as np
from scipy.integrate import quad
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import norm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from data_pipeline.processes import WorkerPool  # noqa: E402
from infantxray.evaluation import (  # noqa: E402
    comparison,
    curves,
    operating_points,
    recalibration,
    roc,
)
from infantxray.evaluation.estimates import (  # noqa: E402
    FEW_PATIENTS,
    Linearised,
    Metric,
    Scores,
)
from infantxray.evaluation.subgroups import subgroups  # noqa: E402

_D, _OTHER_D = 1.5, 1.2  # Distances of the two outcomes in standard deviations.
_SENSITIVITY, _MAX_FPR = 0.8, 0.2
_LIMITS = 0.93, 0.97


def simulate(rng: np.random.Generator, patients: int, prevalence: float, clustered: bool):
    """Scores of two models for the images of one test set, and the score's log odds."""
    sizes = rng.integers(1, 6, patients) if clustered else np.ones(patients, int)
    patient = np.repeat(np.arange(patients), sizes)
    within = 0.5 if clustered else 0.0

    def normal(share: float) -> np.ndarray:
        own = rng.normal(size=len(patient))
        return np.sqrt(share) * rng.normal(size=patients)[patient] + np.sqrt(1 - share) * own

    positive = normal(0.8 if clustered else 0.0) < ndtri(prevalence)
    noise, other = normal(within), normal(within)
    first = _D * (positive - 0.5) + noise
    second = _OTHER_D * (positive - 0.5) + 0.7 * noise + np.sqrt(1 - 0.49) * other
    odds = logit(prevalence)
    return (
        Scores.of(positive, expit(_D * first + odds), patient),
        Scores.of(positive, expit(_OTHER_D * second + odds), patient),
    )


class Truth:
    """The true values at a prevalence."""

    def __init__(self, prevalence: float):
        p, d = prevalence, _D
        self.cut = d / 2 - ndtri(_SENSITIVITY)  # Of the score.
        self.threshold = float(expit(d * self.cut + logit(p)))
        alarms = ndtr(-self.cut - d / 2)
        hits = _SENSITIVITY
        limit = _MAX_FPR
        area = quad(lambda u: ndtr(ndtri(u) + d), 0, limit)[0]
        low = limit**2 / 2

        def density(x):
            return p * norm.pdf(x - d / 2) + (1 - p) * norm.pdf(x + d / 2)

        def precision(x):
            true, false = p * ndtr(d / 2 - x), (1 - p) * ndtr(-d / 2 - x)
            return true / (true + false)

        def brier(x):
            stated = expit(d * x + logit(p))
            return density(x) * stated * (1 - stated)

        odds = self.threshold / (1 - self.threshold)
        benefit = p * hits - (1 - p) * alarms * odds
        other_cut = (d * self.cut) / _OTHER_D  # The same probability of the other model.
        up, down = ndtr(_OTHER_D / 2 - other_cut), ndtr(-_OTHER_D / 2 - other_cut)
        self.values = {
            "sensitivity": hits,
            "specificity": 1 - alarms,
            "PPV": p * hits / (p * hits + (1 - p) * alarms),
            "NPV": (1 - p) * (1 - alarms) / ((1 - p) * (1 - alarms) + p * (1 - hits)),
            "LR+": hits / alarms,
            "LR-": (1 - hits) / (1 - alarms),
            "PPV at prevalence 0.05": 0.05 * hits / (0.05 * hits + 0.95 * alarms),
            "ROC AUC": ndtr(d / np.sqrt(2)),
            "ROC AUC, paired difference": ndtr(d / np.sqrt(2)) - ndtr(_OTHER_D / np.sqrt(2)),
            "partial AUC, FPR to 0.2": (1 + (area - low) / (limit - low)) / 2,
            "partial AUC, sensitivity from 0.8": (1 + (area - low) / (limit - low)) / 2,
            "average precision": quad(lambda x: norm.pdf(x - d / 2) * precision(x), -9, 9)[0],
            "Brier score": quad(brier, -9, 9)[0],
            "net benefit": benefit,
            "net benefit over treating all": benefit - (p - (1 - p) * odds),
            "net benefit over other model": benefit - (p * up - (1 - p) * down * odds),
            "calibration slope": 1.0,
            "calibration intercept": 0.0,
            "calibration curve, one point": 0.0,
            "net reclassification": (hits - up) + (down - alarms),
            "accuracy gap of two halves": 0.0,
            "AUC gap of two halves": 0.0,
        }


def estimates(first: Scores, second: Scores, truth: Truth, with_curve: bool) -> dict[str, Metric]:
    """All metrics of one test set."""
    at = operating_points.accuracy_at(truth.threshold, first, [0.05])
    names = ("sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative", "ppv@0.05")
    decision = curves.decision_curve(first, [truth.threshold], second)[0]
    calibration = recalibration.recalibration(first)
    half = first.patient % 2 == 0
    hits = (first.score >= truth.threshold) == first.positive

    def accuracy(rows):
        return Linearised.mean(hits[rows], first.patient[rows]).embed(rows)

    def area(rows):
        part = Scores.of(first.positive, first.score, first.patient, rows)
        if part.missing() or min(part.sides()) < 2:
            return "too few"
        return roc.auc_linearised(part).embed(rows)

    measure = {"accuracy": (accuracy, (0.0, 1.0)), "auc": (area, (0.0, 1.0))}
    gaps = subgroups(np.where(half, "a", "b"), first.patient, measure)["gaps"]
    point = Metric(float("nan"))
    if with_curve:
        curve = recalibration.calibration_curve(first, num_points=5)
        if curve["low"]:
            k = 2  # The middle of the log odds.
            ends = (logit(curve[n][k]) for n in ("observed", "low", "high"))
            value, low, high = (end - logit(curve["predicted"][k]) for end in ends)
            point = Metric(value, low, high, note=curve["note"])
    return dict(
        zip(
            truth.values,
            (
                *(at[name] for name in names),
                roc.auc(first),
                roc.auc_difference(first, second),
                roc.partial_auc(first, max_fpr=_MAX_FPR),
                roc.partial_auc(first, min_sensitivity=1 - _MAX_FPR),
                curves.average_precision(first),
                curves.brier(first),
                decision["model"],
                decision["over_all"],
                decision["over_baseline"],
                calibration["slope"],
                calibration["intercept"],
                point,
                comparison.reclassification(second, first, [truth.threshold])["nri"],
                gaps[0]["gap"],
                gaps[1]["gap"],
            ),
            strict=True,
        )
    )


def measure(trials: int, patients: int, prevalence: float, clustered: bool) -> tuple[dict, float]:
    """For each metric, whether each interval covers and has a note, `[T, 2]`; and seconds."""
    began = time.process_time()
    rng = np.random.default_rng(0)
    truth = Truth(prevalence)
    seen = {name: [] for name in truth.values}
    for trial in range(trials):
        first, second = simulate(rng, patients, prevalence, clustered)
        for name, m in estimates(first, second, truth, trial % 4 == 0).items():
            if np.isfinite(m.low) or np.isfinite(m.high):
                # The small term absorbs rounding of the true value.
                covers = m.low - 1e-9 <= truth.values[name] <= m.high + 1e-9
                seen[name].append((covers, bool(m.note)))
    rows = {name: np.array(rows, bool).reshape(-1, 2) for name, rows in seen.items()}
    return rows, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", help="Markdown file to write.")
    arguments = parser.parse_args()
    settings = [
        (n, p, c) for c in (False, True) for p in (0.5, 0.1, 0.01) for n in (100, 300, 1000)
    ]
    found, seconds = {}, 0.0
    with WorkerPool(arguments.processes) as pool:
        parts = pool.map(measure, itertools.repeat(arguments.trials), *zip(*settings, strict=True))
        for setting, (rows, worked) in zip(settings, parts, strict=True):
            found[setting], seconds = rows, seconds + worked
            print(setting, f"{seconds:.0f} s", flush=True)
    text = page(found, settings, arguments.trials, seconds)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")


def page(found: dict, settings: list, trials: int, seconds: float) -> str:
    lines = []
    outside, near = [], []
    for clustered in (False, True):
        here = [s for s in settings if s[2] == clustered]
        title = "Several images a patient" if clustered else "One image a patient"
        lines += ["", f"## {title}", ""]
        lines.append("| metric | " + " | ".join(f"{p:.0%}, n = {n}" for n, p, _ in here) + " |")
        lines.append("|---" * (len(here) + 1) + "|")
        for name in found[here[0]]:
            cells = []
            for s in here:
                rows = found[s][name]
                plain = rows[~rows[:, 1], 0]
                if len(plain) < trials / 10 / (4 if "curve" in name else 1):
                    noted = f" ({rows[:, 0].mean():.3f})" if len(rows) else ""
                    cells.append("note" + noted if noted else "none")
                    continue
                error = 2 * np.sqrt(0.95 * 0.05 / len(plain))
                low, high = _LIMITS[0] - error, _LIMITS[1] + error
                share = plain.mean()
                mark = "" if low <= share <= high else "**"
                if not _LIMITS[0] <= share <= _LIMITS[1]:
                    where = f"{name} ({s[0]}, {s[1]:.0%}, {title.lower()}): {share:.3f}"
                    (outside if mark else near).append(where)
                noted = rows[rows[:, 1], 0]
                tail = f" ({noted.mean():.3f})" if len(noted) > trials / 10 else ""
                cells.append(f"{mark}{share:.3f}{mark}{tail}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head = [
        "# Coverage of the intervals of diagnostic metrics",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {trials} trials a column, "
        f"{seconds / 60:.1f} min of one core: `python benchmarks/interval_coverage_diagnostic.py "
        "--output benchmarks/results/diagnostic_intervals.md`",
        "",
        "Nominal: 0.950. A column is a prevalence and a number of patients. In parentheses: "
        "intervals that carry a note in the report because they rest on fewer than "
        f"{FEW_PATIENTS} patients (50 for the calibration curve); `note`: nearly all do; `none`: "
        "no interval is given. Bold: intervals without a note outside 0.93 to 0.97 by more than "
        f"two standard errors of the simulation (± {2 * np.sqrt(0.95 * 0.05 / trials):.3f}). The "
        "calibration curve is computed in every fourth trial. Trials without an interval "
        "are left out: where one positive patient is expected and five are needed, only unusual "
        "samples count.",
        "",
        f"Outside: {'; '.join(outside) or 'none'}.",
        "",
        f"Outside, but within the error of the simulation: {'; '.join(near) or 'none'}.",
    ]
    return "\n".join(head + lines) + "\n"


if __name__ == "__main__":
    main()
