"""How far frozen encoders get with few labels or ages, over many draws of who keeps theirs.

Which patients are labelled moves a score with few labels by more than representations differ, and
fine-tuning adds a noise of its own. A linear probe is fitted in a second, so it can be repeated on
as many draws as it takes.
"""

from __future__ import annotations

import logging
import os

import jax
import numpy as np

from data_pipeline import dataset as data
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles
from data_pipeline.splits import Split, keep_labels
from infantxray.evaluation.metrics import Predictions
from infantxray.features.classifiers import (
    Extractor,
    Features,
    fit_linear,
    fit_ridge_by_patient,
    pooled_map,
)
from infantxray.reports import label_efficiency_page as label_efficiency
from infantxray.reports.label_efficiency_page import Draw
from infantxray.runs import runtime, workdir
from infantxray.runs.settings import PIXELS, RANDOM, compared_encoders
from infantxray.stage_two import inference as diagnosis
from infantxray.stage_two import transfer

_log = logging.getLogger(__name__)

_PIXELS_SIDE = 32


def draw_labels(config, split: Split, turns: int) -> list[Draw]:
    """All draws. With all labels there is one for each of the stages one that take turns."""
    draws = []
    for fraction in sorted(set(config.label_fractions)):
        for number in range(config.draws if fraction < 1 else turns):
            kept = keep_labels(
                split.train, fraction, config.data.split_seed, config.data.patient_ids, number
            )
            rows = np.flatnonzero(kept.has_label | kept.has_age)
            if len(rows) > config.train_films:
                order = np.random.default_rng([config.seed, number]).permutation(len(rows))
                rows = np.sort(rows[order[: config.train_films]])
            draws.append(Draw(fraction, number, rows))
    return draws


def run(config, folder: str) -> None:
    """Compares the encoders of `config.encoders` into the workdir `folder`."""
    runtime.setup()
    workdir.prepare(folder, config)
    done = os.path.join(folder, "metrics.json")
    if os.path.exists(done):
        _log.info("%s is finished: see report.html in it", folder)
        return
    encoders = compared_encoders(config.encoders)
    turns = max(map(len, encoders.values()))
    split = data.open_split(config.data, folder)
    classes = data.find_classes(config.data, split.train)
    if not classes and not split.train.has_age.any():
        raise DataError("no training image has a label or an age: there is nothing to probe")
    for place in {place for places in encoders.values() for place in places}:
        transfer.check_scored(_started_from(config, place), split, ("test",))
    data.check_split(config.data, split, classes)
    draws = draw_labels(config, split, turns)
    _log.info(
        "%d draws; images with a label or an age: %s",
        len(draws),
        ", ".join(
            f"{min(counts)} to {max(counts)} at {fraction:g}"
            for fraction in sorted(set(config.label_fractions))
            if (counts := [len(d.rows) for d in draws if d.fraction == fraction])
        ),
    )
    bad_files = BadFiles()
    needed = np.unique(np.concatenate([draw.rows for draw in draws]))
    # One source for all encoders: images that fit into memory are decoded once.
    sources = [
        data.image_source(
            config.data,
            records,
            classes,
            data.preprocessing(config.data),
            training=False,
            bad_files=bad_files,
        )
        for records in (split.train.take(needed), split.test)
    ]
    answers = {}
    try:
        for name, places in encoders.items():
            answers[name] = _probe(config, sources, needed, classes, places, draws)
    finally:
        diagnosis.write_bad_files(folder, bad_files)
    label_efficiency.write(config, folder, encoders, draws, answers)


def _started_from(config, place: str):
    """`config` for one stage one: its encoder, and where its weights are."""
    config = config.copy_and_resolve_references().unlock()
    config.pretrained = "" if place in (RANDOM, PIXELS) else place
    if config.pretrained and not place.startswith("torch:"):
        config.encoder = workdir.ModelCard.read(os.path.expanduser(place)).encoder
    return config


def _pixels(image: jax.Array, key: jax.Array) -> jax.Array:
    """`[B, S, S, 1]` -> means of 32 x 32 squares, `[B, 1024]`."""
    del key  # Nothing is random.
    batch, side = image.shape[:2]
    times = side // _PIXELS_SIDE
    x = image.reshape(batch, _PIXELS_SIDE, times, _PIXELS_SIDE, times).astype("float32")
    return x.mean(axis=(2, 4)).reshape(batch, -1)


def _features_of(config, place: str, seed: int, classes):
    """The function from images to features of one encoder."""
    if place == PIXELS:
        return _pixels
    started = _started_from(config, place)
    how = data.preprocessing(config.data)
    card = workdir.ModelCard(started.encoder, config.dtype, how, classes)
    started.seed = seed
    return pooled_map(*transfer.untrained_model(started, card))


def _probe(config, sources, needed, classes, places, draws) -> list[Predictions]:
    """The answers of one encoder for the test images, a probe a draw.

    Stages one that take turns do so by the number of the draw. `needed` are the training images of
    the first source, the second has the test images.
    """
    answers: dict[int, Predictions] = {}
    for turn, place in enumerate(places):
        extract = Extractor(config, _features_of(config, place, config.seed + turn, classes))
        fitted, scored = map(extract, sources)
        for i, draw in enumerate(draws):
            if draw.number % len(places) == turn:
                rows = np.isin(needed[fitted.rows], draw.rows)
                answers[i] = _answers(fitted, rows, scored, classes)
    return [answers[i] for i in range(len(draws))]


def _answers(fitted: Features, rows, scored: Features, classes) -> Predictions:
    """What probes answer that are fitted on the images of `rows`, a bool `[N]`.

    Conditions by logistic regression, ages by ridge regression. Where no image could be read that
    teaches them, conditions are equally likely and ages NaN.
    """
    labelled = rows & (fitted.label >= 0)
    aged = rows & fitted.records.has_age
    probabilities = np.full((len(scored.label), len(classes)), 1 / max(len(classes), 1))
    ages = np.full(len(scored.label), np.nan)
    if labelled.any():
        predict = fit_linear(fitted.values[labelled], fitted.label[labelled], len(classes))
        probabilities = predict(scored.values)
    if aged.any():
        known = fitted.records.age_months[aged][:, None].astype(np.float64)
        predict = fit_ridge_by_patient(fitted.values[aged], known, fitted.patient[aged])
        ages = predict(scored.values)[:, 0]
    return Predictions(
        classes=classes,
        probabilities=probabilities,
        label=scored.label,
        age_months=scored.records.age_months,
        age_predicted_months=ages,
        patient=scored.patient,
    )
