"""Data parallelism: batches are divided over all devices, everything else is replicated."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data_pipeline.errors import UserError


class DataParallel:
    """Where arrays live.

    Attributes:
      replicated: sharding of the training state: a copy on every device.
      batch: sharding of batches: divided along their first axis.
      micro_batches: sharding of `[steps, batch, ...]`, divided along the second axis.
      num_devices: in the mesh.
    """

    def __init__(self, devices: list[jax.Device] | None = None):
        self.devices = devices or jax.devices()
        self.num_devices = len(self.devices)
        # The axes must be said to be Auto: the default, Explicit, breaks a vmapped augmentation.
        mesh = jax.make_mesh(
            (self.num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=self.devices
        )
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

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Sends a batch to the devices; returns before it has arrived."""
        return jax.device_put(batch, self.batch)
