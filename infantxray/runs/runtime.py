"""Set-up of JAX: devices, the cache of compiled programs, and CPU memory."""

from __future__ import annotations

import logging
import os
from importlib import metadata
from typing import Any

import jax

from infantxray.runs import cpu_memory

_log = logging.getLogger(__name__)


def setup() -> None:
    """Logs the devices, and keeps compiled programs on disk so that the next start is quick."""
    jax_config: Any = jax.config
    if not jax_config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "infantxray", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if jax_config.jax_platforms == "cpu" or not metadata.entry_points(group="jax_plugins"):
        cpu_memory.keep_freed_memory()  # Before JAX starts its threads.
    devices = jax.devices()
    _log.info("%d x %s", len(devices), devices[0].device_kind)
