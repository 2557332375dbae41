"""How much a frozen encoder knows of conditions and ages: simple methods on its pooled last map."""

from __future__ import annotations

import functools
import logging
import os

import numpy as np

from data_pipeline import dataset as data
from data_pipeline.loader import BadFiles
from infantxray.evaluation import metrics as evaluation_metrics
from infantxray.evaluation.metrics import Predictions
from infantxray.features.classifiers import (
    Extractor,
    Features,
    fit_linear,
    fit_ridge_by_patient,
    pooled_map,
)
from infantxray.runs import runtime, workdir
from infantxray.stage_two import inference as diagnosis
from infantxray.stage_two import transfer

_log = logging.getLogger(__name__)

METHODS = ("linear", "knn")
_NEIGHBOURS = 20
_CHUNK = 1024  # Images whose neighbours are sought at a time.
_TEMPERATURE = 0.07


def nearest(features: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neighbours by the cosine of standardised features.

    Args:
      features: `[N, D]`, among which neighbours are sought.
      other: `[M, D]`.

    Returns:
      Rows of `features`, `[M, k]`, and the weights of their votes, which sum to 1 (Wu et al.,
      CVPR 2018: exp(cosine / 0.07), k at most 20).
    """
    mean, std = features.mean(0), features.std(0) + 1e-6

    def direction(x):
        x = (x - mean) / std
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    base = direction(features).T
    k = min(_NEIGHBOURS, len(features))
    rows, weights = np.empty((len(other), k), np.int64), np.empty((len(other), k))
    for start in range(0, len(other), _CHUNK):
        part = slice(start, start + _CHUNK)
        cosine = direction(other[part]) @ base
        rows[part] = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        weights[part] = np.exp((np.take_along_axis(cosine, rows[part], 1) - 1) / _TEMPERATURE)
    return rows, weights / weights.sum(1, keepdims=True)


def _linear(train: Features, test: Features, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    known, aged = train.label >= 0, train.records.has_age
    probabilities = np.full((len(test.label), num_classes), np.nan)
    ages = np.full(len(test.label), np.nan)
    if num_classes:
        predict = fit_linear(train.values[known], train.label[known], num_classes)
        probabilities = predict(test.values)
    if aged.any():
        target = train.records.age_months[aged][:, None].astype(np.float64)
        predict = fit_ridge_by_patient(train.values[aged], target, train.patient[aged])
        ages = predict(test.values)[:, 0]
    return probabilities, ages


def _knn(train: Features, test: Features, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    known, aged = train.label >= 0, train.records.has_age
    probabilities = np.full((len(test.label), num_classes), np.nan)
    ages = np.full(len(test.label), np.nan)
    if num_classes:
        rows, weights = nearest(train.values[known], test.values)
        votes = np.eye(num_classes)[train.label[known][rows]]  # [M, k, K]
        probabilities = (weights[:, :, None] * votes).sum(1)
    if aged.any():
        rows, weights = nearest(train.values[aged], test.values)
        ages = (weights * train.records.age_months[aged][rows]).sum(1)
    return probabilities, ages


def run(config, folder: str) -> None:
    """Probes the encoder of `config.pretrained` into the workdir `folder`."""
    runtime.setup()
    workdir.prepare(folder, config)
    done = os.path.join(folder, "metrics.json")
    if os.path.exists(done):
        _log.info("%s is finished: see metrics.json in it", folder)
        return
    split = data.open_split(config.data, folder)
    transfer.check_scored(config, split, ("test",))
    classes = data.find_classes(config.data, split.train)
    how = data.preprocessing(config.data)
    card = workdir.ModelCard(config.encoder, config.dtype, how, classes)
    card.write(folder)
    bad_files = BadFiles()
    reader = functools.partial(
        data.image_source,
        config.data,
        classes=classes,
        how=how,
        training=False,
        bad_files=bad_files,
    )
    extract = Extractor(config, pooled_map(*transfer.untrained_model(config, card)))
    train = split.train.take(split.train.has_label | split.train.has_age)
    if len(train) > config.train_films:
        rows = np.random.default_rng(config.seed).permutation(len(train))[: config.train_films]
        train = train.take(np.sort(rows))
    try:
        fitted, scored = extract(reader(train)), extract(reader(split.test))
    finally:
        diagnosis.write_bad_files(folder, bad_files)
    summary = {}
    for name, method in zip(METHODS, (_linear, _knn), strict=True):
        probabilities, ages = method(fitted, scored, len(classes))
        predictions = Predictions(
            classes=classes,
            probabilities=probabilities,
            label=scored.label,
            age_months=scored.records.age_months,
            age_predicted_months=ages,
            patient=scored.patient,
        )
        path = os.path.join(folder, f"predictions_{name}.csv")
        diagnosis.write_predictions(path, predictions, scored.records)
        summary[name] = evaluation_metrics.summarise(
            predictions, bootstrap_samples=config.bootstrap_samples, seed=config.seed
        )
        shown = {k: round(v, 3) for k, v in evaluation_metrics.headline(predictions).items()}
        _log.info("%s on frozen features: %s", name, shown)
    workdir.write_json(done, evaluation_metrics.to_json(summary))
