"""Data parallelism: batches are divided over all devices, everything else is replicated.

The devices may belong to several processes. Each process then reads the rows of a batch that its
own devices compute on, and a computed array is gathered before it is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import UserError
from infantxray.training import processes

PyTree = Any


@functools.cache  # One function for all instances: it is compiled once for each shape.
def _copy_to(sharding: NamedSharding) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


class DataParallel:
    """Where arrays live.

    Attributes:
      replicated: sharding of the training state: a copy on every device.
      batch: sharding of batches: divided along their first axis.
      micro_batches: sharding of `[steps, batch, ...]`, divided along the second axis.
      num_devices: in the mesh, of all processes.
      part: the part of every batch that this process reads.
    """

    def __init__(self, devices: list[jax.Device] | None = None):
        self.devices = devices or jax.devices()
        self.num_devices = len(self.devices)
        self.part = processes.part()
        # The axes must be said to be Auto: the default, Explicit, breaks a vmapped augmentation.
        if self.part.count == 1:
            mesh = jax.make_mesh(
                (self.num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=self.devices
            )
        else:
            if self.num_devices != self.part.count * jax.local_device_count():
                raise UserError("all processes of a run must have the same number of devices")
            # A process reads rows that lie together; `make_mesh` may order devices otherwise.
            ordered = sorted(self.devices, key=lambda device: (device.process_index, device.id))
            mesh = Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch = NamedSharding(mesh, PartitionSpec("data"))
        self.micro_batches = NamedSharding(mesh, PartitionSpec(None, "data"))

    def check_batch_size(self, batch_size: int, accumulate_steps: int = 1) -> None:
        """Raises `UserError` if the devices cannot share a batch evenly."""
        if batch_size % (self.num_devices * accumulate_steps):
            raise UserError(
                f"config.batch_size ({batch_size}) must be a multiple of the {self.num_devices} "
                f"devices times config.accumulate_steps ({accumulate_steps})"
            )

    def evaluation_batch_size(self, batch_size: int) -> int:
        """The smallest size from `batch_size` up that the devices can share."""
        return -(-batch_size // self.num_devices) * self.num_devices

    def put(self, batch: PyTree) -> PyTree:
        """Sends this process's part of a batch to its devices; returns before it has arrived."""
        if self.part.count == 1:
            return jax.device_put(batch, self.batch)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, x), batch)

    def gather(self, outputs: PyTree) -> PyTree:
        """Arrays that are divided like batches -> arrays that every process can read as a whole."""
        return outputs if self.part.count == 1 else _copy_to(self.replicated)(outputs)

    def replicate(self, tree: PyTree) -> PyTree:
        """Arrays, or one key, that all processes have -> the same on all devices of a run."""
        if self.part.count == 1:
            return jax.device_put(tree, self.replicated)
        if jax.dtypes.issubdtype(getattr(tree, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self.replicate(jax.random.key_data(tree)))
        return _copy_to(self.replicated)(jax.device_get(tree))
