"""Saliency maps: Grad-CAM at any pyramid level, integrated gradients, and their evaluation.

- Grad-CAM: Selvaraju et al., ICCV 2017.
- Integrated gradients: Sundararajan et al., ICML 2017.
- Pointing game: Zhang et al., ECCV 2016. Randomisation check: Adebayo et al., NeurIPS 2018.

The heads read only the last map. Grad-CAM at a finer level needs the gradient with respect to a map
inside the encoder. The traced JAX program is evaluated up to that map, and the rest of it is
differentiated, so encoders need no hooks.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from tqdm import tqdm

from infantxray.evaluation.intervals import mean_interval
from infantxray.evaluation.predictions import THRESHOLD, Predictions
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.initialisation import initialise
from infantxray.training import augment

STRIDES = (4, 8, 16, 32)  # Of the pyramid levels.
_MIN_CELLS = 6
_STEPS = 8  # Of integrated gradients: each costs a training step on the same images.
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


def default_level(image_size: int) -> int:
    """The deepest pyramid level whose map has at least six cells a side.

    Deep maps separate the conditions best, but a map of two by two cells (the last map at 64 px)
    shows only a corner. 192 px and more use the last map, as Grad-CAM's authors do.
    """
    return max((i for i, s in enumerate(STRIDES) if image_size // s >= _MIN_CELLS), default=0)


@functools.partial(jax.jit, static_argnums=0, static_argnames="level")
def grad_cam(
    model: DiagnosisModel,
    variables: Any,
    image: jax.Array,
    target: jax.Array,
    *,
    level: int = 3,
    mean: float = augment.MEAN,
    std: float = augment.STD,
) -> jax.Array:
    """Grad-CAM of one condition for each image.

    Args:
      model: model of stage two.
      variables: its parameters and statistics.
      image: uint8 `[B, S, S, 1]`.
      target: int `[B]`, the condition to explain.
      level: level of the pyramid, 0 (stride 4) to 3 (stride 32).
      mean, std: the input scale of the model.

    Returns:
      `[B, S/stride, S/stride]`: the positive part of the gradient-weighted map, each scaled to a
      maximum of 1 (all zero where nothing speaks for the condition).
    """
    x = augment.normalise(augment.to_intensity(image), mean, std)
    features, logits = _split_at_level(model, variables, x, level)

    def score(features: jax.Array) -> jax.Array:
        return _chosen(logits(features), target).sum()

    weights = jax.grad(score)(features).astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    return _scaled(jax.nn.relu((weights * features.astype(jnp.float32)).sum(-1)))


def integrated_gradients(
    model: DiagnosisModel,
    variables: Any,
    image: jax.Array,
    target: jax.Array,
    *,
    steps: int = _STEPS,
    mean: float = augment.MEAN,
    std: float = augment.STD,
) -> jax.Array:
    """Integrated gradients from a black image, by the midpoint rule.

    Args:
      model: model of stage two.
      variables: its parameters and statistics.
      image: uint8 `[B, S, S, 1]`.
      target: int `[B]`, the condition to explain.
      steps: images on the way from black.
      mean, std: the input scale of the model.

    Returns:
      Attributions `[B, S, S]` whose sum is the logit less that of a black image, up to the error
      of the quadrature.
    """
    x = augment.to_intensity(image)
    # Not within the compiled program: XLA runs convolutions in loops on one core.
    shares = [(i + 0.5) / steps for i in range(steps)]
    total = sum(_gradient(model, variables, share * x, target, mean, std) for share in shares)
    return (x * total / steps)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _gradient(
    model: DiagnosisModel,
    variables: Any,
    x: jax.Array,
    target: jax.Array,
    mean: float,
    std: float,
) -> jax.Array:
    """Gradient of the target's logit with respect to intensities `[B, S, S, 1]`."""

    def score(x: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, augment.normalise(x, mean, std), train=False)
        return _chosen(outputs["logits"], target).sum()

    return jax.grad(score)(x)


def _chosen(logits: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]


def _scaled(maps: jax.Array) -> jax.Array:
    return maps / jnp.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def _split_at_level(
    model: DiagnosisModel, variables: Any, x: jax.Array, level: int
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """A map of the pyramid `[B, h, w, C]`, and the function from that map to the logits `[B, K]`.

    Some encoders return a copy of the map that they go on with (Xception: after a ReLU that the
    next block repeats): then the map before that copy is taken, which the logits depend on.
    """

    def forward(variables: Any, x: jax.Array) -> Any:
        def both(model: DiagnosisModel, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            maps = model.encoder(x, train=False)
            return maps[level], model.heads(maps[-1])["logits"]

        return model.apply(variables, x, method=both)

    closed = jax.make_jaxpr(forward)(variables, x)
    program = closed.jaxpr
    producer = {out: eqn for eqn in program.eqns for out in eqn.outvars}

    def inputs(eqn: Any) -> list[Any]:
        return [v for v in eqn.invars if not isinstance(v, Literal)]

    wanted, logits = program.outvars
    needed, stack = set(), [logits]
    while stack:
        if (v := stack.pop()) not in needed:
            needed.add(v)
            stack += inputs(producer[v]) if v in producer else []
    while wanted not in needed:  # A copy: go back to where it comes from.
        wanted = max(inputs(producer[wanted]), key=lambda v: v.aval.size)

    names = program.debug_info
    # The logits as a function of that map too: it becomes an input, instead of being computed.
    rest = program.replace(
        invars=[*program.invars, wanted],
        outvars=[logits],
        eqns=[eqn for eqn in program.eqns if wanted not in eqn.outvars],
        debug_info=names._replace(arg_names=(*names.arg_names, "features")),
    )
    given = jax.tree.leaves((variables, x))
    before = ClosedJaxpr(program.replace(outvars=[wanted]), closed.consts)
    after = jaxpr_as_fun(ClosedJaxpr(rest, closed.consts))
    (features,) = jaxpr_as_fun(before)(*given)
    return features, lambda features: after(*given, features)[0]


class Explainer:
    """Saliency maps as large as the images, for any number of images.

    Args:
      model: model of stage two.
      variables: its parameters and statistics.
      mean, std: the input scale of the model.
      level: level of Grad-CAM; None for `default_level`.
      batch_size: images at a time; fewer are filled up, so that one program serves all.
    """

    def __init__(
        self,
        model: DiagnosisModel,
        variables: Any,
        *,
        mean: float = augment.MEAN,
        std: float = augment.STD,
        level: int | None = None,
        batch_size: int = 8,
    ):
        self._model, self._variables = model, variables
        self._scale: dict[str, Any] = {"mean": mean, "std": std}
        self.level, self._batch_size = level, batch_size
        self._fresh: dict[int, Any] = {}  # Random parameters by seed.

    def randomised(self, *, heads_only: bool, seed: int = 0) -> Explainer:
        """The same with fresh random parameters, of all the model or of its heads alone."""
        if seed not in self._fresh:
            init = functools.partial(self._model.init, train=False)
            shape = jnp.zeros((1, 32, 32, 1))
            self._fresh[seed] = initialise(init, jax.random.key(seed), shape)
        fresh = self._fresh[seed]
        variables = {**self._variables, **fresh}
        if heads_only:
            kept = {k: v for k, v in self._variables["params"].items() if k == "encoder"}
            variables = {**self._variables, "params": {**fresh["params"], **kept}}
        other = copy.copy(self)
        other._variables = variables
        return other

    def __call__(
        self, images: np.ndarray, target: np.ndarray, method: str = "grad_cam"
    ) -> np.ndarray:
        """Saliency `[N, S, S]` in [0, 1] of uint8 images `[N, S, S, 1]` for conditions `[N]`.

        Args:
          images: to explain.
          target: condition of each.
          method: `"grad_cam"`, or `"integrated_gradients"`: their positive part, smoothed.
        """
        size = images.shape[1]
        level = default_level(size) if self.level is None else self.level
        found = []
        for at in range(0, len(images), self._batch_size):
            rows = np.minimum(np.arange(at, at + self._batch_size), len(images) - 1)
            targets = jnp.asarray(target)[rows]
            part = (self._model, self._variables, jnp.asarray(images[rows]), targets)
            if method == "grad_cam":
                maps = _resized(grad_cam(*part, level=level, **self._scale), size)
            else:
                maps = np.maximum(np.asarray(integrated_gradients(*part, **self._scale)), 0)
                maps = gaussian_filter(maps, (0, size / 64, size / 64))
            found.append(maps[: len(images) - at])
        maps = np.concatenate(found)
        return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def _resized(maps: jax.Array, size: int) -> np.ndarray:
    large = jax.image.resize(maps, (len(maps), size, size), "cubic")
    return np.clip(np.asarray(large), 0, 1)


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
