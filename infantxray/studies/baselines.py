"""What models without a network score: the most frequent class, and ridge on 32 x 32 pixels."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from data_pipeline.decode import Preprocessing
from data_pipeline.loader import BadFiles, ImageSource, class_indices, evaluation_batches
from data_pipeline.manifest import Records
from data_pipeline.splits import Split
from infantxray.evaluation.metrics import Predictions, classification
from infantxray.features.classifiers import ridge_path

MAJORITY = "majority class, mean age"
RIDGE = "ridge on 32 x 32 pixels"
_SIDE = 32
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
_MOST_FILMS = 20_000


def baselines(settings, split: Split, like: Predictions, images: Records, cache: str) -> dict:
    """Answers of the baselines for the test images.

    Args:
      settings: `config.data`.
      split: with the labels that may be trained on.
      like: answers of any model, for the truth.
      images: the test images, in their order.
      cache: file to keep the answers in.

    Returns:
      `{name: Predictions}`.
    """
    if not os.path.exists(cache):
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        probabilities, ages = _ridge(settings, split, like.classes, images)
        np.savez(cache + ".tmp.npz", probabilities=probabilities, ages=ages)
        os.replace(cache + ".tmp.npz", cache)
    with np.load(cache) as saved:
        ridge = dataclasses.replace(
            like, probabilities=saved["probabilities"], age_predicted_months=saved["ages"]
        )
    return {MAJORITY: _majority(split.train, like), RIDGE: ridge}


def _majority(train: Records, like: Predictions) -> Predictions:
    label = class_indices(train.label, like.classes)
    probabilities = np.zeros_like(like.probabilities)
    if (label >= 0).any():
        probabilities[:, np.bincount(label[label >= 0]).argmax()] = 1.0
    ages = np.full(len(like), np.nan)
    if train.has_age.any():
        ages[:] = train.age_months[train.has_age].astype(np.float64).mean()
    return dataclasses.replace(like, probabilities=probabilities, age_predicted_months=ages)


def _ridge(settings, split: Split, classes, images: Records) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[N, K]` (one class against the rest) and ages `[N]`.

    The penalty is the one that does best on the validation images.
    """
    train = split.train.take(split.train.has_label | split.train.has_age)
    if len(train) > _MOST_FILMS:
        rows = np.random.default_rng(0).permutation(len(train))[:_MOST_FILMS]
        train = train.take(np.sort(rows))
    parts = [_pixels(settings, records, classes) for records in (train, split.validation, images)]
    (x, label, age), (x_val, label_val, age_val), (x_test, _, _) = parts

    def best(rows, targets, score):
        fits = ridge_path(x[rows], targets, _PENALTIES)
        scores = [score(fit(x_val)) for fit in fits]
        return fits[int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0](x_test)

    probabilities = np.full((len(images), len(classes)), np.nan)
    known = label >= 0
    if classes and known.any():
        targets = np.eye(len(classes))[label[known]]
        probabilities = best(
            known, targets, lambda scores: classification(scores, label_val)["roc_auc"]
        )
    ages = np.full(len(images), np.nan)
    aged = np.isfinite(age)
    if aged.any():

        def closeness(found):
            return -np.nanmean(np.abs(found[:, 0] - age_val))

        ages = best(aged, age[aged, None].astype(np.float64), closeness)[:, 0]
    return probabilities, ages


def _pixels(settings, records: Records, classes):
    """Pixels `[N, 1024]` in [0, 1], labels and ages; unreadable images are black and unknown."""
    how = Preprocessing(
        image_size=_SIDE, resize=settings.resize, trim_borders=settings.trim_borders
    )
    source = ImageSource(records, classes, how, on_error="skip", bad_files=BadFiles())
    batches = list(evaluation_batches(source, 64, num_threads=settings.num_threads))
    image = np.concatenate([batch["image"] for batch in batches])[: len(records)]
    readable = np.concatenate([batch["mask"] for batch in batches])[: len(records)] > 0
    return (
        image.reshape(len(records), -1) / 255.0,
        np.where(readable, source.labels, -1),
        np.where(readable, records.age_months, np.nan),
    )
