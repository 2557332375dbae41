"""Conditions and ages of images without labels."""

from __future__ import annotations

import logging
import os

from data_pipeline import dataset as data
from data_pipeline.errors import DataError, UserError
from data_pipeline.loader import BadFiles
from data_pipeline.sources import open_sources
from infantxray.runs import runtime, workdir
from infantxray.stage_two import inference as diagnosis

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Writes `predictions.csv` of `config.data.test` into the workdir `folder`."""
    runtime.setup()
    card = diagnosis.read_card(config.checkpoint)
    if not config.data.test:
        raise UserError("name the images: --config.data.test=folder:/data/new_films")
    records = open_sources(config.data.test)
    workdir.prepare(folder, config)
    bad_files = BadFiles()
    source = data.image_source(
        config.data, records, card.classes, card.preprocessing, training=False, bad_files=bad_files
    )
    predictor = diagnosis.Predictor(
        card, batch_size=config.batch_size, num_threads=config.data.num_threads
    )
    variables, _ = diagnosis.restore(config.checkpoint, card)
    try:
        predictions, records = predictor(variables, source)
    finally:
        diagnosis.write_bad_files(folder, bad_files)
    if not len(records):
        raise DataError("none of the images could be read; bad_files.csv says why")
    path = os.path.join(folder, "predictions.csv")
    diagnosis.write_predictions(path, predictions, records)
    _log.info("%d predictions: %s", len(records), path)
