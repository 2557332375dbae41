"""Saliency maps: Grad-CAM at any pyramid level, and integrated gradients.

- Grad-CAM: Selvaraju et al., ICCV 2017.
- Integrated gradients: Sundararajan et al., ICML 2017.

The heads read only the last map. Grad-CAM at a finer level needs the gradient with respect to a map
inside the encoder. The traced JAX program is evaluated up to that map, and the rest of it is
differentiated, so encoders need no hooks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from scipy.ndimage import gaussian_filter

from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.initialisation import initialise
from infantxray.training import augment

STRIDES = (4, 8, 16, 32)  # Of the pyramid levels.
_MIN_CELLS = 6
_STEPS = 8  # Of integrated gradients: each costs a training step on the same images.


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
