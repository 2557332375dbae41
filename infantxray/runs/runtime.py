"""What every task does first, and the length of a run."""

from __future__ import annotations

import logging
import math
import os
from importlib import metadata

import jax

from infantxray.runs import cpu_memory

_log = logging.getLogger(__name__)


def setup() -> None:
    """Names the devices and keeps compiled programs on disk, so that a second start is quick."""
    if not jax.config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "infantxray", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if jax.config.jax_platforms == "cpu" or not metadata.entry_points(group="jax_plugins"):
        cpu_memory.keep_freed_memory()  # Before JAX starts its threads.
    devices = jax.devices()
    _log.info("%d x %s", len(devices), devices[0].device_kind)


def total_steps(config, num_images: int) -> int:
    """`train_steps`, or as many as `train_epochs` passes over the training images take."""
    steps = config.train_steps or math.ceil(config.train_epochs * num_images / config.batch_size)
    _log.info(
        "%d steps of %d images: %.2f epochs of %d images",
        steps,
        config.batch_size,
        steps * config.batch_size / num_images,
        num_images,
    )
    return steps
