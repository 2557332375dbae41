"""Set-up of JAX: devices, the cache of compiled programs, and CPU memory."""

from __future__ import annotations

import logging
import os
import sys
from importlib import metadata
from typing import Any

import jax

from data_pipeline.errors import UserError
from data_pipeline.files import user_cache
from infantxray.runs import cpu_memory, native_messages
from infantxray.training import processes

_log = logging.getLogger(__name__)

# Commands that several processes can share.
SHARED_TASKS = ("pretrain", "finetune", "evaluate", "predict", "probe")
_WAIT_SECONDS = 300
_HEARTBEAT_SECONDS = 15  # The others of a dead process end after about as long.


def setup() -> None:
    """Logs the devices, and keeps compiled programs on disk so that the next start is quick.

    Raises:
      UserError: JAX finds no device, or none of `JAX_PLATFORMS`.
    """
    jax_config: Any = jax.config
    if not jax_config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "xla"))
        # All programs, the small ones too: parameters are drawn by dozens of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax_config.jax_platforms == "cpu" or not metadata.entry_points(group="jax_plugins"):
        cpu_memory.keep_freed_memory()  # Before JAX starts its threads.
    devices = _devices()
    _log.info("%d x %s", len(devices), devices[0].device_kind)


def _devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a plugin is installed.
        asked = getattr(jax.config, "jax_platforms", None)
        if not asked:
            raise UserError(f"JAX finds no device: {error}") from None
        raise UserError(
            f"JAX_PLATFORMS={asked}, but JAX finds no such device; unset it to use what there is, "
            "or install the JAX build for this device (docs/getting_started.md)"
        ) from error


def join(
    task: str,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of a run, where there are any; call it before JAX is used.

    Args:
      task: name of the command.
      coordinator_address: `host:port` of process 0; `"auto"` = JAX gets all three values from a
        Cloud TPU; None = from Slurm, Open MPI or GKE (TPU), if one of them started the program.
      num_processes: of the run; 1 = a single process in any case.
      process_id: of this one.

    Raises:
      UserError: the command does not run in several processes, some flags are missing, or the other
        processes do not connect.
    """
    flags = (coordinator_address, num_processes, process_id)
    if num_processes == 1 or (flags == (None, None, None) and not _launched_with_others()):
        return
    if task not in SHARED_TASKS:
        if flags == (None, None, None):
            return
        raise UserError(
            f"{task} runs in one process; those that several share are {', '.join(SHARED_TASKS)}"
        )
    if coordinator_address == "auto":
        coordinator_address = None
    elif None in flags and flags != (None, None, None):
        raise UserError("give --coordinator_address, --num_processes and --process_id together")
    native_messages.filter_stderr()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=_WAIT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run did not meet: {error}") from error
    if not processes.is_main():
        for name in ("infantxray", "data_pipeline"):
            logging.getLogger(name).setLevel(logging.WARNING)
    _log.info("%d processes share this run", processes.count())


def _launched_with_others() -> bool:
    """Whether the launcher of this program states that it started several processes.

    The runs of a study are single processes, however the study was started.
    """
    value = os.environ.get
    return not value("INFANTXRAY_ALONE") and (
        int(value("SLURM_STEP_NUM_TASKS") or 1) > 1  # 1 in a batch script, outside of srun.
        or int(value("OMPI_COMM_WORLD_SIZE") or 1) > 1
        or "," in value("TPU_WORKER_HOSTNAMES", "")
        or "," in value("TPU_PROCESS_ADDRESSES", "")
    )


def leave() -> None:
    """Waits at the end of a command until process 0 has written its report."""
    if processes.count() > 1:
        processes.wait_for_all()
        jax.distributed.shutdown()


def abandon(status: int) -> None:
    """Ends one of several processes at once after an error, so that the others notice."""
    if status and processes.count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # An orderly end would wait for the others.
