"""Masked prediction: hide patches of the image, and predict their content from the rest.

He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; Xie et al., "SimMIM",
CVPR 2022, whose light head and masked input suit convolutions.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infantxray.models.autoencoder import Autoencoder
from infantxray.models.encoders.layers import repeat_pixels
from infantxray.models.heads import CellHead
from infantxray.stage_one.objectives.base import Objective, ObjectiveSettings, PyTree
from infantxray.training.augment import MEAN, example_keys, normalise

STRIDE = 32  # Of the encoder's last map, from which everything is predicted.


def patch_size(asked: int, image_size: int) -> int:
    """Side of a patch in pixels: `asked`, or where that is 0 about an eighth of the image's.

    An eighth hides the same share of the anatomy at every image size. It is rounded to a power of
    two of 4 to 32, so that whole patches fill the image and places of the last map alike: 8 at
    64 px, 16 at 128, 32 at 224.
    """
    return asked or 2 ** min(max(round(math.log2(image_size / 8)), 2), 5)


def random_mask(key: jax.Array, batch_size: int, grid: int, fraction: float) -> jax.Array:
    """Random patches to hide, bool `[B, grid, grid]`, equally many in each image."""
    count = min(max(round(fraction * grid**2), 1), grid**2 - 1)
    keys = example_keys(key, batch_size)
    order = jax.vmap(lambda k: jax.random.permutation(k, grid**2))(keys)
    return (order < count).reshape(batch_size, grid, grid)


class Masked(Objective):
    """Squared error of the hidden cells' features, summed over features, mean over hidden cells.

    The encoder sees the image with hidden patches in mean grey, which is zero after
    normalisation: the encoder sees nothing of the hidden content. A cell is a part of a patch.
    """

    panel_names: tuple[str, ...] = ("input", "masked", "target", "prediction")

    def __init__(self, encoder: nn.Module, dtype: Any, settings: ObjectiveSettings):
        super().__init__(encoder, dtype, settings)
        self._patch = patch_size(settings.patch_size, settings.image_size)
        head = CellHead(STRIDE // self.cell, features=self.features, dtype=dtype)
        self.model = Autoencoder(encoder, head)

    @property
    @abc.abstractmethod
    def cell(self) -> int:
        """Side of a cell in pixels; divides the patch's."""

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """Number of features predicted for each cell."""

    @abc.abstractmethod
    def target(self, image: jax.Array) -> jax.Array:
        """Image `[B, H, W, 1]` -> features `[B, H / cell, W / cell, features]`."""

    @abc.abstractmethod
    def draw(self, values: jax.Array) -> jax.Array:
        """Features as `target` makes them -> picture `[B, k H, k W, 1]` in [0, 1]."""

    def hide(self, image: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Image -> what the encoder sees of it, and the hidden cells `[B, H / cell, W / cell]`."""
        mask = random_mask(
            key, image.shape[0], image.shape[1] // self._patch, self.settings.mask_fraction
        )
        mask = mask[..., None]
        seen = jnp.where(repeat_pixels(mask, self._patch), MEAN, image)
        return seen, repeat_pixels(mask, self._patch // self.cell)[..., 0]

    def _predict(
        self, variables: PyTree, seen: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        output, updated = self.model.apply(
            variables, normalise(seen), train=train, mutable=["batch_stats"]
        )
        return output.astype(jnp.float32), updated["batch_stats"]

    def loss(
        self, variables: PyTree, image: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, PyTree]:
        seen, hidden = self.hide(image, key)
        prediction, batch_stats = self._predict(variables, seen, train=train)
        error = ((prediction - self.target(image)) ** 2).sum(axis=-1)
        return (error * hidden).sum(axis=(1, 2)) / hidden.sum(axis=(1, 2)), batch_stats

    def panels(self, variables: PyTree, image: jax.Array) -> tuple[jax.Array, ...]:
        seen, hidden = self.hide(image, jax.random.key(0))
        prediction, _ = self._predict(variables, seen, train=False)
        target = self.draw(self.target(image))
        times = target.shape[1] // image.shape[1]
        return (
            repeat_pixels(image, times),
            repeat_pixels(seen, times),
            target,
            self.draw(prediction * hidden[..., None]),
        )


class MaskedPixels(Masked):
    """Predicts the pixels of hidden patches, each patch with zero mean and unit variance.

    The loss is 1 for a prediction of zero where a patch has any contrast.
    """

    name = "masked_pixels"
    cell = 1
    features = 1

    def target(self, image: jax.Array) -> jax.Array:
        batch, height, width, _ = image.shape
        side = self._patch
        x = image.reshape(batch, height // side, side, width // side, side, 1)
        mean = x.mean(axis=(2, 4), keepdims=True)
        variance = x.var(axis=(2, 4), keepdims=True)
        return ((x - mean) / jnp.sqrt(variance + 1e-6)).reshape(image.shape)

    def draw(self, values: jax.Array) -> jax.Array:
        return jnp.clip(0.5 + values / 6, 0.0, 1.0)  # Three standard deviations each way.


class MaskedHOG(Masked):
    """Predicts histograms of oriented gradients of hidden patches, 2 x 2 cells in each.

    They describe the direction of edges and ignore brightness and contrast. The loss is 1 for a
    prediction of zero and at least 0.

    Wei et al., "Masked feature prediction for self-supervised visual pre-training", CVPR 2022.
    """

    name = "masked_hog"
    features = 9

    @property
    def cell(self) -> int:
        return self._patch // 2

    def target(self, image: jax.Array) -> jax.Array:
        return hog(image, self.cell, self.features)

    def draw(self, values: jax.Array) -> jax.Array:
        """Each cell as strokes along its edges, as bright as their share of the histogram."""
        times = -(-12 // self.cell)  # Strokes need 12 pixels to be seen.
        strokes = _strokes(times * self.cell, self.features)
        picture = jnp.einsum("bhwf,fyx->bhywx", jnp.maximum(values, 0.0), strokes)
        batch, rows, side, columns, _ = picture.shape
        return jnp.clip(picture.reshape(batch, rows * side, columns * side, 1), 0.0, 1.0)


def hog(image: jax.Array, cell: int, bins: int = 9) -> jax.Array:
    """Histograms of oriented gradients, each of unit length.

    Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005, in
    scikit-image's convention: central differences, zero at the image's border; each pixel votes
    with its gradient's length for one of the bins of its direction, which has no sign.

    Args:
      image: `[B, H, W, 1]`, intensities in [0, 1].
      cell: side of a cell in pixels, which divides height and width.
      bins: of the half circle; the first begins at a gradient along the rows.

    Returns:
      `[B, H / cell, W / cell, bins]`, float32; all zeros where a cell is flat.
    """
    x = image[..., 0].astype(jnp.float32)
    down = jnp.pad(x[:, 2:] - x[:, :-2], ((0, 0), (1, 1), (0, 0)))
    right = jnp.pad(x[:, :, 2:] - x[:, :, :-2], ((0, 0), (0, 0), (1, 1)))
    length = jnp.hypot(down, right)
    # Turned to the half circle before the angle is taken: 180 degrees are exactly 0.
    turn = jnp.where((down < 0) | ((down == 0) & (right < 0)), -1.0, 1.0)
    angle = jnp.arctan2(turn * down, turn * right)
    vote = jnp.minimum(jnp.floor(angle * (bins / jnp.pi)), bins - 1)
    batch, height, width = x.shape
    votes = jax.nn.one_hot(vote.astype(jnp.int32), bins) * length[..., None]
    votes = votes.reshape(batch, height // cell, cell, width // cell, cell, bins)
    histogram = votes.mean(axis=(2, 4))
    norm = jnp.sqrt((histogram**2).sum(axis=-1, keepdims=True) + 1e-10)
    return histogram / norm


def _strokes(side: int, bins: int) -> jax.Array:
    """A stroke for each bin, `[bins, side, side]`: across the middle of its gradients."""
    angle = (jnp.arange(bins) + 0.5) * (jnp.pi / bins)
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    place = jnp.arange(side) - (side - 1) / 2
    y, x = place[None, :, None], place[None, None, :]
    across, along = cos * x + sin * y, cos * y - sin * x
    return jnp.clip(1.2 - jnp.abs(across), 0.0, 1.0) * (jnp.abs(along) < side / 2 - 0.5)
