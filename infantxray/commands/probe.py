"""`probe`: simple classifiers on a frozen encoder's pooled last map."""

from __future__ import annotations

import logging
import os

import numpy as np

from data_pipeline.conditions import find_classes, finding_names
from data_pipeline.dataset import Reader, check_finished, open_split
from data_pipeline.files import write_json
from infantxray.evaluation import metrics
from infantxray.evaluation.predictions import write_predictions
from infantxray.evaluation.summary import summarise, to_json
from infantxray.features import classifiers
from infantxray.features.extraction import Extractor, encoder_variables, pooled_map
from infantxray.runs import runtime, settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import transfer
from infantxray.training import processes

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Probes the encoder of `config.pretrained` into the workdir `folder`."""
    runtime.setup()
    workdir.prepare(folder, settings.to_dict(config))
    data = settings.data_settings(config)
    done = os.path.join(folder, "metrics.json")
    if os.path.exists(done):
        with processes.main_first():
            check_finished(data, folder)
        _log.info("%s is finished: see metrics.json in it", folder)
        return
    with processes.main_first():
        split = open_split(data, folder)
    transfer.check_scored(config.pretrained, split, ("test",), patient_ids=data.patient_ids)
    classes = find_classes(data, split.train)
    multi = data.multi_label and bool(classes)
    spec = ModelSpec(config.encoder, config.dtype, data.preprocessing, classes, multi_label=multi)
    spec = transfer.with_input_scale(spec, config.pretrained)
    spec.write(folder)

    model, variables = transfer.untrained_model(spec, config.pretrained, config.seed)
    encoder = encoder_variables(variables)
    extract = Extractor(
        pooled_map(model.encoder, mean=spec.input_mean, std=spec.input_std),
        batch_size=config.batch_size,
        num_threads=data.num_threads,
    )
    train = split.train.take(split.train.has_label | split.train.has_age)
    if len(train) > config.train_films:
        rows = np.random.default_rng(config.seed).permutation(len(train))[: config.train_films]
        train = train.take(np.sort(rows))
    reader = Reader(data, classes, names=finding_names(data, split, classes))
    try:
        fitted = extract(reader(train), encoder)
        scored = extract(reader(split.test), encoder)
    finally:
        reader.write_bad_files(folder, processes.part())

    if not processes.is_main():
        return
    summary = {}
    for method in classifiers.METHODS:
        predictions = classifiers.probe(fitted, scored, classes, method=method)
        path = os.path.join(folder, f"predictions_{method}.csv")
        write_predictions(path, predictions, scored.records)
        summary[method] = summarise(
            predictions, bootstrap_samples=config.bootstrap_samples, seed=config.seed
        )
        found = metrics.headline(predictions)
        shown = {k: round(v, 3) for k, v in found.items() if np.isfinite(v)}
        _log.info("%s on frozen features: %s", method, shown)
    write_json(done, to_json(summary))
