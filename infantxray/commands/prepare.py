"""Decodes every image of a data set once, in parallel, into a cache."""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline import dataset as data
from data_pipeline.cache import cached_keys, create_folder, path_keys, write_shard
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UserError
from data_pipeline.sources import open_sources

_log = logging.getLogger(__name__)
_FILMS_A_SHARD = 512  # A stop loses less than a shard a process,
_MAX_SHARDS = 500  # and every shard is an open file for the reader.
_RAY = "ray==2.60.0"

Result = tuple[int, list[tuple[str, str]]]


def run(config, workdir: str) -> None:
    """Fills the cache in `workdir` with the images of `config.data`.

    Raises:
      UserError: a setting cannot be meant, or Ray is asked for and not installed.
      DataError: images could not be read, and `data.on_error` is `"raise"`.
    """
    if config.bits not in (8, 16):
        raise UserError(f"config.bits is {config.bits}; it must be 8 or 16")
    how = data.preprocessing(config.data)
    dtype = f"uint{config.bits}"
    named = (config.data.train, config.data.validation, config.data.test)
    records = open_sources(",".join(filter(None, named)))
    paths = np.array(list(dict.fromkeys(records.image_path)), dtype=object)
    folder = create_folder(workdir, how, np.dtype(dtype).type)
    todo = paths[~np.isin(path_keys(paths), cached_keys(folder))]
    _log.info("%s images, %s of them to decode", f"{len(paths):,}", f"{len(todo):,}")
    size = max(_FILMS_A_SHARD, -(-len(todo) // _MAX_SHARDS))
    processes = config.num_processes or os.cpu_count() or 1
    # Few images: still something to do for every process.
    size = min(size, max(1, -(-len(todo) // (4 * processes))))
    shards = [list(todo[at : at + size]) for at in range(0, len(todo), size)]
    on_cluster = bool(config.ray_address)
    results = (
        _on_ray(shards, folder, how, dtype, config.ray_address)
        if on_cluster
        else _on_this_machine(shards, folder, how, dtype, processes)
    )
    bad: list[tuple[str, str]] = []
    with tqdm(total=len(todo), unit="image", desc="decoding", disable=not len(todo)) as progress:
        for written, unreadable in results:
            bad += unreadable
            progress.update(written + len(unreadable))
    _report(config, workdir, len(paths), bad)


def _on_this_machine(
    shards: list[list[str]], folder: Path, how: Preprocessing, dtype: str, processes: int
) -> Iterator[Result]:
    if not shards:
        return
    # Not forked: JAX and Grain keep threads, which a fork would leave without their locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(shards)), mp_context=context) as pool:
        futures = [pool.submit(write_shard, folder, shard, how, dtype) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a decoding process was killed, most often because memory ran out; run the same "
                "command again with a smaller --config.num_processes, it goes on where it stopped"
            ) from None
        finally:
            for future in futures:
                future.cancel()


def _on_ray(
    shards: list[list[str]], folder: Path, how: Preprocessing, dtype: str, address: str
) -> Iterator[Result]:
    try:
        import ray
    except ImportError:
        raise UserError(
            f"config.ray_address needs Ray: pip install {_RAY}; one machine needs none, leave the "
            "setting empty"
        ) from None
    root = str(Path(__file__).resolve().parents[2])
    environment = {"env_vars": {"PYTHONPATH": root}}
    ray.init(address=address, runtime_env=environment, log_to_driver=False)
    try:
        task = ray.remote(write_shard)
        pending = [task.remote(folder, shard, how, dtype) for shard in shards]
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    finally:
        ray.shutdown()


def _report(config, workdir: str, total: int, bad: list[tuple[str, str]]) -> None:
    listed = os.path.join(workdir, "bad_files.csv")
    if not bad:
        if os.path.exists(listed):
            os.remove(listed)  # Of an earlier run; the images have been mended since.
        _log.info("%s images ready: --config.data.cache=%s", f"{total:,}", workdir)
        return
    with open(listed, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("image_path", "reason"), *sorted(bad)])
    if config.data.on_error == "raise":
        raise DataError(
            f"{len(bad):,} of {total:,} images could not be read, listed in {listed}; mend or "
            "remove them, or set config.data.on_error=skip (the others are decoded and kept)"
        )
    _log.warning("%d of %s images could not be read, listed in %s", len(bad), f"{total:,}", listed)
    _log.info("%s images ready: --config.data.cache=%s", f"{total - len(bad):,}", workdir)
