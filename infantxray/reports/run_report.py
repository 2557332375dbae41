"""Evaluation of a stage-two model: metrics, predictions, figures and the report of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data_pipeline import files
from data_pipeline.boxes import image_boxes
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.files import replaced, write_json
from data_pipeline.labels import FindingNames, names_in
from data_pipeline.loader import ImageSource, class_indices
from data_pipeline.manifest import Records
from data_pipeline.splits import read_split
from infantxray.evaluation import diagnostics, operating_points
from infantxray.evaluation.localisation import Box, Images, examples, localisation, mistakes
from infantxray.evaluation.metrics import headline
from infantxray.evaluation.operating_points import FILE as POINTS
from infantxray.evaluation.operating_points import OperatingPoint, read_points
from infantxray.evaluation.predictions import Predictions, write_predictions
from infantxray.evaluation.saliency import Explainer
from infantxray.evaluation.summary import baseline, calibration_of, summarise, to_json
from infantxray.features.baselines import RIDGE, baselines
from infantxray.reports import (
    checklist,
    columns,
    demographics,
    plots,
    run_page,
    run_sections,
    stage_one_gain,
)
from infantxray.reports.page import Figure
from infantxray.reports.tables import Table
from infantxray.runs import workdir
from infantxray.stage_one.objectives import panel_names
from infantxray.stage_two.inference import Predictor, restore
from infantxray.stage_two.trust import Trust
from infantxray.training import processes
from infantxray.training.waiting import waiting
from infantxray.training.writers import read_history

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Review:
    """What a report shows beside the headline metrics.

    Attributes:
      operating_points: rules of thresholds, such as `sensitivity:0.95,youden`; empty = none.
      prevalence: shares, separated by commas, at which predictive values are stated too.
      subgroups: columns of `reports.columns`, separated by commas; empty = none.
    """

    operating_points: str = "sensitivity:0.95,youden"
    prevalence: str = ""
    subgroups: str = "sex,age,view,site"


def evaluate(
    folder: str,
    *,
    checkpoint: str,
    source: ImageSource,
    predictor: Predictor,
    bootstrap_samples: int,
    seed: int,
    data: DataSettings,
    reader: Reader,
    stage_one_known: bool = True,
    validation: ImageSource | None = None,
    review: Review = Review(),
    names: FindingNames | None = None,
    label_notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes `metrics.json`, `predictions.csv`, `figures/`, `tables/` and `report.html`.

    Also `operating_points.json` (thresholds), `curves.json`, `SHA256SUMS` and an empty
    `author.yaml`.

    Args:
      folder: output folder.
      checkpoint: the workdir of stage two.
      source: images to score.
      predictor: runs its model.
      bootstrap_samples: bootstrap samples for the intervals.
      seed: seed of the resampling.
      data: how the labels of the baseline's training images are read.
      reader: of these images.
      stage_one_known: whether the training patients of stage one could be checked.
      validation: images on which thresholds are fixed, if the checkpoint has none yet.
      review: what else the report shows.
      names: names of the findings, if an image may have several.
      label_notes: changes of labels, for the report.

    Returns:
      The contents of `metrics.json`; empty on processes that do not write.

    Raises:
      UserError: the images lack a column of the subgroups, or `author.yaml` is not valid.
      DataError: no test image can be read.
    """
    spec = predictor.spec
    checkpoint = os.path.expanduser(checkpoint)
    columns.parse(review.subgroups, source.records)
    trust = Trust.read(checkpoint)
    variables, step = restore(checkpoint, spec)
    _log.info("model of %s, step %d: predicting %d test images", checkpoint, step, len(source))
    predictions, records = _predict(predictor, variables, source, "test")
    if not len(records):
        raise DataError("none of the test images could be read")
    points = _operating_points(folder, checkpoint, predictor, variables, validation, review)
    if not processes.is_main():
        return {}
    split = read_split(os.path.join(checkpoint, "split.csv"))
    with _telling(f"ridge on pixels of {len(split.train):,} training images"):
        pixels = _readable(baselines(data, split, predictions, records, reader)[RIDGE])
    with _telling(f"metrics and {bootstrap_samples:,} bootstrap samples"):
        summary = summarise(predictions, bootstrap_samples=bootstrap_samples, seed=seed)
        curves: dict[str, Any] = {}
        if spec.classes:
            summary["calibration"] = calibration_of(predictions)
            summary["after_scaling"] = _after_scaling(predictions, trust)
            ridge = None if pixels is None or np.isnan(pixels.probabilities).any() else pixels
            summary["findings"], curves = diagnostics.findings(predictions, ridge, seed=seed)
            prevalences = operating_points.parse_prevalences(review.prevalence)
            summary["operating_points"] = diagnostics.at_points(predictions, points, prevalences)
        named = columns.parse(review.subgroups, records)
        groups = columns.read(records, named)
        summary["subgroups"] = diagnostics.by_subgroup(predictions, groups, points)
    train = split.train
    train_label = class_indices(train.label, spec.classes)
    sources = list(dict.fromkeys(records.source.tolist()))
    external = not set(sources) & set(split.train.source.tolist())
    parts = {"train": split.train, "validation": split.validation, "test": source.records}
    parts = {("external test" if external and n == "test" else n): p for n, p in parts.items()}
    with waiting("DICOM headers"):
        headers = {name: columns.sampled_headers(part) for name, part in parts.items()}
    summary |= {
        "baseline": baseline(
            predictions,
            train_label,
            spec.age_mean_months,
            names.matrix(train) if names is not None else None,
        ),
        "label_notes": list(label_notes),
        "sources": sources,
        "external": external,
        "partitions": {name: len(part) for name, part in parts.items()},
        "acquisition": columns.acquisition(headers.values()),
        "checkpoint_step": step,
        "n_unreadable": len(source) - len(records),
        "n_constant": len(source.bad_files.constant.intersection(records.image_path)),
        "n_without_patient_id": int((records.patient_id == "").sum()),
        "stage_one_known": stage_one_known,
    }
    if pixels is not None:
        summary["baseline"][run_page.PIXELS] = headline(pixels)
    explain = Explainer(predictor.model, variables, mean=spec.input_mean, std=spec.input_std)
    images = _images(source, records, spec.preprocessing)
    with _telling("saliency"):
        found = localisation(explain, images, predictions, samples=bootstrap_samples, seed=seed)
        if found:
            summary["saliency"] = found
        explained = examples(explain, images, predictions)
        mistaken = mistakes(explain, images, predictions)
    settings = workdir.read_config(checkpoint)
    summary["stage_one"] = stage_one_gain.read(checkpoint, settings, summary)
    summary = to_json(summary)
    files.remove_checksums(folder)
    write_json(os.path.join(folder, "metrics.json"), summary)
    write_json(os.path.join(folder, "curves.json"), to_json(curves))
    write_predictions(os.path.join(folder, "predictions.csv"), predictions, records)
    with _telling("figures"):
        drawings = os.path.join(folder, "figures")
        history = read_history(os.path.join(checkpoint, "history.jsonl"))
        figures = run_page.draw(drawings, predictions, summary, history, explained, mistaken)
        figures += _stage_one_panels(settings)
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        _write_page(
            folder,
            checkpoint,
            settings=settings,
            summary=summary,
            figures=figures,
            drawn=run_sections.figures(drawings, predictions, curves),
            patients=_patients(drawings, parts, headers, summary),
            num_parameters=num_parameters,
        )
    written = ["metrics.json", "predictions.csv", "report.html", *([POINTS] if points else [])]
    files.write_checksums(folder, written)
    _log.info("report: %s", os.path.join(folder, "report.html"))
    _log.info("test: %s", run_page.result_line(summary))
    gain = stage_one_gain.sentence(summary["stage_one"])
    if gain:
        _log.info("%s", gain)
    return summary


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Logs `what` at once, and every few seconds until the block ends."""
    _log.info("%s", what)
    with waiting(what):
        yield


def _write_page(
    folder: str,
    checkpoint: str,
    *,
    settings: dict[str, Any],
    summary: dict[str, Any],
    figures: list[Figure],
    drawn: dict[str, Figure],
    patients: list[Table | Figure],
    num_parameters: int,
) -> None:
    short = run_page.summary_sentences(settings, summary)
    facts = checklist.facts(settings, summary, short, figures, num_parameters=num_parameters)
    checklist.write_form(folder)
    filled = checklist.fill(facts, checklist.read_form([folder, checkpoint]))
    sections = run_sections.tables(summary)
    written = [table for tables in sections.values() for table in tables]
    written += [part for part in patients if isinstance(part, Table)]
    for table in (*written, *map(checklist.table, filled)):
        table.write(os.path.join(folder, "tables"))
    run_page.write(
        os.path.join(folder, "report.html"),
        settings=settings,
        summary=summary,
        figures=figures,
        sections=sections,
        groups=run_sections.groups(
            sections,
            drawn,
            patients,
            filled,
            scaling=run_sections.scaling(summary),
            noun=run_sections.noun_of(summary),
        ),
    )


def _predict(
    predictor: Predictor, variables: Any, source: ImageSource, what: str
) -> tuple[Predictions, Records]:
    """Predictions with a line of progress every few seconds."""
    done = 0

    def count(part: tuple[Predictions, Records]) -> tuple[Predictions, Records]:
        nonlocal done
        done += len(part[1])
        return part

    with waiting(lambda: f"predicted {done:,} of {len(source):,} {what} images"):
        return predictor.joined(source, map(count, predictor.stream(variables, source)))


def _operating_points(
    folder: str,
    checkpoint: str,
    predictor: Predictor,
    variables: Any,
    validation: ImageSource | None,
    review: Review,
) -> list[OperatingPoint]:
    """Thresholds of the checkpoint, or new ones on its validation images.

    The first process writes them to `operating_points.json` of the workdir.
    """
    rules = operating_points.parse_rules(review.operating_points)
    if not rules or not predictor.spec.classes:
        return []
    wanted = [str(rule) for rule in rules]
    with processes.main_first():
        stored = read_points(checkpoint)
    points = [point for point in stored if point.rule in wanted]
    if not set(wanted) <= {point.rule for point in points} and validation is not None:
        _log.info("thresholds on %d validation images", len(validation))
        try:
            predictions, _ = _predict(predictor, variables, validation, "validation")
        except DataError as error:
            _log.warning("no operating points: a validation image cannot be read (%s)", error)
        else:
            points = diagnostics.choose_points(predictions, rules)
    if not points:
        _log.warning("no operating points: no validation images of both outcomes")
        return []
    if processes.is_main():
        files.remove_checksums(folder)
        with replaced(os.path.join(folder, POINTS)) as file:
            file.write(operating_points.to_json(points))
    return points


def _after_scaling(predictions: Predictions, trust: Trust | None) -> dict[str, Any] | None:
    """Calibration error and thresholds of the probabilities that `predict` gives.

    All other metrics are of the network's own probabilities, as in `predictions.csv`. None if no
    temperature was fitted.
    """
    if trust is None or trust.temperature is None:
        return None
    ages = predictions.age_predicted_months
    scaled = trust.judge(predictions.probabilities, ages, None).probabilities
    found = calibration_of(dataclasses.replace(predictions, probabilities=scaled))
    thresholds: dict[str, dict[str, float]] = {}
    for point in trust.points:
        thresholds.setdefault(point.rule, {})[point.finding] = point.threshold
    return {
        "expected_calibration_error": found["expected_calibration_error"],
        "thresholds": thresholds,
    }


def _readable(pixels: Predictions) -> Predictions | None:
    """The baseline, or None where no training image could be read."""
    known = (
        np.isfinite(pixels.probabilities).any() or np.isfinite(pixels.age_predicted_months).any()
    )
    if not known:
        _log.warning("no ridge on pixels: no training image with a condition or age can be read")
        return None
    return pixels


def _patients(
    folder: str,
    parts: dict[str, Records],
    headers: dict[str, dict[str, np.ndarray]],
    summary: dict[str, Any],
) -> list[Table | Figure]:
    """Table 1 and the flow of images, as a table and as a chart."""
    scored = {
        "images": summary["n"],
        f"with a known {run_sections.noun_of(summary)}": summary["n_with_condition"],
        "with a known age": summary["n_with_age"],
    }
    if not summary.get("per_class"):  # A model of ages alone.
        del scored["with a known condition"]
    left_out = {"unreadable": summary["n_unreadable"]}
    flow = demographics.flow_table(parts, left_out, scored, external=summary["external"])
    paths = plots.save(folder, "flow", functools.partial(demographics.flow_chart, flow))
    chart = Figure("", "Flow of images from the split to the scores.", *paths)
    return [demographics.table_one(parts, headers), flow, chart]


def _stage_one_panels(settings: dict[str, Any]) -> list[Figure]:
    stage_one = os.path.expanduser(settings["pretrained"])
    panels = os.path.join(stage_one, "figures", "panels.png")
    if not settings["pretrained"] or not os.path.exists(panels):
        return []
    names = panel_names(workdir.read_config(stage_one).get("objective", ""))
    # A stage two may be another one's start: it has no panels.
    return [run_page.panels(panels, names)] if names else []


def _images(source: ImageSource, records: Records, preprocessing: Preprocessing) -> Images:
    """Access to the images of `records`, some of the source's, and to their boxes."""
    row_of = {path: row for row, path in enumerate(source.records.image_path)}

    def load(row: int) -> np.ndarray:
        return np.asarray(source[row_of[records.image_path[row]]]["image"])

    # Some data sets name boxes by other words than findings: PediCXR's diagnoses have boxes of
    # opacities. Then all boxes of an image of one finding are where that is.
    named = {box.label for boxes in records.boxes for box in boxes}
    same_words = not named.isdisjoint(names_in(records.label))

    def boxes(row: int, name: str) -> list[Box]:
        found = image_boxes(records, row, preprocessing)
        of_finding = [b[:4] for b in found if not b.label or name in b.label.split("|")]
        alone = not same_words and "|" not in records.label[row]
        return of_finding or [box[:4] for box in found if alone]

    return Images(load, boxes)
