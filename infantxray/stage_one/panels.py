"""Panels: pictures of the input, target and prediction of an objective, during training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from data_pipeline.files import replaced
from data_pipeline.loader import ImageSource
from infantxray.training import processes
from infantxray.training.augment import to_intensity
from infantxray.training.hooks import Moment
from infantxray.training.waiting import waiting

_IMAGES = 8


class Panels:
    """A hook that draws the panels of the same few validation images each time.

    Args:
      draw: variables and images `[B, H, W, 1]` -> pictures of one size.
      names: names of the pictures.
      source: images to choose from, evenly over their order.
      workdir: the picture also goes to `figures/panels.png` in it.
      every_steps: interval.
    """

    def __init__(
        self,
        draw: Callable[[Any, jax.Array], tuple[jax.Array, ...]],
        names: tuple[str, ...],
        source: ImageSource,
        workdir: str,
        every_steps: int,
    ):
        rows = np.unique(np.linspace(0, len(source) - 1, _IMAGES).astype(int))
        self._images = np.stack([source[row]["image"] for row in rows])
        self._panels = jax.jit(draw)
        self._tag = "panels/" + "_".join(names)
        self._path = os.path.join(workdir, "figures", "panels.png")
        self._every_steps = every_steps
        os.makedirs(os.path.dirname(self._path), exist_ok=True)

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        if moment.every(self._every_steps):
            with waiting("panels"):
                moment.write_images(moment.step, self.draw(moment.state.eval_variables))
        return {}

    def draw(self, variables: Any) -> dict[str, np.ndarray]:
        """One picture for TensorBoard, `[1, H, W, 1]`: a column an image, a row a panel."""
        panels = self._panels(variables, to_intensity(jax.numpy.asarray(self._images)))
        rows = [np.concatenate(list(np.asarray(p)), axis=1) for p in panels]
        picture = np.concatenate(rows, axis=0)
        if not processes.is_main():
            return {self._tag: picture[None]}
        with replaced(self._path, "wb") as file:
            grey = np.rint(picture[..., 0] * 255).astype(np.uint8)
            Image.fromarray(grey).save(file, format="png")
        return {self._tag: picture[None]}
