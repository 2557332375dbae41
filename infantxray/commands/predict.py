"""`predict`: conditions and ages of images without labels."""

from __future__ import annotations

import logging
import os

from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.errors import DataError, UserError
from data_pipeline.sources import open_sources
from infantxray.evaluation.predictions import write_predictions
from infantxray.runs import runtime, settings, workdir
from infantxray.stage_two.inference import Predictor, read_spec, restore
from infantxray.training import processes

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Writes `predictions.csv` of `config.data.test` into the workdir `folder`."""
    runtime.setup()
    spec = read_spec(config.checkpoint)
    if not config.data.test:
        raise UserError("name the images: --config.data.test=folder:/data/new_images")
    data = settings.build(DataSettings, config.data)
    records = open_sources(data.test)
    workdir.prepare(folder, settings.to_dict(config))
    reader = Reader(data, spec.classes, spec.preprocessing, context=spec.context)
    predictor = Predictor(spec, batch_size=config.batch_size, num_threads=data.num_threads)
    variables, _ = restore(config.checkpoint, spec)
    try:
        predictions, records = predictor(variables, reader(records))
    finally:
        reader.write_bad_files(folder, processes.part())
    if not len(records):
        raise DataError("none of the images could be read; bad_files.csv says why")
    if not processes.is_main():
        return
    path = os.path.join(folder, "predictions.csv")
    write_predictions(path, predictions, records)
    _log.info("%d predictions: %s", len(records), path)
