"""Decision thresholds chosen on validation patients, and diagnostic accuracy at them.

Sensitivity, specificity, predictive values and likelihood ratios depend on a threshold. It is fixed
before the test set is seen, stored with the model, and used by `predict`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import verify_checksums
from infantxray.evaluation.estimates import FEW_PATIENTS, Metric, Scores, inner, proportion, ratio

FILE = "operating_points.json"


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a threshold is chosen: `youden`, or a `sensitivity` or `specificity` of `target`."""

    name: str
    target: float | None = None

    def __str__(self) -> str:
        return self.name if self.target is None else f"{self.name}:{self.target:g}"


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold for one finding.

    Attributes:
      finding: the class or finding.
      rule: how it was chosen, such as `sensitivity:0.95`.
      threshold: images of at least this probability are called positive.
      sensitivity: on the validation patients.
      specificity: specificity on the validation patients.
      n_positive: validation images with the finding.
      n_negative: validation images without the finding.
      note: a caveat, such as a target that few images cannot resolve.
    """

    finding: str
    rule: str
    threshold: float
    sensitivity: float
    specificity: float
    n_positive: int
    n_negative: int
    note: str = ""


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules from a comma-separated text such as `sensitivity:0.95,youden,specificity:0.9`.

    Raises:
      ValueError: a name is unknown, a target is missing or not within (0, 1), or a rule is given
        twice.
    """
    rules = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, target = part.partition(":")
        if name == "youden" and not target:
            rules.append(Rule(name))
            continue
        try:
            value = float(target)
        except ValueError:
            value = float("nan")
        if name not in ("sensitivity", "specificity") or not 0 < value < 1:
            raise ValueError(
                f"operating point {part!r}: give youden, sensitivity:X or specificity:X with X "
                "between 0 and 1"
            )
        rules.append(Rule(name, value))
    if len(set(rules)) < len(rules):
        raise ValueError(f"operating points {text!r}: a rule is given twice")
    return tuple(rules)


def parse_prevalences(text: str) -> tuple[float, ...]:
    """Prevalences from a comma-separated text such as `0.01,0.1`.

    Raises:
      ValueError: one is not a number within (0, 1).
    """
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (float("nan"),)
    if not all(0 < value < 1 for value in values):
        raise ValueError(f"prevalences {text!r}: give shares between 0 and 1, such as 0.01,0.1")
    return values


def choose(finding: str, scores: Scores, rule: Rule) -> OperatingPoint | None:
    """The threshold that a rule chooses on validation images; None without both outcomes.

    For a sensitivity, the highest threshold that reaches it; for a specificity, the lowest; for
    Youden's index (Cancer 1950;3:32), the highest of equal maxima.

    Args:
      finding: name of the finding.
      scores: scores of validation images.
      rule: the rule.
    """
    if scores.missing():
        return None
    order = np.argsort(-scores.score, kind="stable")
    positive = scores.positive[order]
    # Each candidate is the last image of a tie: all of at least this score are called positive.
    last = np.append(np.flatnonzero(np.diff(scores.score[order])), len(order) - 1)
    values = np.append(np.nextafter(scores.score.max(), np.inf), scores.score[order][last])
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    sensitivity = np.append(0, np.cumsum(positive)[last]) / n_positive
    specificity = 1 - np.append(0, np.cumsum(~positive)[last]) / n_negative
    slack = 1e-12  # Absorbs rounding: 9 of 10 reach a target of 0.9.
    target = rule.target or 0.0
    if rule.name == "sensitivity":
        at = int(np.argmax(sensitivity >= target - slack))
    elif rule.name == "specificity":
        at = int(len(values) - 1 - np.argmax(specificity[::-1] >= target - slack))
    else:
        index = sensitivity + specificity
        at = int(np.argmax(index >= index.max() - slack))
    cases = {"sensitivity": n_positive, "specificity": n_negative}.get(
        rule.name, min(n_positive, n_negative)
    )
    needed = FEW_PATIENTS if rule.target is None else max(FEW_PATIENTS, 1 / (1 - rule.target))
    note = f"chosen on {cases} images of that outcome" if cases < needed - slack else ""
    return OperatingPoint(
        finding,
        str(rule),
        float(values[at]),
        float(sensitivity[at]),
        float(specificity[at]),
        n_positive,
        n_negative,
        note,
    )


def accuracy_at(
    threshold: float, scores: Scores, prevalences: Sequence[float] = ()
) -> dict[str, Metric]:
    """Diagnostic accuracy at a threshold, with intervals over patients.

    Args:
      threshold: images of at least this score are called positive.
      scores: scores of test images.
      prevalences: at which predictive values are also stated, by Bayes' theorem: the prevalence
        of a test set is rarely that of the clinic.

    Returns:
      `sensitivity`, `specificity`, `ppv`, `npv`, `lr_positive`, `lr_negative`, and `ppv@X` and
      `npv@X` for each prevalence X. Predictive values at a prevalence are monotone functions of the
      likelihood ratios, and so are their intervals.

    Raises:
      ValueError: a prevalence is not within (0, 1).
    """
    if not all(0 < p < 1 for p in prevalences):
        raise ValueError(f"prevalences must be within (0, 1), got {list(prevalences)}")
    positive, named = scores.positive, scores.score >= threshold

    def share(hits: np.ndarray, rows: np.ndarray, what: str) -> Metric:
        return proportion(hits[rows], scores.patient[rows], what)

    result = {
        "sensitivity": share(named, positive, "positive image"),
        "specificity": share(~named, ~positive, "negative image"),
        "ppv": share(positive, named, "image called positive"),
        "npv": share(~positive, ~named, "image called negative"),
    }
    alarms = share(named, ~positive, "negative image")
    misses = share(~named, positive, "positive image")
    if not scores.missing():
        # Only patients with images of both outcomes correlate the two shares.
        residuals = [
            np.bincount(scores.patient[rows], named[rows] - rate.value, scores.num_patients)
            for rows, rate in ((positive, result["sensitivity"]), (~positive, alarms))
        ]
        scale = np.sqrt(inner(residuals[0], residuals[0]) * inner(residuals[1], residuals[1]))
        correlation = inner(residuals[0], residuals[1]) / scale if scale else 0.0
    else:
        correlation = 0.0
    result["lr_positive"] = ratio(result["sensitivity"], alarms, correlation)
    result["lr_negative"] = ratio(misses, result["specificity"], correlation)
    for p in prevalences:
        odds = p / (1 - p)
        plus, minus = result["lr_positive"], result["lr_negative"]
        value, low, high = (_probability(odds * x) for x in (plus.value, plus.low, plus.high))
        result[f"ppv@{p:g}"] = Metric(value, low, high, note=plus.note)
        value, high, low = (
            1 - _probability(odds * x) for x in (minus.value, minus.low, minus.high)
        )
        result[f"npv@{p:g}"] = Metric(value, low, high, note=minus.note)
    return result


def _probability(odds: float) -> float:
    return 1.0 if odds == float("inf") else odds / (1 + odds)


def to_json(points: Iterable[OperatingPoint]) -> str:
    """Operating points as JSON, to store with the model."""
    return json.dumps([dataclasses.asdict(point) for point in points], indent=2)


def from_json(text: str) -> tuple[OperatingPoint, ...]:
    """Operating points from `to_json`."""
    return tuple(OperatingPoint(**row) for row in json.loads(text))


def read_points(folder: str) -> list[OperatingPoint]:
    """The operating points that an evaluation chose; empty if it chose none.

    Raises:
      DataError: the file is damaged.
    """
    verify_checksums(folder, [FILE])
    path = os.path.join(folder, FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return list(from_json(file.read()))
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from None
