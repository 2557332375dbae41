"""Metrics by subgroup, gaps between subgroups, and the smallest gap that could have been shown.

Gaps are corrected for their number (Holm). A gap that is not significant says little if few
patients were tested, so the smallest detectable gap is given too.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from infantxray.evaluation.estimates import (
    TOO_FEW_PATIENTS,
    Linearised,
    Metric,
    Scores,
    count_patients,
    difference,
    inner,
    patient_index,
)
from infantxray.evaluation.intervals import holm
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.roc import auc_linearised

_NAN = float("nan")
_POWER = 0.8
_QUANTILE = float(ndtri(0.975))
Measure = Callable[[np.ndarray], Linearised | str]
"""A metric of a bool selection of images, `[N]`, or why there is none."""


def measures(
    predictions: Predictions, operating: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The metrics that subgroups are compared by: `{name: (Measure, bounds)}`.

    `accuracy`, macro `recall` and macro `roc_auc` (over the classes that the group has), and
    `age_mae_months`, as `metrics.headline` has them. Where an image may have several findings, no
    `accuracy` and `recall`. A class of one patient has no variance to estimate: the largest
    possible for a share, 1/4, takes its place, so that the interval is not too short.

    Args:
      predictions: predictions of N test images.
      operating: thresholds of classes; their `sensitivity/<class>` and `specificity/<class>` are
        then measured too.
    """
    truth, patient = predictions.label, patient_index(predictions.patient)
    predicted = predictions.probabilities.argmax(1) if predictions.classes else truth
    known = truth >= 0

    def accuracy(rows: np.ndarray) -> Linearised | str:
        return _mean(predicted == truth, rows & known, patient)

    def recall(rows: np.ndarray) -> Linearised | str:
        cases = [rows & (truth == k) for k in range(len(predictions.classes))]
        return _macro(
            [_share(predicted == k, here, patient) for k, here in enumerate(cases) if here.any()],
            patient[rows],
        )

    error = np.abs(predictions.age_predicted_months - predictions.age_months).astype(np.float64)

    def age_mae(rows: np.ndarray) -> Linearised | str:
        return _mean(error, rows & np.isfinite(error), patient)

    share = (0.0, 1.0)
    result: dict[str, tuple[Measure, tuple[float, float] | None]] = {}
    if predictions.classes:
        if not predictions.multi_label:
            result = {"accuracy": (accuracy, share), "recall": (recall, share)}
        outcomes = [predictions.outcome(k) for k in range(len(predictions.classes))]
        result |= finding_measures(
            predictions.classes,
            predictions.probabilities,
            np.stack([positive for _, positive in outcomes], 1),
            np.stack([known for known, _ in outcomes], 1),
            patient,
            operating,
        )
    if np.isfinite(error).any():
        result["age_mae_months"] = (age_mae, None)
    return result


def finding_measures(
    findings: Sequence[str],
    probabilities: np.ndarray,
    outcome: np.ndarray,
    known: np.ndarray,
    patient: np.ndarray,
    operating: Mapping[str, float] | None = None,
) -> dict[str, tuple[Measure, tuple[float, float] | None]]:
    """Metrics of several findings an image: macro `roc_auc`, and those at thresholds.

    Args:
      findings: F names.
      probabilities: `[N, F]`.
      outcome: `[N, F]`, true or 1 where a finding is present.
      known: bool `[N, F]`, false where the outcome is unknown.
      patient: one key a person, `[N]`.
      operating: as `measures`.
    """
    patient = patient_index(patient)

    def roc_auc(rows: np.ndarray) -> Linearised | str:
        found = []
        for k in range(len(findings)):
            here = rows & known[:, k]
            scores = Scores.of(outcome[here, k], probabilities[here, k], patient[here])
            if not scores.missing():
                found.append(auc_linearised(scores).embed(here))
        return _macro(found, patient[rows])

    share = (0.0, 1.0)
    result: dict[str, tuple[Measure, tuple[float, float] | None]] = {"roc_auc": (roc_auc, share)}
    for name, threshold in (operating or {}).items():
        k = findings.index(name)
        positive, named = outcome[:, k] == 1, probabilities[:, k] >= threshold
        for what, hits, side in (
            ("sensitivity", named, positive & known[:, k]),
            ("specificity", ~named, ~positive & known[:, k]),
        ):
            result[f"{what}/{name}"] = (_at_point(hits, side, patient), share)
    return result


def _at_point(hits: np.ndarray, side: np.ndarray, patient: np.ndarray) -> Measure:
    return lambda rows: _mean(hits, rows & side, patient)


def _mean(values: np.ndarray, rows: np.ndarray, patient: np.ndarray) -> Linearised | str:
    if count_patients(patient[rows]) < 2:
        return "fewer than 2 patients"
    return Linearised.mean(values[rows], patient[rows]).embed(rows)


def _share(hits: np.ndarray, rows: np.ndarray, patient: np.ndarray) -> Linearised:
    """The share of a class, also of one patient."""
    found = Linearised.mean(hits[rows], patient[rows]).embed(rows)
    if count_patients(patient[rows]) == 1:
        influence = np.copysign(0.5, found.value - 0.5) * rows / rows.sum()
        found = dataclasses.replace(found, influence=influence)
    return found


def _macro(parts: list[Linearised], patient: np.ndarray) -> Linearised | str:
    """The mean over classes; the note is that of the class with the fewest patients."""
    if count_patients(patient) < 2:
        return "fewer than 2 patients"
    if not parts:
        return "no class with images of both outcomes"
    influence = np.mean([p.influence for p in parts], axis=0)
    notes = sorted((p.note for p in parts if p.note), key=lambda note: int(note.split()[0]))
    note = f"{notes[0]} (in {len(notes)} of {len(parts)} classes)" if notes else ""
    return Linearised(float(np.mean([p.value for p in parts])), influence, note)


def age_bands(age_months: np.ndarray) -> np.ndarray:
    """The age band of each image as a group label; empty where the age is unknown."""
    result = np.full(len(age_months), "", dtype=object)
    for name, low, high in AGE_BANDS:
        result[(age_months >= low) & (age_months < high)] = name
    return result


def subgroups(
    groups: np.ndarray,
    patient: np.ndarray,
    measure: Mapping[str, tuple[Measure, tuple[float, float] | None]],
    *,
    all_pairs: bool = False,
) -> dict[str, Any]:
    """Metrics of each group, and gaps between groups.

    Args:
      groups: a label for each image, `[N]`; empty where it is unknown.
      patient: one key a person, `[N]`.
      measure: `measures(predictions)`, or other functions of a selection of images.
      all_pairs: compare every pair; else each group with the largest.

    Returns:
      `groups`: a row each with `group`, `n`, `n_patients` and a `Metric` for each name (an interval
      within its bounds); `unknown`: images without a label; `gaps`: a row for each pair and metric
      with `metric`, `group`, `reference`, `gap` (a `Metric`; patients with images in both groups
      are paired), `p_holm` over all gaps, and `detectable`, the smallest true gap that a test at
      the level of Holm's first step finds with 80 % power: (z_(1 - 0.05 / 2M) + z_0.8) times the
      standard error, for M gaps.

    Raises:
      ValueError: the lengths differ.
    """
    groups = np.asarray(groups, dtype=object)
    if len(groups) != len(patient):
        raise ValueError(f"{len(groups)} group labels for {len(patient)} images")
    index = patient_index(patient)
    names = sorted({g for g in groups if g != ""}, key=_in_order)
    rows = {name: groups == name for name in names}
    sizes = {name: count_patients(index[rows[name]]) for name in names}
    found = {(g, m): f(rows[g]) for g in names for m, (f, _) in measure.items()}
    table = []
    for group in names:
        row: dict[str, Any] = {
            "group": group,
            "n": int(rows[group].sum()),
            "n_patients": sizes[group],
        }
        for name, (_, bounds) in measure.items():
            row[name] = _interval(found[group, name], index, rows[group], bounds)
        table.append(row)
    if all_pairs:
        pairs = [(b, a) for a, b in itertools.combinations(names, 2)]
    else:
        largest = max(names, key=lambda g: sizes[g], default="")
        pairs = [(g, largest) for g in names if g != largest]
    gaps = []
    for group, reference in pairs:
        both = rows[group] | rows[reference]
        for name in measure:
            gap = _gap(found[group, name], found[reference, name], index, both)
            gaps.append({"metric": name, "group": group, "reference": reference, "gap": gap})
    tested = max(sum(np.isfinite(row["gap"].p) for row in gaps), 1)
    quantile = float(ndtri(1 - 0.05 / 2 / tested) + ndtri(_POWER))
    for row, p in zip(gaps, holm([row["gap"].p for row in gaps]), strict=True):
        error = row["gap"].standard_error
        row |= {"p_holm": float(p), "detectable": quantile * error if error > 0 else _NAN}
    return {"groups": table, "unknown": int((groups == "").sum()), "gaps": gaps}


def _in_order(group: str) -> tuple[int, list[tuple[bool, float, str]]]:
    """Age bands from young to old; then other groups, by the numbers in their names."""
    bands = [name for name, _, _ in AGE_BANDS]
    parts = re.split(r"(\d+(?:\.\d+)?)", str(group))
    key = [(i % 2 == 0, float(part) if i % 2 else 0.0, part) for i, part in enumerate(parts)]
    return bands.index(group) if group in bands else len(bands), key


def _interval(
    found: Linearised | str,
    patient: np.ndarray,
    rows: np.ndarray,
    bounds: tuple[float, float] | None,
) -> Metric:
    if isinstance(found, str):
        return Metric(_NAN, note=found)
    part = dataclasses.replace(found, influence=found.influence[rows])
    return part.metric(patient[rows], bounds)


def _gap(
    one: Linearised | str, other: Linearised | str, patient: np.ndarray, rows: np.ndarray
) -> Metric:
    if isinstance(one, str) or isinstance(other, str):
        return Metric(_NAN, note=one if isinstance(one, str) else str(other))
    gap = _interval(one - other, patient, rows, None)
    sums = [np.bincount(patient, part.influence) for part in (one, other)]
    if one.share and other.share:
        # The interval from those of the two shares holds near 0 and 1, and the test is its own.
        scale = np.sqrt(inner(sums[0], sums[0]) * inner(sums[1], sums[1]))
        correlation = inner(sums[0], sums[1]) / scale if scale else 0.0
        found = difference(one.share, other.share, 1.0, correlation)
        half = found.value - found.low if found.value > 0 else found.high - found.value
        p = 2 * float(ndtr(-abs(found.value) / half * _QUANTILE)) if half > 0 else 1.0
        error = (found.high - found.low) / 2 / _QUANTILE
        return dataclasses.replace(found, p=p, standard_error=error, note=gap.note or found.note)
    for part in sums:
        if np.count_nonzero(part) < TOO_FEW_PATIENTS:
            return Metric(gap.value, note=f"fewer than {TOO_FEW_PATIENTS} patients who differ")
    return gap
