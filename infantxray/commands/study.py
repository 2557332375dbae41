"""The whole paper in one command: plans runs, runs what is missing, and writes the report."""

from __future__ import annotations

import logging
import os
import sys

from data_pipeline import dataset as data
from data_pipeline.errors import UserError
from infantxray.commands import finetune
from infantxray.reports import study_report as report
from infantxray.runs import workdir
from infantxray.studies import plan
from infantxray.studies import runner as cells

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Runs the study of `config` in the workdir `folder`; goes on where it holds a part of it.

    Exits with code 1 where cells failed.

    Raises:
      UserError: a selection cannot be meant, or a folder holds a run with other settings.
    """
    environment = dict(os.environ)
    # This process reads checkpoints and draws; the GPU's memory is for the cells.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    planned = plan.make_plan(config, folder)
    plan.check_unchanged(planned)
    selected = plan.select(planned, config.study.cells)
    finished = {cell.index for cell in planned if cell.is_finished()}
    todo = [cell for cell in selected if cell.index not in finished]
    print(plan.describe(planned, finished), flush=True)
    _log.info("%d cells, %d finished, %d to run now", len(planned), len(finished), len(todo))
    if config.study.dry_run:
        return
    _check_data(config, [cell.config for cell in todo if cell.task == "finetune"])
    os.makedirs(folder, exist_ok=True)
    workdir.write_config(folder, config)
    failed = {}
    if todo:
        _check_needs(todo, finished)
        runner = (
            cells.RayRunner(config.ray_address, environment)
            if config.ray_address
            else cells.LocalRunner(config.study.parallel_cells, environment)
        )
        try:
            failed = cells.run_cells(todo, planned, finished, runner)
        finally:
            runner.close()
    missing = [cell for cell in planned if not (cell.index in finished or cell.is_finished())]
    if config.study.cells and missing:
        _log.info("%d cells are still to run: no report yet", len(missing))
    elif all(cell in missing for cell in planned if cell.task == "finetune"):
        _log.info("no stage two is finished: there is nothing to report")
    else:
        path = report.write(config, folder, planned, failed)
        _log.info("report: %s", path)
    if failed:
        _log.error(
            "%d of %d cells failed; the same command tries them again", len(failed), len(todo)
        )
        sys.exit(1)


def _check_data(config, runs: list) -> None:
    """Refuses, before stage one is trained for days, data that a stage two in `runs` would."""
    if not runs:
        return
    split = data.divide_sources(config.data)
    for run in {(run.age_head, run.best_metric): run for run in runs}.values():
        classes = finetune.find_conditions(run, split)
    data.check_split(config.data, split, classes)


def _check_needs(todo, finished: set[int]) -> None:
    """Refuses a selection without the stage one that it needs."""
    known = finished | {cell.index for cell in todo}
    for cell in todo:
        for need in cell.needs:
            if need not in known:
                raise UserError(
                    f"cell {cell.index} needs cell {need}, which is neither finished nor in "
                    f"config.study.cells; run it first"
                )
