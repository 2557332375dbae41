"""Simulation of gaps between subgroups: the smallest detectable gap, Holm's correction, coverage.

    python benchmarks/subgroup_gaps.py

takes ten seconds. Each row draws the accuracy of a large group and of smaller ones, once without a
gap and once with the smallest gap that the report calls detectable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from infantxray.evaluation.predictions import Predictions  # noqa: E402
from infantxray.evaluation.subgroups import measures, subgroups  # noqa: E402

# Images of the largest group, of each other one, accuracy, images a patient, groups.
_SETTINGS = (
    (200, 200, 0.8, 1, 2),
    (600, 100, 0.8, 1, 2),
    (600, 60, 0.9, 1, 2),
    (100, 40, 0.8, 1, 2),
    (100, 10, 0.8, 1, 5),
    (400, 200, 0.7, 2, 2),
    (400, 100, 0.8, 1, 5),
    (2000, 500, 0.8, 2, 5),
)


def simulate(setting: tuple, gap: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """`[samples, groups - 1, 3]`: detectable gap, p after Holm, whether the interval covers."""
    largest, smaller, accuracy, images, groups = setting
    sizes = [largest] + [smaller] * (groups - 1)
    names = np.repeat([f"{i}" for i in range(groups)], sizes).astype(object)
    share = np.repeat([accuracy] + [accuracy - gap] * (groups - 1), sizes)
    patient = np.arange(len(names)) // images
    nothing = np.full(len(names), np.nan)
    rows = []
    for _ in range(samples):
        # Half of the patients have all images right or all wrong.
        shared, alone = rng.uniform(size=len(names))[patient], rng.uniform(size=len(names))
        draw = np.where(rng.uniform(size=len(names))[patient] < 0.5, shared, alone)
        right = (draw < share).astype(float)
        answers = np.stack([right, 1 - right], 1)
        test = Predictions(
            ("a", "b"), answers, np.zeros(len(names), int), nothing, nothing, patient
        )
        measure = {"accuracy": measures(test)["accuracy"]}
        for row in subgroups(names, patient, measure)["gaps"]:
            true = -gap if row["reference"] == "0" else gap
            covers = row["gap"].low <= true <= row["gap"].high
            rows.append((row["detectable"], row["p_holm"], covers))
    return np.array(rows, float).reshape(samples, groups - 1, 3)


def main() -> None:
    rng = np.random.default_rng(0)
    header = ("largest group", "others", "accuracy", "images a patient", "detectable gap", "power",
              "any false alarm", "coverage without / with gap")  # fmt: skip
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for setting in _SETTINGS:
        largest, smaller, accuracy, images, groups = setting
        gap = 0.0
        for _ in range(4):  # The standard error, and so the gap, depends on the gap itself.
            gap = float(np.nanmean(simulate(setting, gap, 200, rng)[..., 0]))
        none, some = (simulate(setting, g, 1000, rng) for g in (0.0, gap))
        print(
            f"| {largest} | {groups - 1} x {smaller} | {accuracy:.2f} | {images} | {gap:.3f} | "
            f"{(some[..., 1] < 0.05).mean():.2f} | {(none[..., 1] < 0.05).any(1).mean():.3f} | "
            f"{none[..., 2].mean():.3f} / {some[..., 2].mean():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
