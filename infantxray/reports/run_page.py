"""The page of one stage-two run: summary, metrics beside their baselines, tables, figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infantxray.evaluation.localisation import Example
from infantxray.evaluation.metrics import CLASS_METRICS, HEADLINES
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.saliency import STRIDES
from infantxray.reports import plots, stage_one_gain
from infantxray.reports.page import (
    NAMES,
    NOTHING,
    Figure,
    listed,
    number,
    phrase,
    plural,
    setting_lines,
    write_page,
)
from infantxray.reports.run_sections import Group, noun_of, scaling
from infantxray.reports.tables import Table

_MACRO = ("recall", "precision", "f1", "roc_auc")
_SHORT = ("roc_auc", "accuracy", "age_mae_months")
_FEW_PATIENTS = 30
_LABELS = {"blind guess": "a blind guess"}
_POOR_CALIBRATION = 0.1
_LACKING = ("the model has no condition head", "the model has no age head")  # `not_computed`.
PIXELS = "pixels"  # Of `summary["baseline"]`: metrics of ridge on pixels.


def draw(
    folder: str,
    predictions: Predictions,
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    examples: Sequence[Example] = (),
    mistakes: Sequence[Example] = (),
) -> list[Figure]:
    """Draws the figures of a run, in page order; figures without content are left out.

    Args:
      folder: `figures/` of the run.
      predictions: predictions of the test images.
      summary: what `metrics.json` holds.
      history: scalars of the training run by step.
      examples: an image of each condition, with its saliency.
      mistakes: the worst mistakes, with their saliency.
    """
    labels, legend = plots.class_labels(predictions.classes)
    names = dict(zip(predictions.classes, labels, strict=True))
    names |= {f"no {name}": f"no {label}" for name, label in names.items()}
    named = dataclasses.replace(predictions, classes=labels)
    found: list[Figure] = []

    def add(
        name: str, title: str, caption: str, plot: Any, *arguments: Any, **options: Any
    ) -> None:
        paths = plots.save(folder, name, functools.partial(plot, *arguments, **options), labels)
        uses_names = name in ("confusion_matrix", "roc", "saliency", "mistakes")
        found.append(Figure(title, caption, *paths, legend=legend if uses_names else ()))

    def add_saliency(name: str, title: str, caption: str, shown: Sequence[Example]) -> None:
        rows = "Grad-CAM of the predicted condition; Grad-CAM of the true one"
        if predictions.multi_label:
            rows = "Grad-CAM of the finding above it"
        caption += f" Rows: the image; {rows}. Frames: the finding, where its place is known."
        both = not predictions.multi_label
        add(name, title, caption, plots.saliency_figure, plots.renamed(shown, names), both=both)

    if history:
        caption = "Training loss, and metrics on validation patients."
        add("learning_curves", "Learning curves", caption, plots.learning_curves, history)
    if predictions.has_condition.any():
        if not predictions.multi_label:
            add(
                "confusion_matrix",
                "Confusion matrix",
                "Images by true and predicted condition; colour: share of the true condition.",
                plots.confusion_figure,
                {"": np.array(summary["confusion_matrix"])},
                labels,
            )
        if summary["roc_auc"] is not None:
            caption = "Each condition against the rest."
            if predictions.multi_label:
                caption = "Each finding, over the images in which it is known."
            add("roc", "ROC curves", caption, plots.roc_figure, named)
        add(
            "calibration",
            "Calibration",
            (
                "Share of the findings that are present at each probability, with their number. "
                if predictions.multi_label
                else "Accuracy at each confidence, with the number of images. "
            )
            + "Below the line the model is overconfident. Error: expected calibration error. "
            + scaling(summary),
            plots.reliability,
            {"model": summary["calibration"]},
            counts=True,
        )
    if summary["age_mae_months"] is not None:
        caption = "Predicted against true age of each image."
        add("age", "Age", caption, plots.age_figure, predictions)
    if examples:
        caption = "The image of each condition that the model is surest about, right or wrong."
        if predictions.multi_label:
            caption = "For each finding, the image with it that has the highest probability."
        add_saliency("saliency", "Where the answer comes from", caption, examples)
    if mistakes:
        caption = "The test images with the surest wrong answers."
        add_saliency("mistakes", "Worst mistakes", caption, mistakes)
    return found


def panels(path: str, names: Sequence[str] = ()) -> Figure:
    """The last panels of stage one.

    Args:
      path: path of the PNG.
      names: names of its rows.
    """
    rows = f"; from above: {', '.join(names).replace('_', ' ')}" if names else ""
    return Figure(
        "What stage one saw and predicted", f"Validation images{rows}.", path, pixels=True
    )


def write(
    path: str,
    *,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    figures: Sequence[Figure] = (),
    sections: Mapping[str, Sequence[Table]] | None = None,
    groups: Sequence[Group] = (),
) -> None:
    """Writes the report of one stage-two model.

    Args:
      path: path of the page.
      settings: settings of the training run (`config.json`).
      summary: what `metrics.json` holds. `summary["baseline"]["pixels"]`, where present, has
        metrics of ridge on pixels.
      figures: see `draw` and `panels`.
      sections: tables of `run_sections.tables`, of which operating points stand unfolded.
      groups: of `run_sections.groups`.
    """
    kind = "external test images" if summary.get("external") else "test images"
    n = summary["n"]
    tables = [_class_table(summary)] if "per_class" in summary else []
    tables += (sections or {}).get("operating_points", ())
    tables += [_age_table(summary)] * any(row["band"] != "unknown" for row in summary["age_bands"])
    tables += _saliency_table(summary)
    write_page(
        path,
        "run",
        title=f"{settings['encoder']} on {n:,} {kind if n != 1 else kind.removesuffix('s')}",
        facts=_facts(settings, summary),
        sentences=summary_sentences(settings, summary),
        metrics=[_card(name, summary) for name in _asked(summary)],
        how_to_read=_how_to_read(summary),
        parts=[*(table.filled() for table in tables), *figures],
        groups=[
            dataclasses.replace(
                g, parts=[p.filled() if isinstance(p, Table) else p for p in g.parts]
            )
            for g in groups
        ],
        settings=setting_lines(dict(settings)),
    )


def _facts(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    n, patients = summary["n"], plural(summary["n_patients"], "patient")
    facts = [f"{patients} whom the model was not trained on"]
    if settings["pretrained"]:
        facts = [f"{patients} whom neither stage was trained on"]
    if not summary["stage_one_known"]:
        facts = [
            f"{patients} whom stage two was not trained on (the folder of stage one is gone, so "
            "whether it was trained on them cannot be checked)"
        ]
    for name, what in (("n_with_condition", noun_of(summary)), ("n_with_age", "age")):
        if 0 < summary[name] < n:
            facts.append(f"{plural(summary[name], 'image')} with a known {what}")
    if summary["n_without_patient_id"]:
        facts.append(
            f"{plural(summary['n_without_patient_id'], 'image')} without a patient id count as a "
            "patient each; whether others of the same patient were trained on is unknown"
        )
    start = settings["pretrained"] or "random weights"
    facts += [f"data {', '.join(summary['sources'])}", f"encoder from {start}"]
    if summary.get("n_constant"):
        facts.append(f"{plural(summary['n_constant'], 'image')} of one grey value")
    if summary["n_unreadable"]:
        files = plural(summary["n_unreadable"], "unreadable file")
        facts.append(f"{files} left out (bad_files.csv)")
    if summary.get("multi_label"):
        facts.append(
            "an image may have several findings, each called present from a probability of 0.5; "
            "accuracy is the share of right answers about single findings, and "
            f"{number(summary['exact_match'])} of the images are right in all that is known"
        )
    facts += [why for why in _LACKING if why in summary["not_computed"].values()]
    return [*facts, *summary.get("label_notes", ())]


def _pixels(summary: Mapping[str, Any]) -> Mapping[str, float | None]:
    return summary["baseline"].get(PIXELS) or {}


def _how_to_read(summary: Mapping[str, Any]) -> str:
    """What the metrics, their intervals and the baselines mean."""
    sentences, guess = [], "the mean age"
    if summary.get("per_class"):
        noun = noun_of(summary)
        sentences = [f"Macro metrics give every {noun} the same weight, however rare."]
        guess = "the most frequent condition, or the mean age,"
        if noun == "finding":
            guess = "the more frequent answer for each finding, or the mean age,"
    sentences += [
        "Intervals are 95 % percentile intervals of a bootstrap over patients; they do not cover "
        "the variation between training runs.",
        f"The blind guess is always {guess} of the training images.",
    ]
    if _pixels(summary):
        sentences.append(
            "Ridge on pixels is a linear model of 32 x 32 pixels, fitted on the same training "
            "images."
        )
    return " ".join(sentences)


def _blind(name: str, summary: Mapping[str, Any]) -> float | None:
    """The metric of the blind guess."""
    if name == "roc_auc":
        return 0.5
    return summary["baseline"].get(name)


def _floors(name: str, summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = {"blind guess": _blind(name, summary), "ridge on pixels": _pixels(summary).get(name)}
    return [(label, value) for label, value in found.items() if value is not None]


def _interval(name: str, summary: Mapping[str, Any]) -> str:
    low, high = summary.get("ci95", {}).get(name, (None, None))
    return "" if low is None else f"{number(low, name)} to {number(high, name)}"


def _asked(summary: Mapping[str, Any]) -> list[str]:
    """The headline metrics, without those of a head that the model lacks."""
    asked = [n for n in HEADLINES if summary["not_computed"].get(n) not in _LACKING]
    return asked or list(HEADLINES)


def _card(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    title = NAMES[name] + " (macro)" * (name in _MACRO)
    if summary[name] is None:
        why = summary["not_computed"].get(name, "cannot be computed")
        return {"name": title, "value": NOTHING, "notes": [why]}
    interval = _interval(name, summary)
    notes = [f"95 %: {interval}"] if interval else []
    notes += [f"{label}: {number(value, name)}" for label, value in _floors(name, summary)]
    return {"name": title, "value": number(summary[name], name), "notes": notes}


def result_line(summary: Mapping[str, Any]) -> str:
    """Accuracy, ROC AUC and age error beside their baselines, in one line."""
    shown = []
    for name in _SHORT:
        if summary[name] is not None:
            floors = [f"{label} {number(value, name)}" for label, value in _floors(name, summary)]
            shown.append(phrase(name, summary[name]) + f" ({', '.join(floors)})" * bool(floors))
    if not shown:
        return "nothing to score"
    return ", ".join(shown)


def summary_sentences(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """The summary: question, result, baselines, caveats and the gain from stage one."""
    scored = [n for n in _SHORT if summary[n] is not None]
    classes = len(summary.get("per_class", ()))
    what = f"tell {plural(classes, 'condition')} apart"
    if summary.get("multi_label"):
        what = f"recognise {plural(classes, 'finding')}"
    tasks = [what] * (classes > 0 and scored != [])
    tasks += ["predict the age"] * ("age_mae_months" in scored)
    encoder, patients = settings["encoder"], plural(summary["n_patients"], "new patient")
    external = " from another source than its training data" if summary.get("external") else ""
    asked = f"Can {encoder} {listed(tasks) if tasks else 'be scored'} on {patients}{external}?"
    if not scored:
        return [asked, "No metric can be computed: no test image has a known label or age."]
    results, floors = [], []
    for name in scored:
        unit = "" if name != "age_mae_months" else " months"
        title = "mean absolute age error" if unit else NAMES[name].replace("Acc", "acc")
        interval = _interval(name, summary)
        interval = f" (95 % interval {interval})" if interval else ""
        results.append(phrase(name, summary[name]) + interval)
        known = [
            f"{number(value, name)}{unit} for {_LABELS.get(label, label)}"
            for label, value in _floors(name, summary)
        ]
        floors += [f"{title} {listed(known)}"] if known else []
    floor = f"Baselines: {'; '.join(floors)}." if floors else "Baselines: none is known."
    doubts = _doubts(summary, scored)
    doubt = (
        "; ".join(doubts)
        or "patients of one data source do not show how the model does elsewhere; other training "
        "runs would differ"
    )
    gain = stage_one_gain.sentence(summary.get("stage_one") or {})
    return [
        asked,
        f"Result: {listed(results)}.",
        floor,
        f"Caveats: {doubt}.",
        *filter(None, [gain]),
    ]


def _doubts(summary: Mapping[str, Any], scored: Sequence[str]) -> list[str]:
    weak: dict[str, list[str]] = {}  # By the claim: the floors that it is about.
    for name in scored:
        lower = name == "age_mae_months"
        what = "the age head" if lower else f"the {NAMES[name].replace('Acc', 'acc')}"
        low, high = summary.get("ci95", {}).get(name, (None, None))
        for label, value in _floors(name, summary):
            sign = -1 if lower else 1
            label = {"blind guess": "the mean age" if lower else "a blind guess"}.get(label, label)
            if sign * (summary[name] - value) <= 0:
                weak.setdefault(f"{what} is no better than", []).append(label)
            elif low is not None and low <= value <= high:
                weak.setdefault(f"{what} is not clearly better than", []).append(label)
    doubts = [f"{claim} {listed(labels)}" for claim, labels in weak.items()]
    error = (summary.get("calibration") or {}).get("expected_calibration_error")
    after = (summary.get("after_scaling") or {}).get("expected_calibration_error")
    if error is not None and max(error, after or 0.0) > _POOR_CALIBRATION:
        scaled = "without temperature scaling"
        if after is not None:
            scaled = f"before temperature scaling and by {after:.0%} after it"
        doubts.append(f"probabilities are off by {error:.0%} on average {scaled}")
    if summary["n_patients"] < _FEW_PATIENTS:
        doubts.append(f"only {plural(summary['n_patients'], 'patient')} were tested")
    if summary["n_without_patient_id"]:
        doubts.append("patients without an id may be on both sides of the split")
    if not summary["stage_one_known"]:
        doubts.append("whether stage one was trained on these patients is unknown")
    return doubts


def _class_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        [name, row["n"], *(number(row[metric]) for metric in CLASS_METRICS)]
        for name, row in summary["per_class"].items()
    ]
    noun = noun_of(summary)
    header = [noun.capitalize(), "Images", *(NAMES[metric] for metric in CLASS_METRICS)]
    return Table("by_condition", f"By {noun}", "", header, rows)


def _age_table(summary: Mapping[str, Any]) -> Table:
    names = ("accuracy", "f1", "roc_auc", "age_mae_months")
    rows = [
        [row["band"], row["n"], *(number(row[name], name) for name in names)]
        for row in summary["age_bands"]
    ]
    header = ["Age", "Images", *(NAMES[name] + " (macro)" * (name in _MACRO) for name in names)]
    return Table("by_age", "By age", "", header, rows)


def _saliency_table(summary: Mapping[str, Any]) -> list[Table]:
    found = summary.get("saliency")
    if not found or "integrated_gradients" not in found:
        return []

    def cell(scores: Mapping[str, Any], name: str) -> str:
        ends = scores.get("ci95", {}).get(name)
        interval = f" [{number(ends[0])}, {number(ends[1])}]" if ends else ""
        return number(scores[name]) + interval

    names = ("pointing_game", "mass_in_box")
    share = number(found["box_share"])
    level = found["level"]
    random = found["randomisation"]
    caption = (
        f"Saliency of the true {noun_of(summary)} on {plural(found['n'], 'test image')} of "
        f"{plural(found['n_patients'], 'patient')} whose finding has a known box: how often the "
        "maximum lies in it, and the share of the saliency within, with 95 % intervals over "
        f"patients. Grad-CAM is computed at pyramid level {level} (stride {STRIDES[level]}). "
        "Sanity check: its rank correlation with the maps of a model with random heads is "
        f"{number(random['heads'])}, with random parameters throughout {number(random['all'])} "
        "(near 1: the maps do not show what the model has learned)."
    )
    return [
        Table(
            "saliency_scores",
            "Saliency against the true boxes",
            caption,
            ["Method", "Maximum in the box", "Share in the box"],
            [
                ["Grad-CAM", *(cell(found, name) for name in names)],
                [
                    "integrated gradients",
                    *(cell(found["integrated_gradients"], name) for name in names),
                ],
                ["evenly spread", share, share],
            ],
        )
    ]
