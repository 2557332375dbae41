"""Coverage of a study's 95 % intervals, and errors of its tests, on simulated data.

    python benchmarks/interval_coverage.py --output benchmarks/results/interval_coverage.md

A probit model with an expected accuracy of 0.75 simulates whether a run answers an image correctly.
It depends on the patient, the seed and chance. Patients and seeds are drawn anew in every trial. It
takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from infantxray.evaluation.intervals import Resampling, Sampled  # noqa: E402

_TRUTH = 0.75
_QUANTILE = 0.6744897501960817
_SAMPLES = 300


def simulate(rng, num_patients: int, num_seeds: int, seed_sd: float, models: int):
    """The figures of models that are equally good, on the same patients."""
    patient = rng.normal(size=num_patients)
    draws = Resampling(np.arange(num_patients), num_seeds, _SAMPLES, int(rng.integers(2**31)))
    cut = _QUANTILE * np.sqrt(2 + seed_sd**2)
    for _ in range(models):
        run = seed_sd * rng.normal(size=(num_seeds, 1))
        right = cut + patient + run + rng.normal(size=(num_seeds, num_patients)) > 0
        yield Sampled(
            observed={"accuracy": right.mean(1)},
            drawn={"accuracy": right @ (draws.patients.T / num_patients)},
            seeds=draws.seed_weights((0,) * num_seeds),
            num_patients=num_patients,
        )


def percentile(sampled: Sampled) -> tuple[float, float]:
    """The plain percentile interval of the same draws."""
    weights = 1.0 if sampled.seeds is None else sampled.seeds.T
    values = (sampled.drawn["accuracy"] * weights).sum(0)
    return tuple(np.percentile(values, [2.5, 97.5]))


def measure(trials: int, num_patients: int, num_seeds: int, seed_sd: float) -> list[float]:
    rng = np.random.default_rng(0)
    covered, plain, widths, rejected, single = [], [], [], [], []
    for _ in range(trials):
        one, other = simulate(rng, num_patients, num_seeds, seed_sd, models=2)
        estimate = one.estimate("accuracy")
        covered.append(estimate.low <= _TRUTH <= estimate.high)
        widths.append(estimate.high - estimate.low)
        low, high = percentile(one)
        plain.append(low <= _TRUTH <= high)
        difference = (one - other).estimate("accuracy")
        rejected.append(difference.p < 0.05)
        low, high = percentile(one - other)
        single.append(not low <= 0 <= high)
    return [np.mean(v) for v in (covered, widths, plain, rejected, single)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--output", help="Markdown file to write.")
    arguments = parser.parse_args()
    lines = [
        "# Coverage of a study's intervals",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, "
        f"{arguments.trials} trials a row, {_SAMPLES} bootstrap samples, "
        "`python benchmarks/interval_coverage.py --output "
        "benchmarks/results/interval_coverage.md`",
        "",
        "Nominal: intervals cover 0.950, tests of two equally good models reject 0.050. A share of "
        f"0.95 is known to ± {1.96 * np.sqrt(0.95 * 0.05 / arguments.trials):.3f}. Seed sd is on "
        "the probit scale, beside a patient sd of 1. “Percentile” is the plain percentile interval "
        "of the same bootstrap. With one seed, intervals are about patients alone, and what "
        "another seed would change is not covered.",
        "",
        "| patients | seeds | seed sd | sd of accuracy over seeds | covers | width | percentile "
        "covers | test rejects | percentile rejects |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for num_patients in (50, 200):
        for num_seeds in (1, 2, 3, 5):
            for seed_sd in (0.0, 0.1, 0.3):
                found = measure(arguments.trials, num_patients, num_seeds, seed_sd)
                # Slope of the expected accuracy over the seed's effect.
                density = np.exp(-(_QUANTILE**2) / 2) / np.sqrt(2 * np.pi) / np.sqrt(2)
                covers, width, plain, rejects, single = found
                lines.append(
                    f"| {num_patients} | {num_seeds} | {seed_sd} | {density * seed_sd:.3f} | "
                    f"{covers:.3f} | {width:.3f} | {plain:.3f} | {rejects:.3f} | {single:.3f} |"
                )
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
