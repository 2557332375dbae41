"""The loop over evaluation batches: a function applied to every image of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from data_pipeline.loader import ImageSource, evaluation_batches
from infantxray.training.sharding import DataParallel

PyTree = Any


def map_batches(
    function: Callable[[jax.Array, int], PyTree],
    source: ImageSource,
    *,
    batch_size: int,
    num_threads: int,
) -> Iterator[tuple[PyTree, np.ndarray]]:
    """Applies a jitted function to all images, in order, on all devices.

    The devices compute a batch while the host handles the one before. Memory does not grow with the
    number of images.

    Args:
      function: images uint8 `[B, S, S, 1]` on the devices and the batch's number -> arrays
        `[B, ...]`.
      source: the images.
      batch_size: images at a time, rounded up to a multiple of the devices.
      num_threads: that decode.

    Yields:
      The outputs as NumPy arrays without padding and unreadable images, and the rows of the
      source that they belong to.
    """
    sharding = DataParallel()
    size = sharding.evaluation_batch_size(batch_size)
    waiting: tuple[PyTree, np.ndarray, int] | None = None
    for i, batch in enumerate(evaluation_batches(source, size, num_threads=num_threads)):
        outputs = function(jax.device_put(batch["image"], sharding.batch), i)
        if waiting is not None:
            yield _without_padding(*waiting)
        waiting = outputs, batch["mask"], i * size
    if waiting is not None:
        yield _without_padding(*waiting)


def _without_padding(outputs: PyTree, mask: np.ndarray, start: int) -> tuple[PyTree, np.ndarray]:
    keep = np.flatnonzero(mask > 0)
    return jax.tree.map(lambda x: np.asarray(x)[keep], jax.device_get(outputs)), start + keep
