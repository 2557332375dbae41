"""Stage one: an encoder learns from X-rays without labels."""

from __future__ import annotations

import functools
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from data_pipeline import dataset as data
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, ImageSource, evaluation_batches, training_batches
from infantxray.evaluation import metrics as evaluation_metrics
from infantxray.features import classifiers as frozen
from infantxray.models import create_encoder
from infantxray.models.encoders import has_batchnorm
from infantxray.runs import runtime, workdir
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.training import augment, checkpoints, loop
from infantxray.training.sharding import DataParallel

_log = logging.getLogger(__name__)

_PANEL_IMAGES = 8


def run(config, folder: str) -> None:
    """Trains `config.objective` into the workdir `folder`; resumes where it holds a part of it."""
    runtime.setup()
    workdir.prepare(folder, config)
    if checkpoints.is_finished(folder):
        _log.info("%s is finished: nothing to do", folder)
        return
    split = data.open_split(config.data, folder)
    how = data.preprocessing(config.data)
    bad_files = BadFiles()
    reader = functools.partial(
        data.image_source, config.data, classes=(), how=how, bad_files=bad_files
    )
    train = reader(split.train, training=True)
    total_steps = runtime.total_steps(config, len(train))
    if not len(split.validation):
        raise DataError("no image is left for validation; raise config.data.validation_fraction")
    card = workdir.ModelCard(config.encoder, config.dtype, how)
    card.write(folder)

    sharding = DataParallel()
    encoder = create_encoder(config.encoder, dtype=jnp.dtype(config.dtype))
    objective = OBJECTIVES[config.objective](encoder, jnp.dtype(config.dtype), config)
    validation = reader(split.validation, training=False)
    evaluate = functools.partial(
        _evaluate, objective, validation, config, sharding, jax.jit(_validation_loss(objective))
    )
    callbacks = _Callbacks(
        config,
        Panels(objective, validation, folder),
        Probe.create(config, encoder, split, how, sharding, bad_files),
    )

    def init(key):
        image = jnp.zeros((1, how.image_size, how.image_size, 1))
        return objective.model.init(key, image, train=False)

    def losses(params, batch_stats, batch, key):
        augment_key, loss_key = jax.random.split(key)
        image = augment.augment(augment.to_intensity(batch["image"]), augment_key, config.augment)
        variables = {"params": params, "batch_stats": batch_stats}
        values, batch_stats = objective.loss(variables, image, loss_key, train=True)
        return {objective.name: values}, batch_stats

    task = loop.Task(
        init=init,
        weights=lambda batch: {objective.name: batch["mask"]},
        losses=losses,
        coefficients={objective.name: 1.0},
        evaluate=evaluate,
        on_step=callbacks,
    )
    batches = training_batches(
        train, config.batch_size, seed=config.seed, num_threads=config.data.num_threads
    )
    try:
        _, progress = loop.fit(
            config,
            folder,
            task,
            batches,
            total_steps=total_steps,
            best_metric=objective.name,
            lower_is_better=True,
            learning_rate_factors=functools.partial(_learning_rate_factors, config, encoder),
        )
    finally:
        bad_files.write(os.path.join(folder, "bad_files.csv"))
    best = "none" if progress.best is None else f"{progress.best:.4g} at step {progress.best_step}"
    target = config.data.train.rpartition(",")[2].strip()
    _log.info(
        "finished: best validation %s %s; go on with python main.py --config=configs/finetune.py "
        "--config.pretrained=%s --config.encoder=%s --config.data.train=%s, and with the same "
        "other settings of config.data",
        objective.name,
        best,
        os.path.relpath(folder),
        config.encoder,
        target,
    )


def _learning_rate_factors(config, encoder, params):
    """What multiplies the learning rate of each parameter; None: 1 for all."""
    if has_batchnorm(encoder):
        return None
    factor = config.optimizer.factor_without_batchnorm
    factors = jax.tree.map(lambda _: 1.0, params)
    factors["encoder"] = jax.tree.map(lambda _: factor, params["encoder"])
    return factors


def _validation_loss(objective):
    def loss(variables, batch, key):
        image = augment.to_intensity(batch["image"])
        values, _ = objective.loss(variables, image, key, train=False)
        return (values * batch["mask"]).sum(), batch["mask"].sum()

    return loss


def _evaluate(objective, source, config, sharding, loss_fn, variables) -> dict[str, float]:
    """Mean loss over the validation images."""
    total = count = 0.0
    size = sharding.evaluation_batch_size(config.batch_size)
    # The same key every time: a random objective is judged on the same masks.
    key = jax.random.key(config.seed)
    for batch in evaluation_batches(source, size, num_threads=config.data.num_threads):
        value, weight = loss_fn(variables, sharding.put(batch), key)
        total, count = total + float(value), count + float(weight)
    return {objective.name: total / count if count else float("nan")}


class _Callbacks:
    """What happens beside the updates: panels and the running linear probe."""

    def __init__(self, config, panels: Panels, probe: Probe | None):
        self._config = config
        self._panels = panels
        self._probe = probe

    def __call__(self, step, state, writer) -> dict[str, float]:
        if step % self._config.images_every_steps == 0:
            writer.write_images(step, self._panels.draw(state.eval_variables))
        if self._probe is not None and step % self._config.probe_every_steps == 0:
            return self._probe.score(state.eval_variables)
        return {}


class Panels:
    """Pictures of what the objective sees and makes, of the same few validation images each time.

    Args:
      objective: of stage one.
      source: images to choose from, evenly over their order.
      folder: of the run; the picture also goes to `figures/panels.png` in it.
    """

    def __init__(self, objective, source: ImageSource, folder: str):
        rows = np.unique(np.linspace(0, len(source) - 1, _PANEL_IMAGES).astype(int))
        self._images = np.stack([source[row]["image"] for row in rows])
        self._panels = jax.jit(objective.panels)
        self._tag = "panels/" + "_".join(objective.panel_names)
        self._path = os.path.join(folder, "figures", "panels.png")
        os.makedirs(os.path.dirname(self._path), exist_ok=True)

    def draw(self, variables) -> dict[str, np.ndarray]:
        """One picture for TensorBoard, `[1, H, W, 1]`: a column an image, a row a panel."""
        panels = self._panels(variables, augment.to_intensity(self._images))
        rows = [np.concatenate(list(np.asarray(p)), axis=1) for p in panels]
        picture = np.concatenate(rows, axis=0)
        Image.fromarray(np.rint(picture[..., 0] * 255).astype(np.uint8)).save(self._path)
        return {self._tag: picture[None]}


class Probe:
    """The running linear probe.

    Attributes:
      classes: names of the conditions that it tells apart.
    """

    @classmethod
    def create(cls, config, encoder, split, how, sharding, bad_files) -> Probe | None:
        """None where it is switched off or no labelled images are at hand."""
        if not config.probe_every_steps:
            return None
        train = split.train.take(split.train.has_label)
        validation = split.validation.take(split.validation.has_label)
        if len(train):
            # The target domain: the last source that has labels.
            train = train.take(train.source == train.source[-1])
            validation = validation.take(validation.source == train.source[-1])
        classes = tuple(sorted(set(train.label) & set(validation.label)))
        if len(classes) < 2:
            _log.info("no linear probe: fewer than two classes in training and validation images")
            return None
        return cls(config, encoder, train, validation, classes, how, sharding, bad_files)

    def __init__(self, config, encoder, train, validation, classes, how, sharding, bad_files):
        self.classes = classes
        self._config = config
        self._sharding = sharding
        rng = np.random.default_rng(config.seed)
        self._sources = []
        for records in (train, validation):
            records = records.take(np.isin(records.label, classes))
            rows = rng.permutation(len(records))[: config.probe_images]
            self._sources.append(
                data.image_source(
                    config.data,
                    records.take(np.sort(rows)),
                    classes,
                    how,
                    training=False,
                    bad_files=bad_files,
                )
            )

        def pooled(variables, image):
            # Without BatchNorm, as in VGG19, an encoder has no statistics.
            inner = {n: tree["encoder"] for n, tree in variables.items() if "encoder" in tree}
            x = augment.normalise(augment.to_intensity(image))
            return encoder.apply(inner, x, train=False)[-1].mean(axis=(1, 2)).astype(jnp.float32)

        self._pooled = jax.jit(pooled)

    def _features(self, source: ImageSource, variables):
        size = self._sharding.evaluation_batch_size(self._config.batch_size)
        threads = self._config.data.num_threads
        features, labels = [], []
        for batch in evaluation_batches(source, size, num_threads=threads):
            image = jax.device_put(batch["image"], self._sharding.batch)
            keep = batch["mask"] > 0
            features.append(np.asarray(self._pooled(variables, image))[keep])
            labels.append(batch["label"][keep])
        return np.concatenate(features), np.concatenate(labels)

    def score(self, variables) -> dict[str, float]:
        """Of a classifier fitted on training images, on validation images: accuracy, macro ROC AUC.

        And the effective rank of the validation images' features, which tells of collapse.
        """
        train, validation = (self._features(source, variables) for source in self._sources)
        predict = frozen.fit_linear(*train, len(self.classes))
        scores = evaluation_metrics.classification(predict(validation[0]), validation[1])
        result = {
            "accuracy": scores["accuracy"],
            "roc_auc": scores["roc_auc"],
            "effective_rank": effective_rank(validation[0]),
        }
        _log.info(
            "linear probe: accuracy %(accuracy).3f, ROC AUC %(roc_auc).3f; "
            "effective rank %(effective_rank).1f",
            result,
        )
        return {f"probe/{name}": value for name, value in result.items()}


def effective_rank(features: np.ndarray) -> float:
    """In how many directions images differ: exp of the entropy of the features' singular values.

    1 where an encoder has collapsed to a line. Roy and Vetterli, "The effective rank", EUSIPCO
    2007; Garrido et al., "RankMe", ICML 2023, watch representations with it.

    Args:
      features: `[N, D]`; what all images have in common is taken away first.

    Returns:
      From 1 to the smaller of N - 1 and D; 0 where all images are the same.
    """
    values = np.linalg.svd(features - features.mean(0), compute_uv=False).astype(np.float64)
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
