"""Reporting checklists (CLAIM 2024, STARD-AI, TRIPOD+AI), filled from a run and by its authors.

Each item names facts of the run, or a topic for the author. The topics form `author.yaml`, which is
written once beside the report. Later reports include its answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError
from data_pipeline.files import replaced
from infantxray.reports.page import Figure, listed, plural, software
from infantxray.reports.tables import Table

FORM = "author.yaml"
_NAMES = ("claim", "stard_ai", "tripod_ai")
_FOLDER = Path(__file__).parent / "checklists"
_HEAD = """\
# What only the authors of a study know, for the checklists at the end of report.html.
# Fill in what applies and leave the rest empty. Then delete report.html and give the same command
# again: the answers stand in the new report.
"""


@dataclasses.dataclass(frozen=True)
class Fact:
    """An answer of the run to an item, and the anchor of its place on the page."""

    text: str
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
      number: as published.
      section: of the checklist.
      text: what is asked.
      answers: texts and anchors.
      source: `"run"` or `"author"`; empty if the item is not answered.
      topic: of `author.yaml`, where the author is asked.
    """

    number: str
    section: str
    text: str
    answers: tuple[Fact, ...]
    source: str
    topic: str = ""


@dataclasses.dataclass(frozen=True)
class Checklist:
    """One filled checklist."""

    name: str
    reference: str
    note: str
    items: tuple[Item, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of items by the source of their answer."""
        return {
            who: sum(item.source == key for item in self.items)
            for key, who in (("run", "run"), ("author", "author"), ("", "open"))
        }


def read(name: str) -> dict[str, Any]:
    """The items of a checklist, unanswered."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def fill(facts: Mapping[str, Fact], author: Mapping[str, str]) -> list[Checklist]:
    """The checklists, as far as they can be answered.

    If both the run and its author must answer an item, it counts for the run only if the author has
    no part to add.

    Args:
      facts: of the run.
      author: answers by topic.
    """
    result = []
    for name in _NAMES:
        content = read(name)
        items = []
        for row in content["items"]:
            wanted, topic = row.get("answers", ()), row.get("author", "")
            known = tuple(facts[key] for key in wanted if key in facts)
            said = str(author.get(topic) or "").strip() if topic else ""
            complete = bool(wanted) and len(known) == len(wanted)
            source = "author" if said else "run" if complete and not topic else ""
            answers = (*known, Fact(said)) if said else known
            items.append(Item(row["number"], row["section"], row["text"], answers, source, topic))
        result.append(
            Checklist(content["name"], content["reference"], content["note"], tuple(items))
        )
    return result


def topics() -> dict[str, list[str]]:
    """The questions for the author, `{topic: questions}`, with the items that ask for them."""
    asked: dict[str, list[str]] = {}
    for name in _NAMES:
        content = read(name)
        for row in content["items"]:
            if "author" in row:
                question = f"{content['name']} {row['number']}: {row['text']}"
                asked.setdefault(row["author"], []).append(question)
    return asked


def write_form(folder: str) -> None:
    """Writes an empty `author.yaml`, unless there is one."""
    path = os.path.join(folder, FORM)
    if os.path.exists(path):
        return
    with replaced(path) as file:
        file.write(_HEAD)
        for topic, questions in topics().items():
            lines = "".join(f"# {question}\n" for question in questions)
            file.write(f'\n{lines}{topic}: ""\n')


def read_form(folders: Iterable[str]) -> dict[str, str]:
    """The author's answers by topic; earlier folders have precedence.

    Raises:
      UserError: a form is not valid YAML, or is not of topics and texts.
    """
    found: dict[str, str] = {}
    for folder in folders:
        path = os.path.join(folder, FORM)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            try:
                content = yaml.safe_load(file) or {}
            except yaml.YAMLError as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path} is not valid YAML ({reason})") from None
        known = topics()
        if not isinstance(content, dict):
            raise UserError(f"{path}: write one topic a line, such as funding: none")
        unknown = sorted(map(str, content.keys() - known.keys()))
        if unknown:
            raise UserError(f"{path}: no checklist asks for {unknown[0]!r}")
        found = {k: str(v) for k, v in content.items() if v not in (None, "")} | found
    return found


def table(checklist: Checklist) -> Table:
    """A checklist as a table, to write as CSV, Markdown and LaTeX."""
    rows = [
        [item.number, item.section, item.text, " ".join(a.text for a in item.answers), item.source]
        for item in checklist.items
    ]
    name = checklist.name.lower().replace(" ", "_").replace("-", "_").replace("+", "_")
    header = ["Item", "Section", "Asked", "Answer", "Answered by"]
    return Table(name, checklist.name, f"{checklist.reference}. {checklist.note}", header, rows)


def facts(
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    short: Sequence[str],
    figures: Sequence[Figure],
    *,
    num_parameters: int,
) -> dict[str, Fact]:
    """The facts of a run of stage two, by the names that checklists use.

    Args:
      settings: settings of the training run (`config.json`).
      summary: what `metrics.json` holds.
      short: the sentences of the summary.
      figures: of the page.
      num_parameters: of the network.
    """
    data, optimizer = settings["data"], settings["optimizer"]
    classes = list(summary.get("per_class", ()))
    anchors = {figure.anchor for figure in figures}
    size, flow = data["image_size"], summary.get("partitions", {})
    heads = [f"a condition head ({plural(len(classes), 'output')})"] * bool(classes)
    # The model's heads, also where the test images have no ages.
    lacking = (summary.get("not_computed") or {}).get("age_mae_months")
    has_age = summary.get("age_mae_months") is not None or lacking == "no image has a known age"
    heads += ["an age head"] * has_age
    several = settings.get("labels") == "multi"
    noun = "finding" if several else "condition"
    losses = [
        "binary cross-entropy over the known findings" if several else "cross-entropy"
    ] * bool(classes)
    losses += [
        f"{settings['age_weight']:g} times the age loss" if classes else "the age loss"
    ] * has_age
    named = [name.strip() for name in settings.get("condition_on", "").split(",") if name.strip()]
    inputs = listed(named) if named else ""
    by_class = "by_condition" if classes else "summary"
    length = (
        f"{settings['train_steps']:,} steps"
        if settings.get("train_steps")
        else f"{settings['train_epochs']:g} epochs"
        if settings.get("train_epochs")
        else "a length by the data (the notes of the report)"
    )
    changes = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in settings["augment"].items()
        if not isinstance(value, bool) and value
    ]
    given = "kept where the data bring one" if data["given_splits"] == "keep" else "made anew"
    crop = {"pad": "padded to a square", "crop": "cropped to a square", "squash": "squashed"}
    counts = [
        f"{row['n']:,} {name}" for name, row in list(summary.get("per_class", {}).items())[:20]
    ]
    found = {
        "technology": Fact(
            f"Deep learning: a convolutional network ({settings['encoder']}).", "summary"
        ),
        "goal": Fact(short[0], "summary"),
        "preprocessing": Fact(
            f"Images are decoded to 8-bit grey (DICOM windowed, MONOCHROME1 inverted), "
            f"{crop.get(data['resize'], data['resize'])} and resized to {size} x {size} pixels"
            f"{', dark borders trimmed' if data['trim_borders'] else ''}; intensities are "
            "standardised with a fixed mean and standard deviation.",
            "made",
        ),
        "subsets": Fact(
            f"Whole images; {data['label_fraction']:.0%} of the training patients keep labels.",
            "flow",
        ),
        "missing": Fact(
            f"An unknown {noun} or age is left out of its loss and of its metrics, never imputed: "
            f"{summary['n'] - summary['n_with_condition']:,} test images without a {noun}, "
            f"{summary['n'] - summary['n_with_age']:,} without an age, "
            f"{summary['n_unreadable']:,} unreadable."
            if classes
            else "An unknown age is left out of the loss and of the metrics, never imputed: "
            f"{summary['n'] - summary['n_with_age']:,} test images without an age, "
            f"{summary['n_unreadable']:,} unreadable.",
            "flow",
        ),
        "partitions": Fact(
            "At random by patient"
            + f", stratified by {'the rarest finding' if several else 'condition'}" * bool(classes)
            + f" (seed {data['split_seed']}; "
            f"{data['validation_fraction']:.0%} validation, {data['test_fraction']:.0%} test); a "
            f"given split is {given}. The assignment of each image is in split.csv.",
            "flow",
        ),
        "partition_level": Fact("Patient: no patient is in two partitions.", "demographics"),
        "architecture": Fact(
            f"{settings['encoder']} on one grey image of {size} x {size} pixels"
            + f" and {inputs}" * bool(inputs)
            + f", with {listed(heads) if heads else 'no head'}; {num_parameters:,} parameters.",
            "made",
        ),
        "classes": Fact(
            f"{noun.capitalize()}s: {', '.join(classes)}."
            if classes
            else "No conditions: the model predicts ages alone.",
            by_class,
        ),
        "predictors": Fact(
            f"The pixels of one image, and {inputs} where known; no other variable enters "
            "the model."
            if inputs
            else "The pixels of one image; no other variable enters the model.",
            "made",
        ),
        "output": Fact(
            f"A probability for each {noun} ({'sigmoid' if several else 'softmax'})"
            + ", and an age in months" * has_age
            + "."
            if classes
            else "An age in months.",
            "operating_points" if classes else "summary",
        ),
        "software": Fact(software(), "made"),
        "initialisation": Fact(
            f"Encoder from {settings['pretrained']}."
            if settings["pretrained"]
            else "Random weights.",
            "made",
        ),
        "training": Fact(
            f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g} with warm-up and "
            f"cosine decay, batches of {settings['batch_size']}, {length}, seed "
            f"{settings['seed']}; loss: {' plus '.join(losses)}; augmentation: "
            f"{', '.join(changes) or 'none'}.",
            "learning_curves" if "learning_curves" in anchors else "made",
        ),
        "selection": Fact(
            f"Best {settings['best_metric']} on validation patients, or the last checkpoint where "
            f"fewer than 100 validation images have an answer: step "
            f"{summary['checkpoint_step']:,}.",
            "learning_curves" if "learning_curves" in anchors else "made",
        ),
        "ensembles": Fact("None: predictions are those of one network.", "made"),
        "metrics": Fact(
            "Accuracy, macro recall, precision, F1 and ROC AUC"
            + ", mean absolute age error" * has_age
            + f"; by {noun} also partial AUC, average precision, calibration, Brier score, net "
            "benefit and accuracy at fixed thresholds."
            if classes
            else "Mean absolute age error.",
            "discrimination" if classes else "summary",
        ),
        "statistics": Fact(
            "95 % intervals over patients: bootstrap for headline metrics, "
            + "DeLong for ROC AUC, Wilson for shares, linearisation for the rest" * bool(classes)
            + "linearisation for subgroups" * (not classes)
            + "; Holm's correction for gaps between subgroups.",
            "discrimination" if classes else "summary",
        ),
        "updating": Fact("The model was not updated after training.", "made"),
        "imbalance": Fact(
            f"Loss weights by class: {settings['class_weights']}; macro metrics give each {noun} "
            "the same weight."
            if classes
            else "Not applicable: the model predicts ages alone.",
            by_class,
        ),
        "index_blinding": Fact(
            f"The model saw the image{f', {inputs}' if inputs else ''} alone"
            + "; thresholds were fixed on validation patients" * bool(classes)
            + ".",
            "operating_points" if classes else "summary",
        ),
        "indeterminate": Fact(
            "None: the model answers for every readable image; unreadable ones are counted.",
            "flow",
        ),
        "performance": Fact(short[1], "summary"),
        "counts": Fact(
            f"{summary['n_patients']:,} test patients, {summary['n']:,} images"
            + (f": {', '.join(counts)}." if counts else "."),
            by_class,
        ),
        "sources": Fact(f"Test images: {', '.join(summary['sources'])}.", "demographics"),
        "audit": Fact(
            "Every prediction is in predictions.csv, with its image and the truth; its checksum is "
            "in SHA256SUMS.",
            "made",
        ),
        "details": Fact("Every setting is listed on this page and in config.json.", "made"),
    }  # fmt: skip
    acquired = summary.get("acquisition") or {}
    if acquired.get("year"):
        years = sorted({min(acquired["year"]), max(acquired["year"])})
        found["dates"] = Fact(f"Studies of {' to '.join(years)} (DICOM headers).", "demographics")
    devices = [*acquired.get("manufacturer", ()), *acquired.get("kvp", ())]
    if devices:
        found["devices"] = Fact(f"DICOM headers: {', '.join(devices)}.", "demographics")
    if summary.get("external"):
        found["external"] = Fact(f"{', '.join(summary['sources'])}: {short[1]}", "summary")
        found["external_differences"] = Fact("See the external test in Table 1.", "demographics")
    else:
        found["external_differences"] = Fact("Not applicable: no external test set.", "summary")
        found["internal"] = Fact("Held-out patients of the training sources.", "summary")
    if flow:
        sizes = ", ".join(f"{count:,} {part}" for part, count in flow.items())
        found["flow"] = Fact(f"Images: {sizes}; exclusions are counted in the flow chart.", "flow")
        found["demographics"] = Fact("See Table 1 on this page.", "demographics")
    if summary.get("findings"):
        found["accuracy"] = Fact(
            "Areas, and sensitivity, specificity and predictive values at thresholds from "
            "validation patients, with intervals.",
            "operating_points" if summary.get("operating_points") else "discrimination",
        )
        found["confusion"] = (
            Fact(
                "By finding, sensitivity and specificity; findings that may occur together have no "
                "joint confusion matrix.",
                "operating_points" if summary.get("operating_points") else "by_condition",
            )
            if several
            else Fact("See the confusion matrix.", "confusion_matrix")
        )
    if summary.get("operating_points"):
        rules = dict.fromkeys(row["rule"] for row in summary["operating_points"])
        found["thresholds"] = Fact(
            f"Fixed on validation patients by {', '.join(rules)}, for the probabilities of "
            "predictions.csv"
            + ("; calibrated ones have their own." if summary.get("after_scaling") else "."),
            "operating_points",
        )
    if summary.get("subgroups"):
        names = ", ".join(summary["subgroups"])
        found["subgroups"] = Fact(f"Metrics and gaps by {names}.", "subgroups")
    if "where_the_answer_comes_from" in anchors:
        found["explanations"] = Fact(
            "Grad-CAM of a finding that is present."
            if several
            else "Grad-CAM of the predicted and of the true condition.",
            "where_the_answer_comes_from",
        )
    if "worst_mistakes" in anchors:
        found["failures"] = Fact("The surest wrong answers, with their saliency.", "worst_mistakes")
    return found
