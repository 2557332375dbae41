"""Stage two: the encoder learns conditions and ages of infants, and is scored on held-out ones."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os

import jax
import numpy as np

from data_pipeline.errors import DataError, UserError
from data_pipeline.loader import BadFiles, FilmSource, mixed_batches, training_batches
from data_pipeline.splits import FEW_FILMS, Split, check_unseen
from infantxray import (
    data,
    diagnosis,
    diagnosis_loss,
    evaluate,
    linear_teacher,
    runtime,
    workdir,
)
from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.metrics import headline
from infantxray.models import create_encoder
from infantxray.models.depth import pyramid_level
from infantxray.models.encoders import has_batchnorm
from infantxray.settings import LOWER_IS_BETTER
from infantxray.torch_weights import import_encoder
from infantxray.training import checkpoints, loop
from infantxray.training.sharding import DataParallel

_log = logging.getLogger(__name__)

_SEEDS_BETWEEN_TEACHERS = 10_000  # So that no teacher repeats one of another run.

# The weights of the tasks are a few numbers that have far to go: at the rate of the network they
# stay within a third of where they start.
_TASK_WEIGHTING_FACTOR = 30.0


def run(config, folder: str) -> None:
    """Trains into the workdir `folder` and evaluates; resumes where it holds a part of it."""
    runtime.setup()
    _check_stage_one(config)
    workdir.prepare(folder, config)
    report = os.path.join(folder, "report.html")
    if checkpoints.is_finished(folder) and os.path.exists(report):
        _log.info("%s is finished: see %s", folder, report)
        return
    split, card = _open_data(config, folder)
    bad_files = BadFiles()
    reader = functools.partial(
        data.film_source,
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
    validate = functools.partial(_validate, predictor, validation)
    best_metric = _chosen_by(config, validation)
    # Films of which nothing is known have nothing to teach, but to a student.
    known = (train.labels >= 0) | (train.records.has_age & (card.age_mean_months is not None))
    informative = train if known.all() else reader(split.train.take(known), training=True)
    try:
        if _wants_teacher(config, card, train):
            labelled = reader(split.train.take(train.labels >= 0), training=True)
            train.soft_labels = _ask_teachers(
                config, folder, card, labelled, train, validation, predictor, best_metric
            )
            batches = _mixed_batches(config, train)
            steps = runtime.total_steps(config, len(train))
        else:
            rare = _labels_are_rare(config, informative)
            batches = (_mixed_batches if rare else _batches)(config, informative)
            steps = runtime.total_steps(config, len(informative))
            steps += round(teachers_films(config) / config.batch_size)
        _fit(config, folder, card, batches, train.labels, validate, steps, best_metric)
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


def _batches(config, source: FilmSource):
    return training_batches(
        source, config.batch_size, seed=config.seed, num_threads=config.data.num_threads
    )


def _mixed_batches(config, source: FilmSource):
    """So many labelled films in every batch, and others beside them."""
    return mixed_batches(
        source,
        config.batch_size,
        num_labelled=_num_labelled(config),
        seed=config.seed,
        num_threads=config.data.num_threads,
    )


def _labels_are_rare(config, source: FilmSource) -> bool:
    """Whether films drawn as they come would leave most batches without a label.

    As where every film carries its age and few their condition.
    """
    labelled = int((source.labels >= 0).sum())
    if not 0 < labelled < config.labelled_fraction * len(source):
        return False
    _log.info(
        "%d of %d films with a condition or an age have a condition: they make up %d of every %d "
        "films drawn (config.labelled_fraction)",
        labelled,
        len(source),
        _num_labelled(config),
        config.batch_size,
    )
    return True


def _chosen_by(config, validation: FilmSource) -> str | None:
    """The metric that a checkpoint is chosen by; None where too few films have an answer for it."""
    aged = config.best_metric == "age_mae_months"
    known = validation.records.has_age if aged else validation.labels >= 0
    count = int(known.sum())
    if count >= FEW_FILMS:
        return config.best_metric
    _log.warning(
        "%d validation films with a known %s are too few to choose a checkpoint by: the last step "
        "counts, and nothing stops early",
        count,
        "age" if aged else "condition",
    )
    return None


def _fit(config, folder, card, batches, labels, validate, total_steps: int, best_metric) -> None:
    """Trains a model of `config` into `folder`, or goes on with it."""
    loop.fit(
        config,
        folder,
        diagnosis_loss.make_task(config, card, labels, validate),
        batches,
        total_steps=total_steps,
        best_metric=best_metric,
        lower_is_better=config.best_metric in LOWER_IS_BETTER,
        initialise=functools.partial(start_from, config),
        learning_rate_factors=functools.partial(learning_rate_factors, config),
        ema_decay=config.ema_decay,
        early_stopping_evals=config.early_stopping_evals,
    )


def _num_labelled(config) -> int:
    """How many films of a mixed batch are drawn from the labelled ones."""
    share = round(config.batch_size * config.labelled_fraction)
    return min(max(share, 1), config.batch_size - 1)


def _wants_teacher(config, card, films: FilmSource) -> bool:
    """Whether a teacher comes first. Where every film has its label it has nothing to say."""
    if not (config.self_training.teacher_steps or config.self_training.linear_probe):
        return False
    if not card.classes:
        raise DataError("config.self_training teaches conditions, and no training film has a label")
    if (films.labels >= 0).all():
        _log.info(
            "every training film has a label: no teacher is needed; a longer training may pay "
            "(config.train_steps)"
        )
        return False
    return True


def teachers_films(config) -> int:
    """How many films teachers draw; 0 without teachers.

    Who learns without them draws these besides, so that both draw equally many.
    """
    teaching = config.self_training
    return teaching.teachers * teaching.teacher_steps * _num_labelled(config)


def _ask_teachers(
    config,
    folder: str,
    card,
    labelled: FilmSource,
    films: FilmSource,
    validation: FilmSource,
    predictor,
    best_metric: str | None,
) -> np.ndarray:
    """The conditions of all training films in the teachers' mean opinion, float32 `[N, K]`.

    The teacher is a linear probe, or teachers are fine-tuned. Such a one is an ordinary model that
    learns from the labelled films alone, in a folder of its own under `teachers`; they differ by
    their seed. What they say is kept there, so that a run which is stopped and started again goes
    on with the same answers.
    """
    folder = os.path.join(folder, "teachers")
    os.makedirs(folder, exist_ok=True)
    answers = os.path.join(folder, "soft_labels.npy")
    if os.path.exists(answers):
        return np.load(answers)
    if config.self_training.linear_probe:
        model = diagnosis.build_model(card)
        size = card.preprocessing.image_size
        init = jax.jit(lambda key: diagnosis.init_variables(model, size, key))
        variables = start_from(config, init(jax.random.key(config.seed)))
        opinion = linear_teacher.answer(config, card, variables, labelled, films, validation)
    else:
        opinion = _ask_fine_tuned(
            config, folder, card, labelled, films, validation, predictor, best_metric
        )
    with open(answers + ".tmp", "wb") as file:
        np.save(file, opinion)
    os.replace(answers + ".tmp", answers)
    _log.info("student: learns from %d films", len(films))
    return opinion


def _ask_fine_tuned(
    config, folder, card, labelled, films, validation, predictor, best_metric
) -> np.ndarray:
    """`_ask_teachers` where teachers are fine-tuned, below its folder."""
    settings = copy.deepcopy(config)
    # As many as a student sees, rounded up to what all devices share.
    settings.batch_size = DataParallel().evaluation_batch_size(_num_labelled(config))
    settings.accumulate_steps = 1
    steps, count = config.self_training.teacher_steps, config.self_training.teachers
    validate = functools.partial(_validate, predictor, validation)
    opinions = []
    for i in range(count):
        settings.seed = config.seed + _SEEDS_BETWEEN_TEACHERS * i
        place = os.path.join(folder, str(i))
        os.makedirs(place, exist_ok=True)
        _log.info(
            "teacher %d of %d: %d steps, %.0f times through %d labelled films, in %s",
            i + 1,
            count,
            steps,
            steps * settings.batch_size / len(labelled),
            len(labelled),
            place,
        )
        card.write(place)
        batches = _batches(settings, labelled)
        _fit(settings, place, card, batches, films.labels, validate, steps, best_metric)
        variables, _ = diagnosis.restore(place, card)
        predictions, _ = predictor(variables, films)
        opinions.append(predictions.probabilities)
    return np.mean(opinions, axis=0, dtype=np.float32)


def _check_stage_one(config) -> None:
    """Refuses, before anything is loaded, a stage one that cannot fit."""
    if not config.pretrained or config.pretrained.startswith("torch:"):
        return
    card = workdir.ModelCard.read(config.pretrained)
    if card.encoder != config.encoder:
        raise UserError(
            f"{config.pretrained} was trained with encoder {card.encoder}, and config.encoder is "
            f"{config.encoder}; they must be the same"
        )
    if not checkpoints.checkpoint_steps(config.pretrained):
        raise UserError(
            f"{config.pretrained} has no checkpoint yet; run configs/pretrain.py with "
            f"--workdir={config.pretrained} first"
        )
    if not checkpoints.is_finished(config.pretrained):
        _log.warning("stage one in %s is not finished: its latest step is used", config.pretrained)
    if card.preprocessing != data.preprocessing(config.data):
        _log.warning(
            "stage one read its films another way: %s; here: %s",
            card.preprocessing,
            data.preprocessing(config.data),
        )


def check_scored(config, split: Split, roles: tuple[str, ...]) -> None:
    """Raises `DataError` where no film is left for testing, or stage one saw who is scored."""
    for role in roles:
        if role == "test":
            data.check_tested(split)
        if config.pretrained and not config.pretrained.startswith("torch:"):
            check_unseen(
                os.path.join(os.path.expanduser(config.pretrained), "split.csv"),
                split[role],
                config.data.patient_ids,
                f"stage one must not see who is scored here ({role}), but it trained on",
            )


def find_conditions(config, split: Split) -> tuple[str, ...]:
    """The conditions that stage two learns; none where ages alone are known.

    Raises:
      DataError: no label to learn from, and no age that may be learned instead.
    """
    classes = data.find_classes(config.data, split.train)
    if not classes and not config.age_head:
        raise DataError("no training film has a label, and config.age_head is off")
    if not classes and config.best_metric != "age_mae_months":
        advice = "set config.best_metric=age_mae_months to train on ages alone"
        if not split.train.has_age.any():
            advice = "nor an age; a manifest gives them in its columns label and age_months"
        raise DataError(
            f"no training film has a label, so config.best_metric={config.best_metric} cannot be "
            f"computed; {advice}"
        )
    return classes


def _open_data(config, folder: str) -> tuple[Split, workdir.ModelCard]:
    """The divided records, and the card of the model that they call for."""
    split = data.open_split(config.data, folder)
    classes = find_conditions(config, split)
    data.check_split(config.data, split, classes)
    check_scored(config, split, ("validation", "test"))
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


def _log_labels(card: workdir.ModelCard, source: FilmSource) -> None:
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(card.classes))
    for name, count in zip(card.classes, counts, strict=True):
        _log.info("  %-24s %6d training films", name, count)
    if card.age_mean_months is not None:
        _log.info(
            "  age %.1f ± %.1f months, known of %d training films",
            card.age_mean_months,
            card.age_std_months,
            source.records.has_age.sum(),
        )


def start_from(config, variables):
    """Puts the weights of `config.pretrained` into fresh variables."""
    if not config.pretrained:
        _log.info("the encoder starts from random weights")
        return variables
    if config.pretrained.startswith("torch:"):
        path = os.path.expanduser(config.pretrained.removeprefix("torch:"))
        encoder = import_encoder(config.encoder, path)
        for name, tree in encoder.items():
            if tree:
                variables[name] = {**variables[name], "encoder": tree}
        return variables
    # The last step and not the best: a lower loss of stage one does not mean a better start.
    step = checkpoints.checkpoint_steps(config.pretrained)[-1]
    variables, report = checkpoints.restore_variables(
        config.pretrained, step, variables, only="encoder"
    )
    _log.info("encoder of %s, step %d: %s", config.pretrained, step, report)
    return variables


def learning_rate_factors(config, params):
    """What multiplies the learning rate of each parameter of stage two: a tree like `params`."""
    factors = jax.tree.map(lambda _: 1.0, params)
    if "task_weighting" in params:
        factors["task_weighting"] = jax.tree.map(
            lambda _: _TASK_WEIGHTING_FACTOR, params["task_weighting"]
        )
    if config.freeze_encoder:
        factors["encoder"] = jax.tree.map(lambda _: 0.0, params["encoder"])
        return factors
    encoder = create_encoder(config.encoder)
    factor = config.encoder_learning_rate_factor
    if not has_batchnorm(encoder):
        factor *= config.optimizer.factor_without_batchnorm
    if config.layer_decay < 1:
        levels = pyramid_level(encoder, params["encoder"])
        last = max(jax.tree.leaves(levels))
        factors["encoder"] = jax.tree.map(
            lambda level: factor * config.layer_decay ** (last - level), levels
        )
    else:
        factors["encoder"] = jax.tree.map(lambda _: factor, params["encoder"])
    return factors


def _validate(predictor: diagnosis.Predictor, source: FilmSource, variables) -> dict[str, float]:
    """The headline figures on validation films, and the cross-entropy as `loss`."""
    if not len(source):
        return {}
    predictions, _ = predictor(variables, source)
    result = {k: v for k, v in headline(predictions).items() if np.isfinite(v)}
    if predictions.classes:
        scores = calibration(predictions.probabilities, predictions.label)
        result["loss"] = scores["log_loss"]
    return result
