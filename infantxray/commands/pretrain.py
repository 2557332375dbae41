"""`pretrain`: stage one, representation learning on X-rays, with or without labels."""

from __future__ import annotations

import functools
import logging
import os

import jax.numpy as jnp

from data_pipeline.dataset import DataSettings, Reader, check_finished, open_split
from data_pipeline.errors import DataError
from data_pipeline.loader import training_batches
from infantxray.models import create_encoder
from infantxray.runs import runtime, settings, workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one import joint
from infantxray.stage_one.objectives import OBJECTIVES, ObjectiveSettings, panel_names
from infantxray.stage_one.panels import Panels
from infantxray.stage_one.probe import RunningProbe, probe_classes
from infantxray.stage_one.training import learning_rate_factors, make_task
from infantxray.stage_two import supervised, transfer
from infantxray.stage_two.supervised import SupervisedSettings
from infantxray.training import checkpoints, loop, processes
from infantxray.training.augment import Augmentation
from infantxray.training.hooks import Hook

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Trains `config.objective` into the workdir `folder`, or resumes there."""
    runtime.setup()
    workdir.prepare(folder, settings.to_dict(config))
    if config.resume == "last_good":
        with processes.main_first():
            checkpoints.set_aside_damaged(folder)
    names = tuple(config.objective.split("+"))
    supervision = settings.build(SupervisedSettings, config.supervised)
    labels = supervision.labels if supervised.NAME in names else "single"
    data = settings.build(DataSettings, config.data, labels=labels)
    if checkpoints.is_finished(folder):
        with processes.main_first():
            check_finished(data, folder, labels=supervised.NAME in names)
        _log.info("%s is finished: nothing to do", folder)
        return

    transfer.check_stage_one(config.pretrained, config.encoder, data.preprocessing)
    with processes.main_first():
        split = open_split(data, folder)
    if not len(split.validation):
        raise DataError("no image is left for validation; raise config.data.validation_fraction")
    scored = tuple(role for role in ("validation", "test") if len(split[role]))
    transfer.check_scored(config.pretrained, split, scored, patient_ids=data.patient_ids)
    spec = ModelSpec(
        config.encoder,
        config.dtype,
        data.preprocessing,
        objective=config.objective,
        source_labels=supervised.NAME in names or transfer.used_labels(config.pretrained),
    )
    transfer.check_input_scale(spec, config.pretrained)
    spec.write(folder)

    encoder = create_encoder(config.encoder, dtype=jnp.dtype(config.dtype))
    dtype, options = jnp.dtype(config.dtype), _objective_settings(config)
    objectives = {
        name: OBJECTIVES[name](encoder, dtype, options) for name in names if name in OBJECTIVES
    }
    reader = Reader(data)
    images = reader(split.validation)
    tasks, learned = {}, split.train
    for name in names:
        if name in objectives:
            tasks[name] = make_task(
                objectives[name],
                images,
                settings.build(Augmentation, config.augment),
                batch_size=config.batch_size,
                num_threads=data.num_threads,
                seed=config.seed,
            )
        else:
            known = supervised.source_split(split, supervision)
            tasks[name], reader = supervised.make_supervised(
                spec,
                supervision,
                settings.build(Augmentation, config.supervised.augment),
                data,
                known,
                batch_size=config.batch_size,
                bad_files=reader.bad_files,
            )
            learned = known.train
            if not objectives:  # Images without truth have nothing to teach.
                learned = learned.take(supervised.has_truth(learned))
    train = reader(learned, training=True)
    hooks: list[Hook] = []
    if objectives:
        draw = functools.partial(joint.panels, objectives, names=names)
        hooks.append(
            Panels(draw, panel_names(config.objective), images, folder, config.images_every_steps)
        )
    if config.probe_every_steps:
        classes = probe_classes(split)
        if len(classes) < 2:
            _log.info("no linear probe: it needs two classes in training and validation images")
        else:
            hooks.append(
                RunningProbe(
                    encoder,
                    split,
                    classes,
                    reader,
                    images=config.probe_images,
                    every_steps=config.probe_every_steps,
                    batch_size=config.batch_size,
                    num_threads=data.num_threads,
                    seed=config.seed,
                )
            )
    try:
        _, progress = loop.fit(
            joint.join(tasks, config.weights.to_dict()),
            training_batches(
                train,
                config.batch_size,
                seed=config.seed,
                num_threads=data.num_threads,
                part=processes.part(),
            ),
            settings.loop_settings(
                config, settings.total_steps(config, len(train)), best_metric=config.objective
            ),
            folder,
            hooks=hooks,
            initialise=functools.partial(transfer.start_from, config.pretrained, config.encoder),
            learning_rate_factors=functools.partial(
                learning_rate_factors, encoder, config.optimizer.factor_without_batchnorm
            ),
            description=str(config),
            advice=settings.advice_on_dtype(config),
        )
    finally:
        reader.write_bad_files(folder, processes.part(), extend=True)
    best = "none" if progress.best is None else f"{progress.best:.4g} at step {progress.best_step}"
    _log.info(
        "finished: best validation %s %s; continue with python main.py "
        "--config=configs/finetune.py --config.pretrained=%s --config.encoder=%s "
        "--config.data.train=%s, and with the same other settings of config.data",
        config.objective,
        best,
        os.path.relpath(folder),
        config.encoder,
        config.data.train.rpartition(",")[2].strip(),
    )


def _objective_settings(config) -> ObjectiveSettings:
    data, denoise, masking, views = config.data, config.denoise, config.masking, config.views
    return ObjectiveSettings(
        image_size=data.image_size,
        noise=denoise.noise,
        mask_fraction=masking.fraction,
        patch_size=masking.patch_size,
        views=settings.build(Augmentation, views),
        blur=views.blur,
        teacher_momentum=config.teacher_momentum,
    )
