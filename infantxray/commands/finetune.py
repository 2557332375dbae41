"""Stage two: the encoder learns conditions and ages of infants, and is scored on held-out ones."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os

import numpy as np

from data_pipeline import dataset as data
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, ImageSource, mixed_batches, training_batches
from data_pipeline.splits import FEW_FILMS, Split
from infantxray.commands import evaluate
from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.metrics import headline
from infantxray.runs import runtime, workdir
from infantxray.runs.settings import LOWER_IS_BETTER
from infantxray.stage_two import inference as diagnosis
from infantxray.stage_two import loss as diagnosis_loss
from infantxray.stage_two import self_training, transfer
from infantxray.training import checkpoints, loop

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Trains into the workdir `folder` and evaluates; resumes where it holds a part of it."""
    runtime.setup()
    transfer.check_stage_one(config)
    workdir.prepare(folder, config)
    report = os.path.join(folder, "report.html")
    if checkpoints.is_finished(folder) and os.path.exists(report):
        _log.info("%s is finished: see %s", folder, report)
        return
    split, card = _open_data(config, folder)
    bad_files = BadFiles()
    reader = functools.partial(
        data.image_source,
        config.data,
        classes=card.classes,
        how=card.preprocessing,
        bad_files=bad_files,
    )
    train = reader(split.train, training=True)
    _log_labels(card, train)
    predictor = diagnosis.Predictor(
        card,
        batch_size=config.batch_size,
        num_threads=config.data.num_threads,
        patient_ids=config.data.patient_ids,
    )
    answered = split.validation.has_label | split.validation.has_age
    validation = reader(split.validation.take(answered), training=False)
    fit = functools.partial(
        _fit,
        card=card,
        labels=train.labels,
        validate=functools.partial(_validate, predictor, validation),
        best_metric=_chosen_by(config, validation),
    )
    # Images of which nothing is known have nothing to teach, but to a student.
    known = (train.labels >= 0) | (train.records.has_age & (card.age_mean_months is not None))
    informative = train if known.all() else reader(split.train.take(known), training=True)
    try:
        if self_training.wants_teacher(config, card, train):
            labelled = reader(split.train.take(train.labels >= 0), training=True)
            train.soft_labels = self_training.ask_teachers(
                config, folder, card, labelled, train, validation, predictor, fit
            )
            batches = _mixed_batches(config, train)
            steps = runtime.total_steps(config, len(train))
        else:
            rare = _labels_are_rare(config, informative)
            batches = (_mixed_batches if rare else _batches)(config, informative)
            steps = runtime.total_steps(config, len(informative))
            steps += round(self_training.teachers_images(config) / config.batch_size)
        fit(config, folder, batches, steps)
        evaluate.evaluate(
            folder,
            checkpoint=folder,
            source=reader(split.test, training=False),
            predictor=predictor,
            bootstrap_samples=config.bootstrap_samples,
            seed=config.seed,
        )
    finally:
        diagnosis.write_bad_files(folder, bad_files)


def _batches(config, source: ImageSource):
    return training_batches(
        source, config.batch_size, seed=config.seed, num_threads=config.data.num_threads
    )


def _mixed_batches(config, source: ImageSource):
    """So many labelled images in every batch, and others beside them."""
    return mixed_batches(
        source,
        config.batch_size,
        num_labelled=self_training.num_labelled(config),
        seed=config.seed,
        num_threads=config.data.num_threads,
    )


def _labels_are_rare(config, source: ImageSource) -> bool:
    """Whether images drawn as they come would leave most batches without a label.

    As where every image carries its age and few their condition.
    """
    labelled = int((source.labels >= 0).sum())
    if not 0 < labelled < config.labelled_fraction * len(source):
        return False
    _log.info(
        "%d of %d images with a condition or an age have a condition: they make up %d of every %d "
        "images drawn (config.labelled_fraction)",
        labelled,
        len(source),
        self_training.num_labelled(config),
        config.batch_size,
    )
    return True


def _chosen_by(config, validation: ImageSource) -> str | None:
    """The metric that a checkpoint is chosen by; None where too few images have an answer for it."""
    aged = config.best_metric == "age_mae_months"
    known = validation.records.has_age if aged else validation.labels >= 0
    count = int(known.sum())
    if count >= FEW_FILMS:
        return config.best_metric
    _log.warning(
        "%d validation images with a known %s are too few to choose a checkpoint by: the last step "
        "counts, and nothing stops early",
        count,
        "age" if aged else "condition",
    )
    return None


def _fit(
    config, folder: str, batches, total_steps: int, *, card, labels, validate, best_metric
) -> None:
    """Trains a model of `config` into `folder`, or goes on with it."""
    loop.fit(
        config,
        folder,
        diagnosis_loss.make_task(config, card, labels, validate),
        batches,
        total_steps=total_steps,
        best_metric=best_metric,
        lower_is_better=config.best_metric in LOWER_IS_BETTER,
        initialise=functools.partial(transfer.start_from, config),
        learning_rate_factors=functools.partial(transfer.learning_rate_factors, config),
        ema_decay=config.ema_decay,
        early_stopping_evals=config.early_stopping_evals,
    )


def find_conditions(config, split: Split) -> tuple[str, ...]:
    """The conditions that stage two learns; none where ages alone are known.

    Raises:
      DataError: no label to learn from, and no age that may be learned instead.
    """
    classes = data.find_classes(config.data, split.train)
    if not classes and not config.age_head:
        raise DataError("no training image has a label, and config.age_head is off")
    if not classes and config.best_metric != "age_mae_months":
        advice = "set config.best_metric=age_mae_months to train on ages alone"
        if not split.train.has_age.any():
            advice = "nor an age; a manifest gives them in its columns label and age_months"
        raise DataError(
            f"no training image has a label, so config.best_metric={config.best_metric} cannot be "
            f"computed; {advice}"
        )
    return classes


def _open_data(config, folder: str) -> tuple[Split, workdir.ModelCard]:
    """The divided records, and the card of the model that they call for."""
    split = data.open_split(config.data, folder)
    classes = find_conditions(config, split)
    data.check_split(config.data, split, classes)
    transfer.check_scored(config, split, ("validation", "test"))
    ages = (None, None)
    if config.age_head:
        try:
            ages = data.age_statistics(split.train)
        except DataError as error:
            if not classes or config.age_film or config.best_metric == "age_mae_months":
                raise
            _log.warning("no AgePredictionNet: %s", error)
    how = data.preprocessing(config.data)
    card = workdir.ModelCard(config.encoder, config.dtype, how, classes, *ages)
    if ages[0] is not None:
        known = split.train.age_months[split.train.has_age]
        spread = config.age_loss == "distribution"
        card = dataclasses.replace(
            card,
            age_film=config.age_film,
            age_range_months=(float(known.min()), float(known.max())) if spread else None,
        )
    card.write(folder)
    return split, card


def _log_labels(card: workdir.ModelCard, source: ImageSource) -> None:
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(card.classes))
    for name, count in zip(card.classes, counts, strict=True):
        _log.info("  %-24s %6d training images", name, count)
    if card.age_mean_months is not None:
        _log.info(
            "  age %.1f ± %.1f months, known of %d training images",
            card.age_mean_months,
            card.age_std_months,
            source.records.has_age.sum(),
        )


def _validate(predictor: diagnosis.Predictor, source: ImageSource, variables) -> dict[str, float]:
    """The headline figures on validation images, and the cross-entropy as `loss`."""
    if not len(source):
        return {}
    predictions, _ = predictor(variables, source)
    result = {k: v for k, v in headline(predictions).items() if np.isfinite(v)}
    if predictions.classes:
        scores = calibration(predictions.probabilities, predictions.label)
        result["loss"] = scores["log_loss"]
    return result
