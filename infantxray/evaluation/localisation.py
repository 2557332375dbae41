"""Saliency on test images: examples for the report, and how well the maps localise boxes.

- Pointing game: Zhang et al., ECCV 2016.
- Randomisation check: Adebayo et al., NeurIPS 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from infantxray.evaluation.intervals import mean_interval
from infantxray.evaluation.predictions import THRESHOLD, Predictions
from infantxray.evaluation.saliency import Explainer, default_level

_PER_CLASS = 8  # Images of a condition that are scored.
_CHECKED = 16  # Images of the randomisation check.
_MISTAKES = 6

# x0, y0, x1, y1: pixels of the network's square, the ends excluded.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Images:
    """Access to the images that predictions were made of.

    Attributes:
      load: row of the predictions -> uint8 `[S, S, 1]`.
      boxes: row and name of a finding -> where it is; empty where that is unknown.
    """

    load: Callable[[int], np.ndarray]
    boxes: Callable[[int, str], Sequence[Box]] = lambda row, name: ()


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with its saliency.

    Attributes:
      image: uint8 `[S, S]`.
      predicted_map: saliency of the predicted condition, `[S, S]`, in [0, 1].
      true_map: saliency of the true condition.
      truth: name of the true condition.
      predicted: name of the predicted one.
      probability: of the predicted condition.
      boxes: where the finding is; empty where that is unknown.
    """

    image: np.ndarray
    predicted_map: np.ndarray
    true_map: np.ndarray
    truth: str
    predicted: str
    probability: float
    boxes: Sequence[Box] = ()


def examples(explain: Explainer, images: Images, predictions: Predictions) -> list[Example]:
    """One image of each class: the one with the surest answer, right or wrong.

    Where an image may have several findings: of each finding, the image that has it for which the
    model finds it most probable.
    """
    if predictions.multi_label:
        pairs = []
        for k in range(len(predictions.classes)):
            rows = np.flatnonzero(predictions.outcome(k)[1])
            if len(rows):
                pairs.append((int(rows[predictions.probabilities[rows, k].argmax()]), k))
        return _explained_findings(explain, images, predictions, pairs)
    confidence = predictions.probabilities.max(1, initial=0)
    chosen = [
        int(rows[np.argmax(confidence[rows])])
        for k in range(len(predictions.classes))
        if len(rows := np.flatnonzero(predictions.label == k))
    ]
    return _explained(explain, images, predictions, chosen)


def mistakes(explain: Explainer, images: Images, predictions: Predictions) -> list[Example]:
    """The images with the surest wrong answers, at most six."""
    if predictions.findings is not None:
        error = np.abs(predictions.probabilities - np.nan_to_num(predictions.findings))
        error[np.isnan(predictions.findings)] = 0
        worst = np.argsort(-error, axis=None, kind="stable")[:_MISTAKES]
        found = zip(*np.unravel_index(worst, error.shape), strict=True)
        pairs = [(int(row), int(k)) for row, k in found if error[row, k] > THRESHOLD]
        return _explained_findings(explain, images, predictions, pairs)
    confidence = predictions.probabilities.max(1, initial=0)
    predicted = predictions.probabilities.argmax(1) if predictions.classes else predictions.label
    wrong = np.flatnonzero((predictions.label >= 0) & (predicted != predictions.label))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    return _explained(explain, images, predictions, wrong.tolist())


def _explained(
    explain: Explainer, images: Images, predictions: Predictions, rows: Sequence[int]
) -> list[Example]:
    if not rows:
        return []
    image = np.stack([images.load(row) for row in rows])
    truth = predictions.label[rows]
    predicted = predictions.probabilities[rows].argmax(1)
    maps = [explain(image, target) for target in (predicted, truth)]
    return [
        Example(
            image=image[i, ..., 0],
            predicted_map=maps[0][i],
            true_map=maps[1][i],
            truth=predictions.classes[truth[i]],
            predicted=predictions.classes[predicted[i]],
            probability=float(predictions.probabilities[row, predicted[i]]),
            boxes=tuple(images.boxes(row, predictions.classes[truth[i]])),
        )
        for i, row in enumerate(rows)
    ]


def _explained_findings(
    explain: Explainer,
    images: Images,
    predictions: Predictions,
    pairs: Sequence[tuple[int, int]],
) -> list[Example]:
    """The saliency of one finding in one image each, by row and finding."""
    if not pairs:
        return []
    image = np.stack([images.load(row) for row, _ in pairs])
    maps = explain(image, np.array([k for _, k in pairs]))
    shown = []
    for i, (row, k) in enumerate(pairs):
        name, probability = predictions.classes[k], float(predictions.probabilities[row, k])
        named, present = probability >= THRESHOLD, bool(predictions.outcome(k)[1][row])
        shown.append(
            Example(
                image=image[i, ..., 0],
                predicted_map=maps[i],
                true_map=maps[i],
                truth=name if present else f"no {name}",
                predicted=name if named else f"no {name}",
                probability=probability if named else 1 - probability,
                boxes=tuple(images.boxes(row, name)),
            )
        )
    return shown


def localisation(
    explain: Explainer,
    images: Images,
    predictions: Predictions,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Pointing game and saliency within the box of the finding, for the true condition.

    Args:
      explain: makes the saliency maps.
      images: the images with their boxes.
      predictions: predictions of the same images.
      samples: bootstrap samples of patients for the intervals; 0 leaves them out.
      seed: seed of the resampling.

    Returns:
      `n` findings, of the first eight images of each whose place is known; `box_share`, the mean
      share of the image that the boxes take; `pointing_game`, the share of images whose most
      salient pixel lies in a box, and `mass_in_box`, the mean share of the saliency within, of
      Grad-CAM at pyramid `level`; the same two under `integrated_gradients`; each with its
      interval under `ci95`. Evenly spread saliency gives `box_share` for both. `randomisation` is
      the rank correlation of Grad-CAM with that of a model with random heads, and with random
      parameters throughout: near 1, the maps show the image rather than the learned parameters.
      None without boxes.
    """
    rows, target, boxes = _boxed_findings(images, predictions)
    if not rows:
        return None
    patient = predictions.patient[rows]
    image = np.stack([images.load(row) for row in rows])
    inside = np.stack([_mask(found, image.shape[1]) for found in boxes])

    def scored(maps: np.ndarray) -> dict[str, Any]:
        flat, within = maps.reshape(len(maps), -1), inside.reshape(len(maps), -1)
        total = flat.sum(1)
        hit = (total > 0) & within[np.arange(len(flat)), flat.argmax(1)]
        mass = (flat * within).sum(1) / np.where(total > 0, total, 1)
        result: dict[str, Any] = {"ci95": {}}
        for name, values in (("pointing_game", hit), ("mass_in_box", mass)):
            result[name] = float(values.mean())
            if samples:
                ends = mean_interval(values, patient, samples=samples, seed=seed)
                result["ci95"][name] = list(ends)
        return result

    maps = {}
    with tqdm(total=2 * len(rows), desc="saliency", unit="image") as progress:
        for method in ("grad_cam", "integrated_gradients"):
            maps[method] = explain(image, target, method)
            progress.update(len(rows))
    level = default_level(image.shape[1]) if explain.level is None else explain.level
    few = slice(0, _CHECKED)
    return {
        "n": len(rows),
        "n_patients": len(set(patient.tolist())),
        "level": level,
        "box_share": float(inside.mean()),
        **scored(maps["grad_cam"]),
        "integrated_gradients": scored(maps["integrated_gradients"]),
        "randomisation": {
            name: _similarity(
                maps["grad_cam"][few],
                explain.randomised(heads_only=heads_only, seed=seed)(image[few], target[few]),
            )
            for name, heads_only in (("heads", True), ("all", False))
        },
    }


def _boxed_findings(
    images: Images, predictions: Predictions
) -> tuple[list[int], np.ndarray, list[Sequence[Box]]]:
    """Rows, findings and boxes of the first eight images of each finding that has a box.

    An image with several findings counts once for each finding, with the boxes of that finding.
    """

    def of_class(k: int) -> Iterator[tuple[int, int, Sequence[Box]]]:
        count = 0
        for row in np.flatnonzero(predictions.outcome(k)[1]).tolist():
            if count < _PER_CLASS and (found := images.boxes(row, predictions.classes[k])):
                count += 1
                yield row, k, found

    found = [each for k in range(len(predictions.classes)) for each in of_class(k)]
    target = np.array([k for _, k, _ in found], int)
    return [row for row, _, _ in found], target, [boxes for _, _, boxes in found]


def _mask(boxes: Sequence[Box], size: int) -> np.ndarray:
    """The pixels within any of the boxes, bool `[S, S]`."""
    inside = np.zeros((size, size), bool)
    for x0, y0, x1, y1 in boxes:
        rows = slice(round(y0), max(round(y1), round(y0) + 1))
        inside[rows, round(x0) : max(round(x1), round(x0) + 1)] = True
    return inside


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean Spearman correlation of maps `[N, S, S]`, over those that are not constant."""
    pairs = [
        (a.ravel(), b.ravel())
        for a, b in zip(one, other, strict=True)
        if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    if not pairs:
        return float("nan")
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))
