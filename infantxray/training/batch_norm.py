"""BatchNorm statistics of training images as they are, without augmentation.

The running statistics of training are those of augmented images; images at inference are not
augmented, and their maps are distributed in another way. So the statistics are computed again, as
means over batches of training images ("precise BatchNorm": Wu and Johnson, Rethinking "Batch" in
BatchNorm, 2021, https://arxiv.org/abs/2105.07576, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import Batch, ImageSource, evaluation_batches
from infantxray.models.encoders.layers import MOMENTUM
from infantxray.training.sharding import DataParallel

PyTree = Any


class PreciseStatistics:
    """Computes the statistics for given parameters.

    Args:
      forward: params, batch_stats and a batch of the loader -> the batch_stats that a training
        step without augmentation leaves.
      source: training images, which need no labels. Those beyond whole batches are left out; fewer
        than one batch are repeated to fill it.
      batch_size: images at a time, as in training.
      num_threads: number of decoding threads.
    """

    def __init__(
        self,
        forward: Callable[[PyTree, PyTree, Mapping[str, jax.Array]], PyTree],
        source: ImageSource,
        *,
        batch_size: int,
        num_threads: int,
    ):
        self._source, self._num_threads = source, num_threads
        self._sharding = DataParallel()
        self._size = self._sharding.evaluation_batch_size(batch_size)

        def add(total: PyTree, params: PyTree, batch: Mapping[str, jax.Array]) -> PyTree:
            # From statistics of zero a step leaves the share 1 - MOMENTUM of those of the batch.
            found = forward(params, jax.tree.map(jnp.zeros_like, total), batch)
            return jax.tree.map(lambda t, f: t + f / (1 - MOMENTUM), total, found)

        replicated = self._sharding.replicated
        self._add = jax.jit(
            add,
            in_shardings=(replicated, replicated, self._sharding.batch),
            out_shardings=replicated,
        )

    def __call__(self, variables: PyTree) -> PyTree:
        """`batch_stats` for the parameters of `variables`; its own where there is no image."""
        stats, images = variables["batch_stats"], len(self._source)
        if not images or not jax.tree.leaves(stats):
            return stats
        total = self._sharding.replicate(jax.tree.map(np.zeros_like, jax.device_get(stats)))
        number = max(images // self._size, 1)
        for _, batch in zip(range(number), self._batches(), strict=False):
            total = self._add(total, variables["params"], self._sharding.put(batch))
        return jax.tree.map(lambda t: t / number, total)

    def _batches(self) -> Iterator[Batch]:
        part = self._sharding.part
        if len(self._source) < self._size:
            rows = np.resize(np.arange(len(self._source)), self._size)
            return iter([self._source.read_batch(part.of(rows, self._size))])
        return evaluation_batches(
            self._source, self._size, num_threads=self._num_threads, part=part
        )
