"""`prepare`: decode every image of a data set once, in parallel, into a cache."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.cache import path_keys, read_keys, to_decode
from data_pipeline.cache_writing import create_folder, sweep, write_shard
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UserError
from data_pipeline.extras import install_line
from data_pipeline.processes import WorkerPool, child_environment
from data_pipeline.sources import open_sources
from data_pipeline.tables import write_csv
from infantxray.training.stopping import StopOnSignal

_log = logging.getLogger(__name__)
_IMAGES_PER_SHARD = 512
_MAX_SHARDS = 500  # Every shard is an open file for the reader.

Result = tuple[int, list[tuple[str, str]]]
Submit = Callable[..., Future[Result]]
Workers = tuple[Submit, int, StopOnSignal]  # How many calls to submit at a time; when to stop.


def run(config: Any, workdir: str) -> None:
    """Fills the cache in `workdir` with the images of `config.data`.

    Several processes, also on several machines, may fill the same folder at the same time.

    Raises:
      UserError: a setting cannot be meant, Ray is asked for and not installed, or a signal came.
      DataError: images could not be read, and `data.on_error` is `"raise"`.
    """
    if config.bits not in (8, 16):
        raise UserError(f"config.bits is {config.bits}; it must be 8 or 16")
    settings = config.data
    how = Preprocessing(settings.image_size, settings.resize, settings.trim_borders)
    dtype = f"uint{config.bits}"
    named = (settings.train, settings.validation, settings.test)
    records = open_sources(",".join(filter(None, named)))
    paths = np.array(list(dict.fromkeys(records.image_path)), dtype=object)
    folder = create_folder(workdir, how, np.dtype(dtype).type)
    sweep(folder)
    seen: set[str] = set()
    todo = to_decode(folder, paths, seen)
    _log.info("%s images, %s of them to decode", f"{len(paths):,}", f"{len(todo):,}")
    processes = config.num_processes or os.cpu_count() or 1
    size = config.images_per_shard or max(_IMAGES_PER_SHARD, -(-len(todo) // _MAX_SHARDS))
    # Few images: at least four shards for every process.
    size = min(size, max(1, -(-len(todo) // (4 * processes))))
    chunks = [todo[at : at + size] for at in range(0, len(todo), size)]
    # Machines that fill the same folder begin at different places.
    random.shuffle(chunks)
    bad: list[tuple[str, str]] = []
    workers = (
        _ray_workers(config.ray_address)
        if chunks and config.ray_address
        else _local_workers(max(1, min(processes, len(chunks))))
    )
    try:
        with (
            tqdm(total=len(todo), unit="image", desc="decoding", disable=not chunks) as progress,
            workers as (submit, slots, stop),
        ):
            for done, unreadable in _run(chunks, folder, seen, submit, (how, dtype), slots, stop):
                bad += unreadable
                progress.update(done + len(unreadable))
    finally:
        sweep(folder)
    if stop.requested:
        raise UserError(
            f"stopped with {progress.n:,} of {len(todo):,} images decoded; the same command resumes"
        )
    _report(workdir, len(paths), bad, settings.on_error)


def _run(
    chunks: list[np.ndarray],
    folder: Path,
    seen: set[str],
    submit: Submit,
    arguments: tuple[Preprocessing, str],
    slots: int,
    stop: StopOnSignal,
) -> Iterator[Result]:
    """Yields how many images a shard holds, and `(path, reason)` of its unreadable files.

    An image that another process has finished meanwhile counts as done.
    """
    elsewhere: set[int] = set()
    running: set[Future[Result]] = set()
    waiting = list(chunks)
    while waiting or running:
        while waiting and len(running) < slots and not stop.requested:
            chunk = waiting.pop()
            for _, keys in read_keys(folder, seen):
                elsewhere.update(keys["key"].tolist())
            left = [p for p, k in zip(chunk, path_keys(chunk), strict=True) if k not in elsewhere]
            if len(left) < len(chunk):
                yield len(chunk) - len(left), []
            if left:
                running.add(submit(write_shard, folder, left, *arguments))
        if stop.requested:
            waiting = []
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


@contextlib.contextmanager
def _local_workers(processes: int) -> Iterator[Workers]:
    with WorkerPool(processes) as pool, StopOnSignal(pool.stop) as stop:
        try:
            yield pool.submit, 2 * processes, stop
        except BrokenProcessPool:
            if not stop.requested:
                raise UserError(
                    "a decoding process was killed, most often because memory ran out; the same "
                    "command resumes, perhaps with a smaller --config.num_processes"
                ) from None
        except BaseException:
            pool.stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _ray_workers(address: str) -> Iterator[Workers]:
    try:
        import ray
    except ImportError:
        raise UserError(
            f"config.ray_address needs Ray: {install_line('ray')}; leave the setting empty to use "
            "this machine alone"
        ) from None
    ray.init(address=address, runtime_env={"env_vars": child_environment({})}, log_to_driver=False)
    try:
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with StopOnSignal() as stop:
            yield lambda task, *a: ray.remote(task).remote(*a).future(), 2 * processors, stop
    finally:
        ray.shutdown()


def _report(workdir: str, total: int, bad: Sequence[tuple[str, str]], on_error: str) -> None:
    listed = os.path.join(workdir, "bad_files.csv")
    if not bad:
        if os.path.exists(listed):
            os.remove(listed)  # Of an earlier run; the images have been corrected since.
        _log.info("%s images ready: --config.data.cache=%s", f"{total:,}", workdir)
        return
    write_csv(listed, ("image_path", "reason"), sorted(bad))
    if on_error == "raise":
        raise DataError(
            f"{len(bad):,} of {total:,} images could not be read, listed in {listed}; correct or "
            "remove them, or set config.data.on_error=skip (the others are decoded and kept)"
        )
    _log.warning("%d of %s images could not be read, listed in %s", len(bad), f"{total:,}", listed)
    _log.info("%s images ready: --config.data.cache=%s", f"{total - len(bad):,}", workdir)
