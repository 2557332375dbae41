"""The loop over evaluation batches: a function applied to every image of a source."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from data_pipeline.loader import ImageSource, evaluation_batches
from infantxray.training.sharding import DataParallel

PyTree = Any

_MOST_ON_A_DEVICE = 64


def map_batches(
    function: Callable[[jax.Array, int], PyTree],
    source: ImageSource,
    *,
    batch_size: int,
    num_threads: int,
) -> Iterator[tuple[PyTree, np.ndarray]]:
    """Applies a jitted function to all images, in order, on all devices of all processes.

    Every device gets equally many images at a time, so the result for an image does not depend on
    the number of devices. The devices compute a batch while the host handles the one before. Memory
    does not grow with the number of images. Each process decodes a part of every batch, and yields
    all outputs.

    Args:
      function: images uint8 `[B, S, S, 1]` on the devices and the row of the first one -> arrays
        `[B, ...]`.
      source: the images.
      batch_size: images at a time on each device, but at most 64: a batch that several devices
        share in training may be too large for one.
      num_threads: number of decoding threads.

    Yields:
      The outputs as NumPy arrays without padding and unreadable images, and the rows of the
      source that they belong to.
    """
    sharding = DataParallel()
    size = min(batch_size, _MOST_ON_A_DEVICE) * sharding.num_devices
    batches = evaluation_batches(
        source,
        size,
        num_threads=num_threads,
        part=sharding.part,
        blocks=sharding.num_devices // sharding.part.count,
    )
    waiting: tuple[PyTree, Any, int] | None = None
    for start, batch in zip(itertools.count(0, size), batches, strict=False):
        outputs = sharding.gather(function(sharding.put(batch["image"]), start))
        mask = batch["mask"]
        if sharding.part.count > 1:
            mask = sharding.gather(sharding.put(mask))
        if waiting is not None:
            yield _without_padding(*waiting)
        waiting = outputs, mask, start
    if waiting is not None:
        yield _without_padding(*waiting)


def _without_padding(outputs: PyTree, mask: Any, start: int) -> tuple[PyTree, np.ndarray]:
    keep = np.flatnonzero(np.asarray(mask) > 0)
    return jax.tree.map(lambda x: np.asarray(x)[keep], jax.device_get(outputs)), start + keep
