"""Fitting of `Trust`: on validation patients and training features, at the end of stage two."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.conditions import finding_names
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from data_pipeline.splits import read_split
from infantxray.evaluation import conformal
from infantxray.evaluation.diagnostics import choose_points
from infantxray.evaluation.operating_points import Rule, parse_rules
from infantxray.evaluation.outliers import fit_detector
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.temperature import RANGE, fit_temperature, fit_temperature_binary
from infantxray.runs import workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import Predictor
from infantxray.stage_two.trust import Trust
from infantxray.training import processes

PyTree = Any

MIN_VALIDATION = 50
_MIN_OUTCOME = 10  # Images with a finding, and without it, for its temperature.
_MOST_IMAGES = 2000  # Training images for the statistics of features.
_MOST_NEIGHBOURS = 500
_UNDETERMINED = (
    "the validation images determine no temperature (nearly all are right, or the probabilities do "
    "not follow the labels)"
)
_COVERAGE, _RULES = 0.9, "sensitivity:0.95,youden"  # Of configs/finetune.py.
_log = logging.getLogger(__name__)


def fit(
    predictor: Predictor,
    variables: PyTree,
    reader: Callable[[Records], ImageSource],
    training: Records,
    validation: Records,
    *,
    coverage: float = _COVERAGE,
    rules: Sequence[Rule] = parse_rules(_RULES),
    seed: int = 0,
) -> Trust:
    """Fits all components; a component with too few images is skipped, with the reason.

    Args:
      predictor: runs the model.
      variables: its parameters and statistics.
      reader: opens the images of records.
      training: images that the model learned from; at most 2,000 are read, drawn at random.
      validation: images of other patients.
      coverage: coverage of prediction sets and age intervals, within (0, 1).
      rules: of the thresholds.
      seed: seed of the draw.
    """
    spec = predictor.spec

    def outputs(source: ImageSource) -> tuple[dict[str, np.ndarray], np.ndarray]:
        parts, rows = [], [np.zeros(0, int)]
        for part, kept in predictor.outputs(variables, source):
            parts.append(part)
            rows.append(kept)
        joined = {k: np.concatenate([p[k] for p in parts]) for k in (parts[0] if parts else {})}
        return joined, np.concatenate(rows)

    known = training.age_months[training.has_age]
    values: dict[str, Any] = {"coverage": coverage}
    if spec.has_age and len(known):
        values["age_range_months"] = float(known.min()), float(known.max())
    source = reader(validation)
    found, rows = outputs(source)
    age = validation.age_months[rows]
    months = np.full(len(rows), np.nan)
    if spec.has_age and len(rows):
        months = np.asarray(spec.age_in_months(found["age"]))
    predictions = Predictions(
        spec.classes,
        found.get("probabilities", np.zeros((len(rows), len(spec.classes)), np.float32)),
        source.labels[rows],
        age,
        months,
        validation.patient[rows],
        source.findings[rows] if spec.multi_label and source.findings is not None else None,
    )
    fitted, reasons = _fit_conditions(predictions, coverage, rules)
    values |= fitted | {"n_validation": len(rows)}
    if spec.has_age:
        aged = int(np.isfinite(age).sum())
        if aged < MIN_VALIDATION:
            reasons.append(
                f"age interval: {aged} validation images have a known age, fewer than "
                f"{MIN_VALIDATION}"
            )
        else:
            values["age_half_width_months"] = conformal.fit_age_interval(
                months, age, coverage=coverage
            )
    if len(rows) < MIN_VALIDATION:
        reasons.append(f"outliers: {len(rows)} validation images, fewer than {MIN_VALIDATION}")
    else:
        order = np.random.default_rng(seed).permutation(len(training))[:_MOST_IMAGES]
        features = outputs(reader(training.take(np.sort(order))))[0].get("features")
        if features is None or len(features) < 2:
            reasons.append("outliers: no training image can be read")
        else:
            values["detector"] = fit_detector(
                features, found["features"], max_neighbours=_MOST_NEIGHBOURS
            )
    trust = Trust(**values, skipped="; ".join(reasons))
    assert suits(trust, spec)
    if reasons:
        _log.warning("skipped: %s", trust.skipped)
    return trust


def for_workdir(
    folder: str, spec: ModelSpec, variables: PyTree, *, refit: bool = True, batch_size: int = 32
) -> Trust | None:
    """Reads a model's `Trust`, or fits and stores it for a run that has none.

    Components that cannot be fitted, because the images of the run are gone, are skipped with one
    line.

    Args:
      folder: the workdir of the run.
      spec: specification of the model.
      variables: its parameters and statistics.
      refit: fit it where there is none, or where that of an earlier version does not suit.
      batch_size: images at a time on each device.

    Returns:
      None if the run has `config.coverage=0`, or without `refit` no `trust.json`.
    """
    folder = os.path.expanduser(folder)
    coverage = _recorded(folder, "coverage", _COVERAGE)
    if not coverage:
        return None
    with processes.main_first():  # It may be written below.
        found = Trust.read(folder)
    if found is not None and suits(found, spec):
        return found
    if found is not None:
        reason = "that of an earlier version does not suit the model"
        found = dataclasses.replace(
            found, temperature=None, sets=None, points=(), test={}, skipped=f"calibration: {reason}"
        )
        _log.warning("calibration of %s: %s", folder, reason)
    if not refit:
        return found
    try:
        split = read_split(os.path.join(folder, "split.csv"))
        patient_ids = _recorded(folder, "data", {}).get("patient_ids", "shared")
        reader = reader_of(folder, spec)
        _log.info("fitting calibration and outlier detection for %s", folder)
        trust = fit(
            Predictor(spec, batch_size=batch_size, num_threads=4),
            variables,
            reader,
            split.train,
            split.validation.with_patients(patient_ids),
            coverage=coverage,
            rules=parse_rules(_recorded(folder, "operating_points", _RULES)),
        )
    except (UserError, OSError) as error:
        reason = f"images of the run cannot be read ({error})"
        if found is not None:
            _log.warning("calibration is not fitted again: %s", reason)
            return found
        _log.warning("calibration and outlier detection are skipped: %s", reason)
        return Trust(skipped=reason)
    try:
        if processes.is_main():
            trust.write(folder)
    except OSError as error:
        _log.warning("%s cannot be written to (%s): fitted for this command only", folder, error)
    return trust


def suits(trust: Trust, spec: ModelSpec) -> bool:
    """Whether the calibration is of the model's kind.

    Earlier versions may have fitted one condition an image where an image may have several, and
    stored a limit of the range where validation images determine no temperature.
    """
    temperature = trust.temperature
    if temperature is not None and isinstance(temperature, tuple) != spec.multi_label:
        return False
    temperatures = temperature if isinstance(temperature, tuple) else (temperature,)
    if any(value in RANGE for value in temperatures):
        return False
    return trust.sets is None or not spec.multi_label


def reader_of(folder: str, spec: ModelSpec) -> Reader:
    """Opens the images of a run again as it did; leaves out those that can no longer be read."""
    recorded = workdir.read_config(folder)["data"]
    names = {f.name for f in dataclasses.fields(DataSettings)}
    kept = {k: v for k, v in recorded.items() if k in names} | {"on_error": "skip"}
    data = DataSettings(**kept | {"labels": "multi" if spec.multi_label else "single"})
    found = None
    if spec.multi_label:
        found = finding_names(data, read_split(os.path.join(folder, "split.csv")), spec.classes)
    return Reader(data, spec.classes, spec.preprocessing, names=found, context=spec.context)


def _recorded(folder: str, key: str, default: Any) -> Any:
    """A setting of a run. Earlier versions lack some; a model can be used without `config.json`."""
    if not os.path.exists(os.path.join(folder, "config.json")):
        return default
    return workdir.read_config(folder).get(key, default)


def _fit_conditions(
    predictions: Predictions, coverage: float, rules: Sequence[Rule]
) -> tuple[dict[str, Any], list[str]]:
    """Temperature, sets and thresholds from validation images, and why one of them is missing."""
    values: dict[str, Any] = {}
    p, classes = predictions.probabilities, predictions.classes
    reasons = []
    if predictions.multi_label:
        found: dict[str, float | None] = {}
        few = []
        for k, name in enumerate(classes):
            known, positive = predictions.outcome(k)
            cases = int(positive.sum())
            if min(cases, int(known.sum()) - cases) < _MIN_OUTCOME:
                few.append(name)
            else:
                found[name] = fit_temperature_binary(p[:, k], positive, known)
        if any(found.values()):
            values["temperature"] = tuple(found.get(name) or 1.0 for name in classes)
        undetermined = [name for name, temperature in found.items() if temperature is None]
        if few:
            reasons.append(
                f"calibration of {', '.join(few)}: fewer than {_MIN_OUTCOME} validation images "
                "with or without it"
            )
        if undetermined:
            reasons.append(f"calibration of {', '.join(undetermined)}: {_UNDETERMINED}")
        has_points = bool(found)
    else:
        labelled = int((predictions.label >= 0).sum())
        if classes and labelled < MIN_VALIDATION:
            return values, [
                f"calibration: {labelled} validation images have a known condition, fewer than "
                f"{MIN_VALIDATION}"
            ]
        has_points = bool(classes)
        if classes:
            values["temperature"] = fit_temperature(p, predictions.label)
            if values["temperature"] is None:
                reasons.append(f"calibration: {_UNDETERMINED}")
    calibrated = Trust(**values).judge(p, predictions.age_predicted_months, None).probabilities
    if classes and not predictions.multi_label:
        sets = conformal.fit_sets(calibrated, predictions.label, coverage=coverage)
        # Every class has a nonconformity of at most 1, and JSON has no infinity.
        limits = tuple(min(threshold, 1.0) for threshold in sets.thresholds)
        values["sets"] = dataclasses.replace(sets, thresholds=limits)
    if has_points:
        scaled = dataclasses.replace(predictions, probabilities=calibrated)
        values["points"] = tuple(choose_points(scaled, rules))
    return values, reasons
