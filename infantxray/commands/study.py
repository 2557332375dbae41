"""`study`: plan many runs, execute those that are missing, and write one report."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipeline.conditions import check_split, find_conditions
from data_pipeline.dataset import DataSettings, age_statistics, divide_sources
from data_pipeline.errors import DataError, UserError
from data_pipeline.splits import Split
from infantxray.reports import study_report
from infantxray.runs import settings, workdir
from infantxray.studies import plan, runner
from infantxray.studies.commands import Task
from infantxray.studies.recipes import change_variants, find_variants
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)
_TASKS = ("pretrain", "probe", "finetune")


def run(config: Any, folder: str) -> None:
    """Executes the study of `config` in the workdir `folder`, or resumes it there.

    Exits with code 1 if runs failed.

    Raises:
      UserError: a selection is not valid, a folder holds a run of another task or with other
        settings, or a signal came.
    """
    environment = dict(os.environ)
    # This process reads checkpoints and draws; the GPU's memory is for the runs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    workdir.check_task(folder, config.task)
    data = settings.data_settings(config)
    split = _open_data(data, config.study.dry_run)
    has_ages = split is None or _has_ages(split)
    planned = make_plan(config, folder, has_ages=has_ages)
    _check_unchanged(planned.runs, folder)
    selected = plan.select(planned.runs, config.study.cells)
    finished = {run.index for run in planned.runs if run.is_finished()}
    todo = [run for run in selected if run.index not in finished]
    print(plan.describe(planned, finished), flush=True)
    for index in sorted(finished):
        for need in planned.runs[index].needs:
            if need not in finished:
                _log.warning(
                    "run %d is finished and run %d, which it starts from, is not: if that was "
                    "deleted because its settings or data changed, delete %s too",
                    index,
                    need,
                    planned.runs[index].folder,
                )
    _log.info("%d runs, %d finished, %d to do now", len(planned.runs), len(finished), len(todo))
    if config.study.dry_run:
        return
    assert split is not None  # Only a dry run continues without data.
    _check_data(data, split, [run.settings for run in todo if run.task == "finetune"])
    _check_needs(todo, finished)
    os.makedirs(folder, exist_ok=True)
    workdir.write_config(folder, settings.to_dict(config))
    failed = {}
    if todo:
        executor = (
            runner.RayRunner(config.ray_address, environment)
            if config.ray_address
            else runner.LocalRunner(config.study.parallel_cells, environment)
        )
        try:
            failed = runner.run_all(todo, planned.runs, finished, executor)
        finally:
            executor.close()
    missing = [r for r in planned.runs if not (r.index in finished or r.is_finished())]
    if config.study.cells and missing:
        _log.info("%d runs are still to do: no report yet", len(missing))
    elif all(run in missing for run in planned.runs if run.task == "finetune"):
        _log.info("no stage two is finished: there is nothing to report")
    else:
        with waiting("tables and figures"):
            path = study_report.write(
                folder,
                planned,
                failed,
                data=data,
                best_metric=config.finetune.best_metric,
                bootstrap_samples=config.bootstrap_samples,
                seed=config.seed,
                settings=settings.to_dict(config),
            )
        _log.info("report: %s", path)
    if failed:
        _log.error(
            "%d of %d runs failed; the same command tries them again", len(failed), len(todo)
        )
        sys.exit(1)


def make_plan(config: Any, folder: str, *, has_ages: bool = True) -> plan.Plan:
    """The plan of the study of `config` in the workdir `folder`.

    Args:
      config: of the study.
      folder: its workdir.
      has_ages: whether a training image of stage two has an age.

    Raises:
      UserError: a setting cannot be meant.
    """
    tasks = {name: _find_task(name, config.study.size) for name in _TASKS}
    planned = plan.make_plan(_read_study(config, tasks), folder, tasks, has_ages=has_ages)
    _check_settings(planned.runs)
    return planned


def _find_task(name: str, size: str) -> Task:
    """What `--config=configs/<name>.py:<size>` starts from; the file may have no variants."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    if not inspect.signature(get_config).parameters:
        return Task(name, "", get_config().to_dict())
    return Task(name, f":{size}" if size != "cpu" else "", get_config(size).to_dict())


def _read_study(config: Any, tasks: Mapping[str, Task]) -> plan.Study:
    study = config.study
    variants = find_variants(study.recipe, config.variants.to_dict())
    stages = {"pretrain": tasks["pretrain"].defaults, "finetune": tasks["finetune"].defaults}
    variants = change_variants(variants, study.changes, stages)
    names = _names(study.variants) or tuple(variants)
    for name in names:
        if name not in variants:
            raise UserError(
                f"config.study.variants names {name!r}; the recipe {study.recipe} has "
                f"{', '.join(variants)}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"config.study.variants is {names}; name each once")
    return plan.Study(
        variants={name: variants[name] for name in names},
        encoders=_names(study.encoders),
        seeds=tuple(study.seeds),
        pretrain_seeds=tuple(study.pretrain_seeds),
        label_fractions=tuple(study.label_fractions),
        label_draw=study.label_draw,
        pretrain_data=study.pretrain_data,
        frozen=study.frozen,
        dtype=config.dtype,
        labels=config.labels,
        data=config.data.to_dict(),
        pretrain=config.pretrain.to_dict(),
        finetune=config.finetune.to_dict(),
    )


def _names(values: Iterable[str]) -> tuple[str, ...]:
    """`("vgg19,resnet50",)` is understood as `("vgg19", "resnet50")`, and so is a last comma."""
    parts = (part.strip() for value in values for part in value.split(","))
    return tuple(part for part in parts if part)


def _open_data(data: DataSettings, dry_run: bool) -> Split | None:
    """The divided records of stage two; None if a dry run cannot open them."""
    try:
        return divide_sources(data)
    except DataError as error:
        if not dry_run:
            raise
        _log.warning("the data cannot be opened (%s): the plan is as for data with ages", error)
        return None


def _has_ages(split: Split) -> bool:
    try:
        age_statistics(split.train)
    except DataError:
        return False
    return True


def _check_settings(runs: Iterable[plan.Run]) -> None:
    """Raises `UserError` for settings that a run would refuse, before any is executed."""
    for run in runs:
        config = ConfigDict(run.settings)
        if "pretrained" in config:
            config.pretrained = ""  # A stage one that is still to do.
        try:
            settings.check(config)
        except settings.ConfigError as error:
            raise UserError(f"a {run.task} run of this study: {error}") from None


def _check_unchanged(runs: Sequence[plan.Run], folder: str) -> None:
    """Raises `UserError` if a folder holds a run with other settings."""
    for run in runs:
        changed = [
            change
            for change in workdir.changed_settings(run.folder, run.settings)
            if not (change.startswith("pretrained ") and _was_moved(run, folder))
        ]
        if changed:
            raise UserError(
                f"{run.folder} was run with other settings: {', '.join(changed[:3])}; choose "
                "another --workdir for this study, or delete that folder to run it again"
                + _that_start_from(run, runs)
            )


def _that_start_from(run: plan.Run, runs: Iterable[plan.Run]) -> str:
    """The folders that are to be deleted together with that of a run, in words."""
    found = [r.folder for r in runs if run.index in r.needs and os.path.exists(r.folder)]
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f", with those of the runs that start from it: {', '.join(found[:3])}{more}"


def _was_moved(run: plan.Run, folder: str) -> bool:
    """Whether a run started from the stage one of its plan, in a study at another place."""
    before = str(workdir.read_config(run.folder).get("pretrained", ""))
    now = run.settings["pretrained"]
    within = os.path.relpath(now, folder) if now else ""
    return bool(within) and os.path.normpath(before).endswith(os.sep + within)


def _check_data(data: DataSettings, split: Split, runs: Iterable[Mapping[str, Any]]) -> None:
    """Refuses data that one of these runs would refuse, before stage one is trained for days."""
    kinds = {(run["age_head"], run["best_metric"]) for run in runs}
    for age_head, best_metric in sorted(kinds):
        classes = find_conditions(data, split.train, age_head=age_head, best_metric=best_metric)
    if kinds:
        check_split(data, split, classes)


def _check_needs(todo: Iterable[plan.Run], finished: set[int]) -> None:
    """Refuses a selection without the stage one that it needs."""
    known = finished | {run.index for run in todo}
    for run in todo:
        for need in run.needs:
            if need not in known:
                raise UserError(
                    f"run {run.index} needs run {need}, which is neither finished nor in "
                    "config.study.cells; do it first"
                )
