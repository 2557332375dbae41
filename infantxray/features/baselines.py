"""Baselines without a network: the most frequent class, and ridge regression on 32 x 32 pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from data_pipeline.conditions import finding_names
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.files import replaced
from data_pipeline.labels import FindingNames
from data_pipeline.loader import ImageSource, class_indices, evaluation_batches
from data_pipeline.manifest import Records
from data_pipeline.splits import Split
from infantxray.evaluation.metrics import classification, findings_metrics
from infantxray.evaluation.predictions import Predictions
from infantxray.features.classifiers import ridge_path

MAJORITY = "majority class, mean age"
RIDGE = "ridge on 32 x 32 pixels"
_SIDE = 32
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
_MOST_IMAGES = 20_000


def baselines(
    settings: DataSettings,
    split: Split,
    like: Predictions,
    images: Records,
    reader: Reader,
    cache: str = "",
) -> dict[str, Predictions]:
    """Predictions of the baselines for the test images.

    Args:
      settings: how labels are read.
      split: split with the labels for training.
      like: predictions of any model, for the truth.
      images: the test images, in the order of `like`.
      reader: reads images of any size, which are reduced to 32 x 32 pixels.
      cache: file to keep the predictions in, with a digest of the data; empty = none.

    Returns:
      `{name: Predictions}`.
    """
    names = finding_names(settings, split, like.classes)
    digest = _digest(split, like.classes, images, names, settings) if cache else ""
    found = _read(cache, digest)
    if found is None:
        found = _ridge(
            split,
            like.classes,
            images,
            reader.skipping(like.classes, names),
            settings.num_threads,
        )
        if cache:
            os.makedirs(os.path.dirname(cache), exist_ok=True)
            with replaced(cache, "wb") as file:
                np.savez(file, probabilities=found[0], ages=found[1], digest=digest)
    probabilities, ages = found
    ridge = dataclasses.replace(like, probabilities=probabilities, age_predicted_months=ages)
    return {MAJORITY: _majority(split.train, like, names), RIDGE: ridge}


def _read(cache: str, digest: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities and ages that were kept for the data of this digest; None = there are none."""
    if not cache or not os.path.exists(cache):
        return None
    try:
        with np.load(cache, allow_pickle=False) as saved:
            if str(saved["digest"]) == digest:
                return saved["probabilities"], saved["ages"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile):  # Earlier versions had no digest.
        pass
    return None


def _digest(
    split: Split,
    classes: tuple[str, ...],
    images: Records,
    names: FindingNames | None,
    settings: DataSettings,
) -> str:
    """A digest of all that the predictions depend on but the contents of the image files."""
    digest = hashlib.sha256()
    how = settings.preprocessing.fingerprint()
    digest.update(repr((_MOST_IMAGES, _PENALTIES, classes, how)).encode())
    for records in (split.train, split.validation, images):
        truth = class_indices(records.label, classes) if names is None else names.matrix(records)
        digest.update(repr((len(records), truth.dtype.str, truth.shape)).encode())
        for column in (records.image_path, records.label):
            digest.update("\0".join(column).encode(errors="surrogateescape"))
        digest.update(np.ascontiguousarray(truth).tobytes())
        digest.update(records.age_months.astype("<f4").tobytes())
    return digest.hexdigest()


def _majority(train: Records, like: Predictions, names: FindingNames | None) -> Predictions:
    label = class_indices(train.label, like.classes)
    probabilities = np.zeros_like(like.probabilities)
    if names is not None:
        findings = names.matrix(train)
        present, absent = (findings == 1).sum(0), (findings == 0).sum(0)
        probabilities[:] = present / np.maximum(present + absent, 1)
    elif (label >= 0).any():
        probabilities[:, np.bincount(label[label >= 0]).argmax()] = 1.0
    ages = np.full(len(like), np.nan)
    if train.has_age.any():
        ages[:] = train.age_months[train.has_age].astype(np.float64).mean()
    return dataclasses.replace(like, probabilities=probabilities, age_predicted_months=ages)


def _ridge(
    split: Split, classes: tuple[str, ...], images: Records, reader: Reader, num_threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[N, K]` (one class against the rest) and ages `[N]`.

    The penalty is chosen on the validation images.
    """
    train = split.train.take(split.train.has_label | split.train.has_age)
    if len(train) > _MOST_IMAGES:
        rows = np.random.default_rng(0).permutation(len(train))[:_MOST_IMAGES]
        train = train.take(np.sort(rows))
    parts = [_pixels(reader(part), num_threads) for part in (train, split.validation, images)]
    (x, truth, age), (x_val, truth_val, age_val), (x_test, _, _) = parts

    def best(
        rows: np.ndarray, targets: np.ndarray, score: Callable[[np.ndarray], float]
    ) -> np.ndarray:
        fits = ridge_path(x[rows], targets, _PENALTIES)
        scores = [score(fit(x_val)) for fit in fits]
        return fits[int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0](x_test)

    probabilities = np.full((len(images), len(classes)), np.nan)
    several = truth.ndim == 2
    known = np.isfinite(truth).any(1) if several else truth >= 0
    if classes and known.any():
        if several:  # An unknown finding is taken to be as frequent as among the known ones.
            share = np.nan_to_num(np.nanmean(truth[known], axis=0))
            targets = np.where(np.isfinite(truth[known]), truth[known], share[None])
        else:
            targets = np.eye(len(classes))[truth[known]]
        score = findings_metrics if several else classification
        probabilities = best(known, targets, lambda scores: score(scores, truth_val)["roc_auc"])
    ages = np.full(len(images), np.nan)
    aged = np.isfinite(age)
    if aged.any():

        def closeness(found: np.ndarray) -> float:
            error = np.abs(found[:, 0] - age_val)
            return -float(error[np.isfinite(error)].mean()) if np.isfinite(error).any() else np.nan

        ages = best(aged, age[aged, None].astype(np.float64), closeness)[:, 0]
    return probabilities, ages


def _pixels(source: ImageSource, num_threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels `[N, 1024]` in [0, 1], labels and ages; unreadable images are black and unknown.

    Labels are findings `[N, K]` where an image may have several.
    """
    records = source.records
    truth, unknown = source.labels, -1.0
    if source.findings is not None:
        truth, unknown = source.findings, np.nan
    if not len(records):
        return np.zeros((0, _SIDE**2)), truth, records.age_months
    steps = evaluation_batches(source, 64, num_threads=num_threads)
    total = -(-len(records) // 64)
    image, mask = [], []
    for batch in tqdm(steps, total=total, desc="pixels", unit="batch", delay=5, leave=False):
        image.append(_reduce(batch["image"]))
        mask.append(batch["mask"])
    readable = np.concatenate(mask)[: len(records)] > 0
    return (
        np.concatenate(image)[: len(records)],
        np.where(readable[:, None] if truth.ndim == 2 else readable, truth, unknown).astype(
            truth.dtype
        ),
        np.where(readable, records.age_months, np.nan),
    )


def _reduce(image: np.ndarray) -> np.ndarray:
    """uint8 `[B, S, S, 1]` -> means of 32 x 32 squares in [0, 1], float32 `[B, 1024]`."""
    count, side = image.shape[:2]
    times = side // _SIDE
    squares = image.reshape(count, _SIDE, times, _SIDE, times)
    return squares.mean((2, 4), dtype=np.float32).reshape(count, -1) / 255
