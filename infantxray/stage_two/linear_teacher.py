"""A teacher for self-training that is fitted in seconds: a linear probe of the frozen encoder."""

from __future__ import annotations

import logging

import numpy as np

from data_pipeline.loader import ImageSource
from infantxray.evaluation.metrics import classification
from infantxray.features.classifiers import Extractor, fit_linear, pooled_map

_log = logging.getLogger(__name__)

# With few images a probe overfits: it sees each of them changed as well, and is penalised a hundred
# times as much as one that only measures a representation.
_CHANGED = 16  # Times.
_MOST_FEATURES = 50_000
_L2 = 1.0


def answer(
    config, model, variables, labelled: ImageSource, images: ImageSource, validation: ImageSource
) -> np.ndarray:
    """What multinomial logistic regression on the frozen encoder's pooled last map says.

    Args:
      config: its `augment` changes the images that the probe is fitted on.
      model: with the encoder, and with a head for the conditions.
      variables: its.
      labelled: images to fit it on.
      images: all training images.
      validation: images to tell of how good it is.

    Returns:
      Probabilities of the conditions of `images`, float32 `[N, K]`.
    """
    plain = Extractor(config, pooled_map(model, variables))
    changed = Extractor(config, pooled_map(model, variables, config.augment))
    times = min(_CHANGED, _MOST_FEATURES // len(labelled))
    parts = [plain(labelled)]
    parts += [changed(labelled, config.seed * _CHANGED + i) for i in range(times)]
    values = np.concatenate([part.values for part in parts])
    label = np.concatenate([part.label for part in parts])
    predict = fit_linear(values, label, model.num_classes, _L2)
    if (validation.labels >= 0).any():
        scored = plain(validation)
        found = classification(predict(scored.values), scored.label)
        _log.info(
            "teacher: a linear probe on %d images, each as it is and %d times changed; validation "
            "ROC AUC %.3f, accuracy %.3f",
            len(labelled),
            times,
            found["roc_auc"] if found["roc_auc"] is not None else np.nan,
            found["accuracy"],
        )
    return predict(plain(images).values).astype(np.float32)
