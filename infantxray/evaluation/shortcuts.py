"""Shortcuts: how well the size, depth, brightness and border of an image predict its class.

A network learns such shortcuts before it learns the disease. In the original files of Kermany's
chest images, the aspect ratio alone separates pneumonia from normal with an AUC of 0.875.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from data_pipeline.audit import Images
from data_pipeline.labels import carries, names_in
from infantxray.evaluation.metrics import roc_auc

MEASURES = ("height", "width", "aspect_ratio", "bits", "brightness", "contrast", "border")
TOGETHER = "all together"
_ALARM_AUC = 0.7
_SURELY_ABOVE = 0.6
_FOLDS = 5
_MIN_CASES = 10


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """How well one measure separates a class from the others.

    Attributes:
      label: the class.
      measure: one of `MEASURES`, or `TOGETHER`.
      auc: at least 0.5, since low values count as well as high ones.
      alarm: the AUC is at least 0.7, and its 95 % interval lies above 0.6.
    """

    label: str
    measure: str
    auc: float
    alarm: bool


def shortcuts(images: Images, labels: np.ndarray, patients: np.ndarray) -> list[Shortcut]:
    """AUC of every measure for every class of at least ten images, against the other classes.

    `TOGETHER` is a linear classifier on the ranks of all measures and their squares, scored on
    other patients than it was fitted to. A measure that is equal for all images is left out.

    Args:
      images: what was measured.
      labels: class of each image `[n]`, or findings joined by `|`; empty = unknown.
      patients: key of each image's patient `[n]`.
    """
    rows = np.flatnonzero(images.readable & (labels != ""))
    labels, patients = labels[rows], patients[rows]
    columns = {name: np.asarray(getattr(images, name), np.float64)[rows] for name in MEASURES}
    columns = {name: v for name, v in columns.items() if len(v) and np.ptp(v) > 1e-9}
    found = []
    for label in sorted(names_in(labels)) if columns else []:
        positive = carries(labels, label)
        cases = int(positive.sum()), int((~positive).sum())
        if min(cases) < _MIN_CASES:
            continue
        scores = {name: roc_auc(positive, values) for name, values in columns.items()}
        scores = {name: max(value, 1 - value) for name, value in scores.items()}
        scores[TOGETHER] = _together(np.stack(list(columns.values()), 1), positive, patients)
        for name, value in scores.items():
            sure = value - 1.96 * _standard_error(value, *cases) > _SURELY_ABOVE
            found.append(Shortcut(label, name, value, bool(value >= _ALARM_AUC and sure)))
    return found


def _standard_error(value: float, n_positive: int, n_negative: int) -> float:
    """Standard error of an AUC (Hanley and McNeil, Radiology 1982;143:29-36)."""
    q1 = value / (2 - value) - value**2
    q2 = 2 * value**2 / (1 + value) - value**2
    variance = value * (1 - value) + (n_positive - 1) * q1 + (n_negative - 1) * q2
    return float(np.sqrt(variance / (n_positive * n_negative)))


def _together(columns: np.ndarray, positive: np.ndarray, patients: np.ndarray) -> float:
    ranks = np.empty(columns.shape)
    for k in range(columns.shape[1]):
        values, rank = np.unique(columns[:, k], return_inverse=True)
        ranks[:, k] = rank / (len(values) - 1) - 0.5
    features = np.concatenate([ranks, ranks**2, np.ones((len(ranks), 1))], axis=1)
    digests = {
        patient: hashlib.blake2b(patient.encode(errors="surrogateescape")).digest()[0]
        for patient in set(patients)
    }
    fold = np.array([digests[patient] for patient in patients]) % _FOLDS
    ridge = 1e-2 * np.eye(features.shape[1])
    target = positive - positive.mean()
    score = np.zeros(len(positive))
    for k in range(_FOLDS):
        fit = fold != k
        gram = features[fit].T @ features[fit] + ridge
        score[~fit] = features[~fit] @ np.linalg.solve(gram, features[fit].T @ target[fit])
    value = roc_auc(positive, score)
    return max(value, 1 - value)
