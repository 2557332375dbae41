"""Supervised stage one: labels and ages of the source data, learned as in stage two.

This is transfer between tasks, from adults' findings to infants' conditions. It answers a different
question from objectives that use images alone.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from data_pipeline.conditions import find_classes, finding_names
from data_pipeline.dataset import DataSettings, Reader, age_statistics
from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles, ImageSource
from data_pipeline.manifest import Records
from data_pipeline.sources import parse_sources
from data_pipeline.splits import Split
from infantxray.evaluation.metrics import headline
from infantxray.evaluation.summary import calibration_of
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two.inference import Predictor
from infantxray.stage_two.loss import LossSettings, make_task
from infantxray.training.augment import Augmentation
from infantxray.training.train_step import PyTree, Task

NAME = "supervised"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SupervisedSettings:
    """Settings of `objective=supervised`: `config.supervised`.

    Attributes:
      sources: sources of labels and ages, `source:place`, separated by commas. Empty = all sources
        of the training data but the last, which is the target; or the only source.
      labels: `"single"` or `"multi"`, see `DataSettings`.
      age_head: whether AgePredictionNet learns the known ages.
      age_weight: α of Equation 4.
    """

    sources: str = ""
    labels: str = "single"
    age_head: bool = True
    age_weight: float = 0.8


def source_split(split: Split, settings: SupervisedSettings) -> Split:
    """The split in which only the images of the label sources have labels and ages.

    Raises:
      DataError: `settings.sources` names a source that the training data lacks.
    """
    there = list(dict.fromkeys(split.train.source.tolist()))
    chosen = [f"{name}:{place}" for name, place in parse_sources(settings.sources)]
    missing = [name for name in chosen if name not in there]
    if missing:
        raise DataError(
            f"config.supervised.sources names {missing[0]}, which is not in config.data.train; "
            f"there are {', '.join(there)}"
        )
    chosen = chosen or (there[:-1] if len(there) > 1 else there)
    _log.info("supervised: labels and ages of %s", ", ".join(chosen))

    def masked(records: Records) -> Records:
        keep = np.isin(records.source, chosen)
        unsure = [names if k else () for names, k in zip(records.uncertain, keep, strict=True)]
        return records.replace(
            label=np.where(keep, records.label, ""),
            age_months=np.where(keep, records.age_months, np.float32(np.nan)),
            uncertain=np.fromiter(unsure, dtype=object, count=len(unsure)),
        )

    return Split(masked(split.train), masked(split.validation), masked(split.test))


def has_truth(records: Records) -> np.ndarray:
    """Bool `[N]`: an image has a label or an age."""
    return np.asarray(records.has_label | records.has_age)


def make_supervised(
    spec: ModelSpec,
    settings: SupervisedSettings,
    augmentation: Augmentation,
    data: DataSettings,
    split: Split,
    *,
    batch_size: int,
    bad_files: BadFiles | None = None,
) -> tuple[Task, Reader]:
    """The task, and a reader of batches with its labels.

    Args:
      spec: specification of the encoder, without heads.
      settings: settings of supervision.
      augmentation: augmentation of training images.
      data: of the run, with `labels` of `settings`.
      split: see `source_split`.
      batch_size: batch size of validation.
      bad_files: a list to add to.

    Raises:
      DataError: there is neither a label nor an age to learn from.
    """
    data = dataclasses.replace(data, classes=())  # Those of the target need not be known here.
    labelled = split.train.take(split.train.has_label)
    if labelled.has_several.any() and not data.multi_label:
        raise DataError(
            f"images of the source have several findings, such as "
            f"{labelled.label[labelled.has_several][0]!r}; set config.supervised.labels=multi"
        )
    single = not data.multi_label and len(set(labelled.label.tolist())) < 2
    classes = () if single else find_classes(data, labelled)
    spec = dataclasses.replace(
        spec, classes=classes, multi_label=data.multi_label and bool(classes), objective=""
    )
    if settings.age_head:
        try:
            mean, std = age_statistics(split.train)
            spec = dataclasses.replace(spec, age_mean_months=mean, age_std_months=std)
        except DataError as error:
            _log.info("supervised: no ages (%s)", error)
    if not spec.has_heads:
        raise DataError(
            "objective supervised needs images of the source data with labels of two conditions, "
            "or with ages; there are none"
        )
    names = finding_names(data, dataclasses.replace(split, train=labelled), classes)
    reader = Reader(data, classes, names=names, bad_files=bad_files)
    train = reader(split.train)
    _log.info(
        "supervised: %d conditions, %d training images with a label, %d with an age, of %d",
        len(classes),
        train.has_condition.sum(),
        split.train.has_age.sum() if spec.has_age else 0,
        len(train),
    )
    validation = reader(split.validation.take(has_truth(split.validation)))
    predictor = Predictor(spec, batch_size=batch_size, num_threads=data.num_threads)

    def validate(variables: PyTree) -> dict[str, float]:
        found = validation_metrics(predictor, validation, variables)
        loss = found.pop("loss", float("nan"))
        if not classes and spec.age_std_months:
            loss = found.get("age_mae_months", float("nan")) / spec.age_std_months
        return {NAME: loss} | {f"source_{name}": value for name, value in found.items()}

    task = make_task(
        spec,
        LossSettings(age_weight=settings.age_weight),
        augmentation,
        train.labels if train.findings is None else train.findings,
        validate,
    )
    return task, reader


def validation_metrics(
    predictor: Predictor, source: ImageSource, variables: PyTree
) -> dict[str, float]:
    """The headline metrics on validation images, and the cross-entropy as `loss`."""
    if not len(source):
        return {}
    predictions, _ = predictor(variables, source, check=False)  # Training may still mend it.
    result = {k: v for k, v in headline(predictions).items() if np.isfinite(v)}
    if predictions.classes:
        result["loss"] = calibration_of(predictions)["log_loss"]
    return result
