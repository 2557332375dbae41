"""`compare`: two or more finished runs on the same test patients."""

from __future__ import annotations

import logging
import os

from data_pipeline.errors import UserError
from infantxray.evaluation.operating_points import read_points
from infantxray.reports import comparison, comparison_page
from infantxray.runs import settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Compares `config.runs` in the workdir `folder`."""
    runs = _named(config.runs)
    if len(runs) < 2:
        raise UserError("name two runs or more: --config.runs=runs/a,runs/b")
    tested = comparison.read(runs)
    others = {
        name: workdir.read_json(place, "metrics.json")
        for name, place in (runs | _named(config.beside)).items()
    }
    workdir.prepare(folder, settings.to_dict(config))
    first = next(iter(runs.values()))
    thresholds: dict[str, float] = {}
    for point in read_points(first):
        thresholds.setdefault(point.finding, point.threshold)
    trained = workdir.read_config(first).get("checkpoint") or first
    with waiting("tests and intervals"):
        comparison_page.write(
            folder,
            tested,
            others,
            thresholds=thresholds,
            preprocessing=ModelSpec.read(trained).preprocessing,
            permutations=config.permutations,
            seed=config.seed,
            settings=settings.to_dict(config),
        )
    _log.info("report: %s", os.path.join(folder, "report.html"))


def _named(text: str) -> dict[str, str]:
    """`a,b` or `NAME=a,...` -> the folder of each name.

    Raises:
      UserError: two have one name.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in settings.split_commas(text))):
        name, equals, place = part.rpartition("=")
        name = name if equals else os.path.normpath(part)
        if name in found:
            raise UserError(f"{name!r} is named twice; write NAME=FOLDER")
        found[name] = os.path.expanduser(place)
    return found
