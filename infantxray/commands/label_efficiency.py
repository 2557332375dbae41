"""`label_efficiency`: probes of frozen encoders with few labels, over many draws of the labels.

With few labels, the choice of the labelled patients changes a score by more than the choice of the
encoder. A linear probe is fitted in a second, so it can be repeated over many draws.
"""

from __future__ import annotations

import functools
import logging
import os

import numpy as np

from data_pipeline.conditions import check_split, find_classes, finding_names
from data_pipeline.dataset import DataSettings, Reader, open_split
from data_pipeline.division import keep_labels
from data_pipeline.errors import DataError
from data_pipeline.splits import Split
from infantxray.evaluation.predictions import Predictions
from infantxray.features.classifiers import probe
from infantxray.features.extraction import (
    Extractor,
    encoder_variables,
    pixels,
    pooled_map,
    read_features,
)
from infantxray.reports import label_efficiency_page
from infantxray.reports.label_efficiency_page import Draw
from infantxray.runs import runtime, settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.runs.settings import FEATURES, PIXELS, RANDOM, compared_encoders
from infantxray.stage_two import transfer
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Compares the encoders of `config.encoders` into the workdir `folder`."""
    runtime.setup()
    workdir.prepare(folder, settings.to_dict(config))
    done = os.path.join(folder, "metrics.json")
    if os.path.exists(done):
        _log.info("%s is finished: see report.html in it", folder)
        return
    data = settings.data_settings(config)
    encoders = compared_encoders(config.encoders)
    turns = max(map(len, encoders.values()))
    split = open_split(data, folder)
    classes = find_classes(data, split.train)
    if not classes and not split.train.has_age.any():
        raise DataError("no training image has a label or an age: there is nothing to probe")
    for place in {place for places in encoders.values() for place in places}:
        transfer.check_scored(_pretrained(place), split, ("test",), patient_ids=data.patient_ids)
    check_split(data, split, classes)
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
    needed = np.unique(np.concatenate([draw.rows for draw in draws]))
    # One source for all encoders: images that fit into memory are decoded once.
    reader = Reader(data, classes, names=finding_names(data, split, classes))
    sources = [reader(split.train.take(needed)), reader(split.test)]
    answers, tested = {}, {}
    try:
        for name, places in encoders.items():
            with waiting(f"probes of {name}"):
                answers[name], tested[name] = _probe(
                    config, sources, needed, classes, places, draws
                )
    finally:
        reader.write_bad_files(folder)
    # Vectors of another program may be there for images that cannot be read.
    common = functools.reduce(np.intersect1d, tested.values())
    for name, rows in tested.items():
        answers[name] = [answer.take(np.isin(rows, common)) for answer in answers[name]]
    with waiting("tables and figures"):
        label_efficiency_page.write(
            folder,
            encoders,
            draws,
            answers,
            samples=config.bootstrap_samples,
            seed=config.seed,
            settings=settings.to_dict(config),
        )


def draw_labels(config, split: Split, turns: int) -> list[Draw]:
    """All draws; with all labels one for each of the encoders that take turns."""
    draws = []
    for fraction in sorted(set(config.label_fractions)):
        for number in range(config.draws if fraction < 1 else turns):
            kept = keep_labels(split.train, fraction, config.data.split_seed, number)
            rows = np.flatnonzero(kept.has_label | kept.has_age)
            if len(rows) > config.train_films:
                order = np.random.default_rng([config.seed, number]).permutation(len(rows))
                rows = np.sort(rows[order[: config.train_films]])
            draws.append(Draw(fraction, number, rows))
    return draws


def _pretrained(place: str) -> str:
    return "" if place in (RANDOM, PIXELS) or place.startswith(FEATURES) else place


def _extractor(config, place: str, seed: int, classes: tuple[str, ...]):
    """The function that computes the features of one encoder, and its variables."""
    options = {"batch_size": config.batch_size, "num_threads": config.data.num_threads}
    if place == PIXELS:
        return Extractor(pixels, **options), None
    pretrained = _pretrained(place)
    encoder = ModelSpec.read(pretrained).encoder if transfer.is_workdir(pretrained) else None
    data = settings.build(DataSettings, config.data)
    spec = ModelSpec(encoder or config.encoder, config.dtype, data.preprocessing, classes)
    spec = transfer.with_input_scale(spec, pretrained)
    model, variables = transfer.untrained_model(spec, pretrained, seed)
    function = pooled_map(model.encoder, mean=spec.input_mean, std=spec.input_std)
    inner = encoder_variables(variables)
    return Extractor(function, **options), inner


def _probe(config, sources, needed, classes, places, draws) -> tuple[list[Predictions], np.ndarray]:
    """Predictions for the test images with one encoder, a probe a draw, and their rows.

    Places of several seeds take turns by the number of the draw. `needed` are the training images
    of the first source; the second has the test images.
    """
    answers: dict[int, Predictions] = {}
    tested = np.arange(len(sources[1]))
    for turn, place in enumerate(places):
        if place.startswith(FEATURES):
            path = os.path.expanduser(place.removeprefix(FEATURES))
            fitted, scored = (read_features(path, source) for source in sources)
        else:
            extract, variables = _extractor(config, place, config.seed + turn, classes)
            fitted, scored = (extract(source, variables) for source in sources)
        # Some places may lack an image that others have.
        both = np.intersect1d(tested, scored.rows)
        for i, answer in answers.items():
            answers[i] = answer.take(np.isin(tested, both))
        tested, scored = both, scored.take(np.isin(scored.rows, both))
        for i, draw in enumerate(draws):
            if draw.number % len(places) == turn:
                rows = np.isin(needed[fitted.rows], draw.rows)
                answers[i] = probe(fitted.take(rows), scored, classes)
    return [answers[i] for i in range(len(draws))], tested
