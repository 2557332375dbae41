"""`finetune`: stage two, the encoder learns conditions and ages, and is scored on test patients."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os

import numpy as np

from data_pipeline.conditions import check_split, find_conditions, finding_names
from data_pipeline.context import find_context
from data_pipeline.dataset import (
    DataSettings,
    Reader,
    age_statistics,
    check_finished,
    open_split,
)
from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource, mixed_batches, training_batches
from data_pipeline.records import Records
from data_pipeline.splits import FEW_IMAGES, Split
from infantxray.evaluation.operating_points import parse_rules
from infantxray.evaluation.predictions import read_predictions
from infantxray.reports import columns
from infantxray.reports.run_report import Review, evaluate
from infantxray.runs import runtime, settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import budget, self_training, transfer, trust_fitting
from infantxray.stage_two.inference import Predictor, restore
from infantxray.stage_two.loss import LossSettings, TaskWeights, learns_weights, make_task
from infantxray.stage_two.supervised import validation_metrics
from infantxray.training import checkpoints, loop, processes
from infantxray.training.augment import Augmentation
from infantxray.training.batch_norm import PreciseStatistics
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Trains into the workdir `folder` and evaluates, or resumes there."""
    runtime.setup()
    data = settings.data_settings(config)
    transfer.check_stage_one(config.pretrained, config.encoder, data.preprocessing)
    workdir.prepare(folder, settings.to_dict(config))
    if config.resume == "last_good":
        with processes.main_first():
            self_training.set_aside_damaged(folder)
    report = os.path.join(folder, "report.html")
    if checkpoints.is_finished(folder) and os.path.exists(report):
        with processes.main_first():
            check_finished(data, folder)
        _log.info("%s is finished: see %s", folder, report)
        return

    notes: list[str] = []
    with processes.main_first():
        split = open_split(data, folder, notes)
    columns.parse(config.subgroups, split.test)
    spec = _specify(config, data, split)
    spec.write(folder)
    names = finding_names(data, split, spec.classes)
    reader = Reader(data, spec.classes, names=names, context=spec.context)
    train = reader(split.train, training=True)
    _log_labels(spec, train)
    answered = split.validation.has_label | split.validation.has_age
    validation = reader(split.validation.take(answered))
    # Images without label and age have nothing to teach, except to a student.
    useful = train.has_condition | (train.records.has_age & spec.has_age)
    informative = train if useful.all() else reader(split.train.take(useful), training=True)

    predictor = Predictor(spec, batch_size=config.batch_size, num_threads=data.num_threads)
    loss = settings.build(LossSettings, config)
    augmentation = settings.build(Augmentation, config.augment)
    task = make_task(
        spec,
        loss,
        augmentation,
        train.labels if train.findings is None else train.findings,
        functools.partial(validation_metrics, predictor, validation),
        _statistics(config, reader, split.train),
    )
    fit = functools.partial(
        _fit,
        task,
        hooks=[TaskWeights(config.log_every_steps)] if learns_weights(spec, loss) else [],
        initialise=functools.partial(transfer.start_from, config.pretrained, config.encoder),
        learning_rate_factors=settings.build(
            transfer.LearningRates,
            config,
            factor_without_batchnorm=config.optimizer.factor_without_batchnorm,
        ),
        description=str(config),
        advice=settings.advice_on_dtype(config),
    )
    teaching = settings.build(self_training.Teaching, config.self_training)
    num_labelled = self_training.num_labelled(config.batch_size, config.labelled_fraction)
    batches = functools.partial(
        mixed_batches,
        batch_size=config.batch_size,
        num_labelled=num_labelled,
        seed=config.seed,
        num_threads=data.num_threads,
        part=processes.part(),
    )
    best_metric = _best_metric(config, validation)
    try:
        if self_training.is_needed(teaching, spec.classes, train):
            known = split.train.take(train.has_condition)
            drawn = teaching.images_drawn(num_labelled)
            loop_settings = _length(
                config, len(train), train, validation, best_metric, notes, drawn, teaching.rounds
            )
            if teaching.linear_probe:
                ask = functools.partial(
                    _ask_linear_probe,
                    config,
                    spec,
                    augmentation,
                    reader(known),
                    reader(split.train),
                    validation,
                )
            else:
                ask = functools.partial(
                    self_training.ask_fine_tuned,
                    spec=spec,
                    teaching=teaching,
                    labelled=reader(known, training=True),
                    images=train,
                    predictor=predictor,
                    loop_settings=loop_settings,
                    num_labelled=num_labelled,
                    num_threads=data.num_threads,
                    fit=fit,
                )
            self_training.teach_students(
                folder,
                ask,
                train,
                spec=spec,
                teaching=teaching,
                pretrained=config.pretrained,
                predictor=predictor,
                loop_settings=loop_settings,
                fit=fit,
                batches=batches,
            )
            fit(loop_settings, folder, batches(train))
        else:
            loop_settings = _length(config, len(informative), train, validation, best_metric, notes)
            if not settings.is_by_data(config):
                more = round(teaching.images_drawn(num_labelled) / config.batch_size)
                loop_settings = dataclasses.replace(
                    loop_settings, total_steps=loop_settings.total_steps + more
                )
            if not _labels_are_rare(config, informative):
                batches = functools.partial(
                    training_batches,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    num_threads=data.num_threads,
                    part=processes.part(),
                )
            fit(loop_settings, folder, batches(informative))
        calibrated = None
        if config.coverage:
            with waiting("calibration and outlier detection"):
                calibrated = trust_fitting.fit(
                    predictor,
                    restore(folder, spec)[0],
                    reader,
                    split.train,
                    split.validation,
                    coverage=config.coverage,
                    rules=parse_rules(config.operating_points),
                )
            with processes.main_first():  # The others may read what the first one writes.
                if processes.is_main():
                    calibrated.write(folder)
        evaluate(
            folder,
            checkpoint=folder,
            source=reader(split.test),
            predictor=predictor,
            bootstrap_samples=config.bootstrap_samples,
            seed=config.seed,
            validation=validation,
            review=settings.build(Review, config),
            data=data,
            reader=reader,
            names=names,
            label_notes=notes,
        )
        if calibrated is not None and processes.is_main():
            with waiting("calibration of the test images"):
                tested, _ = read_predictions(os.path.join(folder, "predictions.csv"))
                dataclasses.replace(calibrated, test=calibrated.score(tested)).write(folder)
    finally:
        reader.write_bad_files(folder, processes.part(), extend=True)


def _length(
    config, num_images, train, validation, best_metric, notes, drawn_by_teachers=0, rounds=1
) -> loop.LoopSettings:
    """The settings of the loop, with the length from the settings or from the data.

    The students of several rounds share the steps. A length from the data adds a sentence to the
    list `notes`, for the report.
    """
    if not settings.is_by_data(config):
        steps = max(settings.total_steps(config, num_images) // rounds, 1)
        return settings.loop_settings(config, steps, best_metric=best_metric)
    aged = best_metric == "age_mae_months"

    def known(source: ImageSource) -> int:
        return int((source.records.has_age if aged else source.has_condition).sum())

    found = budget.by_data(
        known(train) or int(train.records.has_age.sum()),
        known(validation),
        config.batch_size,
        drawn_by_teachers=drawn_by_teachers,
        rounds=rounds,
    )
    notes.append(f"{found.text}; learning rate {config.optimizer.learning_rate:g}")
    _log.info(notes[-1])
    changes = dataclasses.asdict(found) | {"checkpoint_every_steps": found.eval_every_steps}
    del changes["text"]
    if config.early_stopping_evals:
        changes["early_stopping_evals"] = config.early_stopping_evals
    loop_settings = settings.loop_settings(config, found.total_steps, best_metric=best_metric)
    return dataclasses.replace(loop_settings, **changes)


def _fit(task, loop_settings, folder, batches, **options):
    return loop.fit(task, batches, loop_settings, folder, **options)


def _ask_linear_probe(config, spec, augmentation, labelled, images, validation, folder: str):
    del folder  # The probe is fitted in seconds and not kept.
    teaching = settings.build(self_training.Teaching, config.self_training)
    return self_training.ask_linear_probes(
        spec,
        [config.pretrained, *teaching.members],
        labelled,
        images,
        validation,
        augmentation=augmentation,
        batch_size=config.batch_size,
        num_threads=config.data.num_threads,
        seed=config.seed,
    )


def _statistics(config, reader: Reader, records: Records):
    """What makes `PreciseStatistics` from a forward pass; None = running statistics.

    They need no labels: all training images are drawn from.
    """
    if not config.batch_norm_images:
        return None
    order = np.random.default_rng(config.seed).permutation(len(records))
    return functools.partial(
        PreciseStatistics,
        source=reader(records.take(order[: config.batch_norm_images]), training=True),
        batch_size=config.batch_size,
        num_threads=config.data.num_threads,
    )


def _specify(config, data: DataSettings, split: Split) -> ModelSpec:
    """The specification of the model, from the data and the settings.

    Raises:
      DataError: the data cannot be learned from, or stage one has seen the scored patients.
    """
    classes = find_conditions(
        data, split.train, age_head=config.age_head, best_metric=config.best_metric
    )
    check_split(data, split, classes)
    teaching = settings.build(self_training.Teaching, config.self_training)
    for place in (config.pretrained, *teaching.members):
        transfer.check_scored(place, split, ("validation", "test"), patient_ids=data.patient_ids)
    context = find_context(split.train, filter(None, config.condition_on.split(",")))
    spec = ModelSpec(
        config.encoder,
        config.dtype,
        data.preprocessing,
        classes,
        multi_label=data.multi_label and bool(classes),
        context=context,
    )
    spec = transfer.with_input_scale(spec, config.pretrained)
    if not config.age_head:
        return spec
    try:
        mean, std = age_statistics(split.train)
    except DataError as error:
        if not classes or config.age_film or config.best_metric == "age_mae_months":
            raise
        _log.warning("no AgePredictionNet: %s", error)
        return spec
    known = split.train.age_months[split.train.has_age]
    spread = config.age_loss == "distribution"
    return dataclasses.replace(
        spec,
        age_mean_months=mean,
        age_std_months=std,
        age_film=config.age_film,
        age_range_months=(float(known.min()), float(known.max())) if spread else None,
    )


def _labels_are_rare(config, source: ImageSource) -> bool:
    """Whether most batches drawn at random would have too few labels.

    This happens if every image has an age and few have a condition.
    """
    labelled = int(source.has_condition.sum())
    if not 0 < labelled < config.labelled_fraction * len(source):
        return False
    _log.info(
        "%d of %d images with a condition or an age have a condition: they make up %d of every %d "
        "images drawn (config.labelled_fraction)",
        labelled,
        len(source),
        self_training.num_labelled(config.batch_size, config.labelled_fraction),
        config.batch_size,
    )
    return True


def _best_metric(config, validation: ImageSource) -> str | None:
    """The metric that chooses a checkpoint; None where too few validation images have a truth."""
    aged = config.best_metric == "age_mae_months"
    count = int((validation.records.has_age if aged else validation.has_condition).sum())
    if count >= FEW_IMAGES:
        return config.best_metric
    _log.warning(
        "%d validation images with a known %s are too few to choose a checkpoint by: using the "
        "last checkpoint; early stopping is off",
        count,
        "age" if aged else "condition",
    )
    return None


def _log_labels(spec: ModelSpec, source: ImageSource) -> None:
    if source.findings is not None:
        counts = (source.findings == 1).sum(0)
        unknown = np.isnan(source.findings[source.has_condition]).sum(0)
    else:
        counts = np.bincount(source.labels[source.labels >= 0], minlength=len(spec.classes))
        unknown = np.zeros_like(counts)
    for name, count, doubtful in zip(spec.classes, counts, unknown, strict=True):
        more = f", unknown in {doubtful} labelled ones" if doubtful else ""
        _log.info("  %-24s %6d training images%s", name, count, more)
    if spec.has_age:
        _log.info(
            "  age %.1f ± %.1f months, known for %d training images",
            spec.age_mean_months,
            spec.age_std_months,
            source.records.has_age.sum(),
        )
