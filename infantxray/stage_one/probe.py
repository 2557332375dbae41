"""The running linear probe: how well the representation transfers, during stage one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from data_pipeline.dataset import Reader
from data_pipeline.manifest import Records
from data_pipeline.splits import Split
from infantxray.evaluation.metrics import classification
from infantxray.features.classifiers import probe
from infantxray.features.extraction import Extractor, encoder_variables, pooled_map
from infantxray.training.hooks import Moment
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)


class RunningProbe:
    """A hook that fits a linear classifier to the frozen encoder and scores it.

    It is fitted on labelled training patients and scored on validation patients of the last source
    that has labels, which should be the target domain: a falling reconstruction loss does not show
    whether the representation transfers.

    Args:
      encoder: encoder of stage one.
      split: its data; see `probe_classes`.
      classes: at least two names of conditions.
      reader: reads the images.
      images: largest number in each of the two sets.
      every_steps: interval.
      batch_size: images at a time.
      num_threads: number of decoding threads.
      seed: seed of the choice of images.
    """

    def __init__(
        self,
        encoder: nn.Module,
        split: Split,
        classes: tuple[str, ...],
        reader: Reader,
        *,
        images: int,
        every_steps: int,
        batch_size: int,
        num_threads: int,
        seed: int,
    ):
        self._classes, self._every_steps = classes, every_steps
        self._extract = Extractor(
            pooled_map(encoder), batch_size=batch_size, num_threads=num_threads
        )
        reader = reader.with_classes(classes)
        rng = np.random.default_rng(seed)
        self._sources = []
        for records in _labelled(split):
            records = records.take(np.isin(records.label, classes))
            rows = rng.permutation(len(records))[:images]
            self._sources.append(reader(records.take(np.sort(rows))))

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        if not moment.every(self._every_steps):
            return {}
        with waiting("linear probe"):
            result = self.score(moment.state.eval_variables)
        _log.info(
            "linear probe: accuracy %(accuracy).3f, ROC AUC %(roc_auc).3f; "
            "effective rank %(effective_rank).1f",
            result,
        )
        return {f"probe/{name}": value for name, value in result.items()}

    def score(self, variables: Any) -> dict[str, float]:
        """Accuracy and macro ROC AUC on validation images, and the effective rank of features."""
        encoder = encoder_variables(variables)
        train, validation = (self._extract(source, encoder) for source in self._sources)
        predictions = probe(train, validation, self._classes, ages=False)
        scores = classification(predictions.probabilities, validation.label)
        return {
            "accuracy": scores["accuracy"],
            "roc_auc": scores["roc_auc"],
            "effective_rank": effective_rank(validation.values),
        }


def _labelled(split: Split) -> tuple[Records, Records]:
    """The labelled training and validation images of the last source that has labels."""
    train = split.train.take(split.train.has_label)
    validation = split.validation.take(split.validation.has_label)
    if len(train):
        train = train.take(train.source == train.source[-1])
        validation = validation.take(validation.source == train.source[-1])
    return train, validation


def probe_classes(split: Split) -> tuple[str, ...]:
    """The conditions for a running probe; fewer than two = no probe."""
    train, validation = _labelled(split)
    return tuple(sorted(set(train.label) & set(validation.label)))


def effective_rank(features: np.ndarray) -> float:
    """Effective rank of features: exp of the entropy of their singular values.

    1 where an encoder has collapsed to a line. Roy and Vetterli, "The effective rank", EUSIPCO
    2007; Garrido et al., "RankMe", ICML 2023, monitor representations with it.

    Args:
      features: `[N, D]`; their mean is removed first.

    Returns:
      From 1 to the smaller of N - 1 and D; 0 where all images are the same.
    """
    values = np.linalg.svd(features - features.mean(0), compute_uv=False).astype(np.float64)
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
