"""Sections of a run's page for reviewers: accuracy, calibration, net benefit and subgroups."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from infantxray.evaluation.diagnostics import MAX_FPR
from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import diagnostic_plots, plots
from infantxray.reports.checklist import Checklist
from infantxray.reports.page import NAMES, NOTHING, Figure, number, slug
from infantxray.reports.tables import Cell, Difference, Table

_NAN = float("nan")
_POINT = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "lr_positive": "LR+",
    "lr_negative": "LR−",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Tables and figures under one heading, folded on the page.

    Attributes:
      title: the heading.
      text: what the group shows, in a sentence or two.
      parts: tables and figures.
      checklist: a filled checklist instead of parts.
    """

    title: str
    text: str
    parts: Sequence[Table | Figure] = ()
    checklist: Checklist | None = None
    kind = "group"

    @property
    def anchor(self) -> str:
        return slug(self.title)


def estimate(metric: Mapping[str, Any] | None) -> Estimate:
    """A metric of `metrics.json` as a cell of a table."""
    metric = metric or {}
    value, low, high, p = (_number(metric.get(k)) for k in ("value", "low", "high", "p"))
    return Estimate(value, _NAN, low, high, p)


def _number(value: float | None) -> float:
    return _NAN if value is None else float(value)


def notes(
    named: Iterable[tuple[str, Mapping[str, Any]]],
    keys: Container[str] | None = None,
    *,
    of: str = "conditions",
    classes: str = "conditions",
) -> str:
    """The notes of metrics: each note once, with the names that it applies to.

    Args:
      named: pairs of a name and its metrics.
      keys: the metrics with notes to list; None = all.
      of: what the names are, in the plural.
      classes: what the metrics are means over, in the plural.
    """
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    everyone: dict[str, None] = {}
    for name, metrics in named:
        everyone[name] = None
        for key, metric in metrics.items():
            if isinstance(metric, Mapping) and metric.get("note") and (not keys or key in keys):
                for part in _plain(metric["note"], classes).split("; "):
                    # Notes that differ in their first number alone are one.
                    before, number, after = re.fullmatch(r"(\D*)(\d*)(.*)", part, re.S).groups()  # type: ignore[union-attr]
                    after = re.sub(r"^ patient\b", " patients", after)
                    found.setdefault((before, after), {}).setdefault(name, set()).add(number)
    told = []
    for (before, after), numbers in found.items():
        ends = sorted(int(n) for n in set().union(*numbers.values()) if n)
        span = " to ".join(str(n) for n in dict.fromkeys([ends[0], ends[-1]])) if ends else ""
        text = before + span + (re.sub("^ patients", " patient", after) if span == "1" else after)
        others = [name for name in everyone if name not in numbers]
        who = ", ".join(numbers)
        if len(numbers) > max(len(others), 1):
            who = f"all {of}" + f" but {', '.join(others)}" * bool(others)
        told.append(f"{text[0].upper()}{text[1:]} ({who}).")
    return " ".join(told)


def _plain(note: str, classes: str) -> str:
    """A note of `evaluation`; that of a mean over classes says that it is about some of them.

    The same patients are few for recall and for ROC AUC: one note for both.
    """
    text = re.sub(r" \(in \d+ of \d+ classes\)$", "", note)
    if text == note:
        return note
    return f"in some {classes} only {text.replace(' of the rarer outcome', '')}"


def scaling(summary: Mapping[str, Any]) -> str:
    """Which probabilities the calibration is about, and their error after scaling."""
    after = (summary.get("after_scaling") or {}).get("expected_calibration_error")
    if after is None:
        return "The probabilities are the network's own, without temperature scaling."
    before = summary["calibration"]["expected_calibration_error"]
    return (
        "The probabilities are the network's own, before temperature scaling. Expected calibration "
        f"error: {number(before)} before scaling and {number(after)} after it, as predict, the "
        "Python API and exports scale them."
    )


def tables(summary: Mapping[str, Any]) -> dict[str, list[Table]]:
    """All tables of these sections, `{group: tables}`; a group without content is left out."""
    noun = noun_of(summary)
    found: dict[str, list[Table]] = {}
    if summary.get("operating_points"):
        found["operating_points"] = [
            _points(
                summary["operating_points"],
                (summary.get("after_scaling") or {}).get("thresholds"),
                noun,
            )
        ]
    if summary.get("findings"):
        found["discrimination"] = [_discrimination(summary["findings"], noun)]
        found["calibration"] = [_calibration(summary["findings"], noun)]
    if summary.get("subgroups"):
        found["subgroups"] = [
            table
            for column, rows in summary["subgroups"].items()
            for table in _by(column, rows, noun)
        ]
    return found


def noun_of(summary: Mapping[str, Any]) -> str:
    """What the classes of a run are called: "finding" where an image may have several."""
    return "finding" if summary.get("multi_label") else "condition"


def each(noun: str) -> str:
    """What the metrics of one class are about."""
    if noun == "finding":
        return "Each finding, over the images in which it is known"
    return "One condition against the rest"


def _points(
    rows: Sequence[Mapping[str, Any]],
    calibrated: Mapping[str, Mapping[str, float]] | None,
    noun: str,
) -> Table:
    """Accuracy at thresholds; `calibrated` has those of calibrated probabilities by rule."""
    names = _POINT | {
        key: key.upper().replace("@", " at prevalence ") for key in rows[0] if "@" in key
    }

    def thresholds(row: Mapping[str, Any]) -> list[Cell]:
        found = [row["threshold"]]
        if calibrated:
            found.append(calibrated.get(row["rule"], {}).get(row["finding"]))
        return [NOTHING if value is None else f"{value:#.3g}" for value in found]

    cells = [
        [row["finding"], row["rule"], *thresholds(row), *(estimate(row[n]) for n in names)]
        for row in rows
    ]
    where = "This and the metrics hold for the probabilities of predictions.csv."
    if calibrated:
        where = (
            "This and the metrics hold for the probabilities of predictions.csv, before "
            "temperature scaling. Predict, the Python API and exports give calibrated "
            "probabilities; the column Calibrated threshold has theirs, from the model's "
            "trust.json."
        )
    named = ((row["finding"], {**row, "": {"note": row["note"]}}) for row in rows)
    doubts = notes(named, of=f"{noun}s")
    return Table(
        "operating_points",
        "Operating points",
        "Thresholds were fixed on validation patients and applied to the test patients: an image "
        f"of at least this probability is called positive. {where} {each(noun)}, "
        f"with 95 % intervals over patients. {doubts}".strip(),
        [
            noun.capitalize(),
            "Rule",
            "Threshold",
            *["Calibrated threshold"] * bool(calibrated),
            *names.values(),
        ],
        cells,
    )


def _discrimination(findings: Mapping[str, Mapping[str, Any]], noun: str) -> Table:
    names = ("roc_auc", "partial_auc", "average_precision", "prevalence")
    over = any("roc_auc_over_pixels" in found for found in findings.values())
    rows: list[list[Cell]] = []
    for name, found in findings.items():
        cells: list[Cell] = [estimate(found[key]) for key in names]
        if over:
            gain = estimate(found.get("roc_auc_over_pixels"))
            cells.append(Difference(gain, gain.p))
        rows.append([name, found["n_positive"], *cells])
    header = [noun.capitalize(), "Images", "ROC AUC", f"Partial AUC, FPR to {MAX_FPR:g}",
              "Average precision", "Its baseline: prevalence"]  # fmt: skip
    header += ["ROC AUC over ridge on pixels"] * over
    return Table(
        "discrimination",
        f"Discrimination by {noun}",
        f"{each(noun)}. ROC AUC with DeLong's interval over patients; the "
        "partial area is scaled so that chance is 0.5. A difference has DeLong's test, without "
        f"correction for the number of {noun}s. "
        f"{notes(findings.items(), (*names, 'roc_auc_over_pixels'), of=f'{noun}s')}".strip(),
        header,
        rows,
    )


def _calibration(findings: Mapping[str, Mapping[str, Any]], noun: str) -> Table:
    rows: list[list[Cell]] = []
    for name, found in findings.items():
        parts = found["brier_parts"]
        rows.append(
            [
                name,
                *(estimate(found[key]) for key in ("calibration_slope", "calibration_intercept")),
                estimate({"value": found.get("ici")}),
                estimate(found["brier"]),
                *(
                    estimate({"value": parts[key]})
                    for key in ("reliability", "resolution", "uncertainty", "skill")
                ),
            ]
        )
    return Table(
        "calibration_by_condition",
        f"Calibration by {noun}",
        "Slope 1 and intercept 0 are ideal; a slope below 1: probabilities are too extreme. ICI: "
        "mean distance of the smoothed curve from the line. Brier score = reliability − "
        "resolution + uncertainty + a remainder within ten bins; skill: 1 − Brier / uncertainty. "
        + notes(
            findings.items(),
            ("calibration_slope", "calibration_intercept", "brier"),
            of=f"{noun}s",
        ),
        [
            noun.capitalize(),
            "Slope",
            "Intercept",
            "ICI",
            "Brier",
            "Reliability",
            "Resolution",
            "Uncertainty",
            "Skill",
        ],
        rows,
    )


def _name(metric: str) -> str:
    what, _, finding = metric.partition("/")
    return f"{what.capitalize()}, {finding}" if finding else NAMES.get(metric, metric)


def _by(column: str, found: Mapping[str, Any], noun: str) -> list[Table]:
    first = found["groups"][0]
    names = [key for key in first if key not in ("group", "n", "n_patients")]
    rows = [
        [row["group"], row["n"], row["n_patients"], *(estimate(row[name]) for name in names)]
        for row in found["groups"]
    ]
    unknown = f" Unknown for {found['unknown']:,} images." if found["unknown"] else ""
    groups = Table(
        f"by_{column}",
        f"By {column}",
        f"95 % intervals over patients.{unknown} "
        + notes(((row["group"], row) for row in found["groups"]), of="groups", classes=f"{noun}s"),
        [column.capitalize(), "Images", "Patients", *map(_name, names)],
        rows,
    )
    gaps: list[list[Cell]] = [
        [
            f"{gap['group']} − {gap['reference']}",
            _name(gap["metric"]),
            Difference(estimate(gap["gap"]), _number(gap["p_holm"])),
            estimate({"value": gap["detectable"]}),
        ]
        for gap in found["gaps"]
        if gap["gap"]["value"] is not None
    ]
    if not gaps:
        return [groups]
    caption = (
        "Difference from the largest group, with p after Holm's correction over this table. "
        "Smallest detectable gap: the true gap that this number of patients detects with 80 % "
        "power."
    )
    header = ["Groups", "Metric", "Gap", "Smallest detectable gap"]
    return [groups, Table(f"gaps_by_{column}", "", caption, header, gaps)]


def figures(
    folder: str, predictions: Predictions, curves: Mapping[str, Mapping[str, Any]]
) -> dict[str, Figure]:
    """Draws the curves of the findings, `{name: Figure}`; none without curves."""
    if not curves:
        return {}
    labels, legend = plots.class_labels(predictions.classes)
    names = dict(zip(predictions.classes, labels, strict=True))
    shown = {names[name]: found for name, found in curves.items()}
    noun = "finding" if predictions.multi_label else "condition"
    named = dataclasses.replace(predictions, classes=labels)
    plans: dict[str, tuple[str, Any]] = {
        "precision_recall": (
            "Precision-recall curves; their area and the prevalence, the area of a blind guess.",
            functools.partial(diagnostic_plots.precision_recall, named),
        ),
        "calibration_curves": (
            "Smoothed calibration curves (restricted cubic splines) with a pointwise 95 % band of "
            "a bootstrap over patients. " + _curve_notes(curves, noun),
            functools.partial(
                diagnostic_plots.calibration,
                {name: f for name, f in shown.items() if f["calibration"]["predicted"]},
            ),
        ),
        "net_benefit": (
            "Decision curves: net benefit of acting on a probability above the threshold, with "
            "the model's 95 % band. A model is useful where its line is above the others.",
            functools.partial(diagnostic_plots.net_benefit, shown),
        ),
        "probabilities": (
            f"Predicted probabilities of images with the {noun} (up) and without (down).",
            functools.partial(diagnostic_plots.probabilities, shown),
        ),
    }
    if not any(f["calibration"]["predicted"] for f in curves.values()):
        del plans["calibration_curves"]
    found = {}
    for name, (caption, draw) in plans.items():
        paths = plots.save(folder, name, draw, labels)
        found[name] = Figure("", caption, *paths, legend=legend)
    return found


def _curve_notes(curves: Mapping[str, Mapping[str, Any]], noun: str) -> str:
    named = ((name, {"": found["calibration"]}) for name, found in curves.items())
    return notes(named, of=f"{noun}s")


def groups(
    found: Mapping[str, Sequence[Table]],
    drawn: Mapping[str, Figure],
    patients: Sequence[Table | Figure] = (),
    checklists: Sequence[Checklist] = (),
    *,
    scaling: str = "",
    noun: str = "condition",
) -> list[Group]:
    """The folded groups of the page, in order.

    `scaling` is the sentence of that function, `noun` of `noun_of`.
    """
    apart = (
        "How well images with a finding are told from those without it."
        if noun == "finding"
        else "How well each condition is told from the rest."
    )

    def figure(name: str) -> list[Figure]:
        return [drawn[name]] if name in drawn else []

    smooth = f"Whether predicted probabilities match observed frequencies. {scaling}".strip()
    if "calibration_curves" not in drawn:
        smooth += " There are too few patients of each outcome for smoothed curves."
    planned = [
        Group("Patients", "Table 1 and the flow of images.", patients),
        Group(
            "Discrimination",
            apart,
            [*found.get("discrimination", ()), *figure("precision_recall")],
        ),
        Group(
            "Calibration of probabilities",
            smooth,
            [*found.get("calibration", ()), *figure("calibration_curves"),
             *figure("probabilities")],
        ),
        Group(
            "Net benefit",
            "Whether acting on the model is better than acting on all, on none, or on ridge on "
            "pixels.",
            figure("net_benefit"),
        ),
        Group("Subgroups", "Metrics and gaps between groups of patients.",
              found.get("subgroups", ())),
    ]  # fmt: skip
    result = [group for group in planned if group.parts]
    for filled in checklists:
        counts = filled.counts
        text = (
            f"{counts['run']} of {len(filled.items)} items are answered by this run, "
            f"{counts['author']} by author.yaml; {counts['open']} are open. {filled.reference}. "
            f"{filled.note}"
        )
        result.append(Group(filled.name, text, checklist=filled))
    return result
