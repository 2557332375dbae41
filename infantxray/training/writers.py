"""TensorBoard files, and the same scalars in `history.jsonl` for the report.

This is the only module that imports TensorFlow (through CLU), and only when a writer is created:
the import takes two seconds and half a gigabyte. Without TensorFlow the same summaries are written
by the tensorboard package alone.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import io
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from data_pipeline import files

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """The part of `clu.metric_writers.MetricWriter` that is used here."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...
    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None: ...
    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...
    def write_hparams(self, hparams: Mapping[str, object]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def create_writer(folder: str) -> Writer:
    """CLU's TensorBoard writer, or, where TensorFlow is not installed, `EventFileWriter`."""
    if importlib.util.find_spec("tensorflow") is None:
        _log.info("TensorFlow is not installed: writing TensorBoard files without it")
        return EventFileWriter(folder)
    # TensorFlow only writes files here: no need to hear how it would compute.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from clu import metric_writers

    return metric_writers.SummaryWriter(folder)


class EventFileWriter:
    """Writes the same TensorBoard summaries as CLU's `SummaryWriter`, without TensorFlow."""

    def __init__(self, folder: str):
        # TensorBoard's own EventFileWriter imports TensorFlow wherever it is installed.
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(folder, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open(os.path.join(folder, name), "wb"))  # noqa: SIM115
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def _add(self, step: int, tag: str, tensor: Any, plugin: str) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        metadata = summary_pb2.SummaryMetadata(
            plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin)
        )
        if plugin == "images":
            metadata.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
        elif plugin == "scalars":
            metadata.data_class = summary_pb2.DATA_CLASS_SCALAR
        else:
            metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
        value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        summary = summary_pb2.Summary(value=[value])
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.util import tensor_util

        for tag, value in scalars.items():
            self._add(step, tag, tensor_util.make_tensor_proto(np.float32(value)), "scalars")

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        from tensorboard.util import tensor_util

        for tag, batch in images.items():
            _, height, width, _ = batch.shape
            encoded = [str(width).encode(), str(height).encode()]
            for image in _to_uint8(batch):
                buffer = io.BytesIO()
                Image.fromarray(image[..., 0]).save(buffer, format="png")
                encoded.append(buffer.getvalue())
            self._add(step, tag, tensor_util.make_tensor_proto(np.array(encoded)), "images")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboard.util import tensor_util

        for tag, text in texts.items():
            self._add(step, tag, tensor_util.make_tensor_proto(text.encode()), "text")

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2

        values = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in hparams.items()}
        proto = summary_v2.hparams_pb(values)
        summary = summary_pb2.Summary()
        summary.ParseFromString(proto.SerializeToString())
        self._write(event_pb2.Event(step=0, summary=summary))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _to_uint8(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(np.asarray(images, np.float32) * 255), 0, 255).astype(np.uint8)


class SilentLog:
    """Logs nothing: the log of all processes but the first."""

    def __call__(self, *_: Any) -> None:
        """As all other methods: does nothing."""

    write_scalars = write_images = write_texts = describe = flush = close = __call__


class ScalarLog:
    """Logs scalars to TensorBoard and to `history.jsonl`.

    A resumed run logs every step once: what a killed run had logged after the checkpoint that it
    resumes from is removed from both.

    Args:
      folder: the workdir.
      step: the step that the run starts from, 0 for a new run.

    TensorBoard's files are opened when the first thing is written to them.
    """

    def __init__(self, folder: str, step: int):
        # A run that starts afresh logs step 0 again.
        last = step or -1
        self._path = os.path.join(folder, "history.jsonl")
        kept = [row for row in read_history(self._path) if row["step"] <= last] if step else []
        with files.replaced(self._path) as file:
            file.writelines(_history_line(row) for row in kept)
        purge_events(folder, last)
        self._folder = folder

    @functools.cached_property
    def _writer(self) -> Writer:
        """Imports TensorFlow, which takes seconds: not before the first update if it can wait."""
        return create_writer(self._folder)

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        if not scalars:
            return
        # JSON has no NaN.
        finite = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_history_line({"step": step} | finite))
        self._writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images `[N, H, W, C]` by their names to TensorBoard."""
        self._writer.write_images(step, images)

    def describe(self, params: Any, description: str) -> None:
        """Writes the table of parameters to TensorBoard, and their number by group to the log."""
        from clu import parameter_overview

        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        texts = {"parameters": f"```\n{table}\n```", "config": f"```\n{description}\n```"}
        self._writer.write_texts(0, texts)
        for name, subtree in params.items():
            count = sum(leaf.size for leaf in jax.tree.leaves(subtree))
            _log.info("%-20s %12s parameters", name, f"{count:,}")

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.flush()
            self._writer.close()


def purge_events(folder: str, step: int) -> None:
    """Removes the events after a step from the TensorBoard files of a folder.

    Args:
      folder: with `events.out.tfevents.*` files. A torn record at the end of one is dropped too.
      step: the last step to keep; -1 removes every file.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "events.out.tfevents.*")))
    if step < 0:
        for path in paths:
            os.remove(path)
        return
    if not paths:
        _log.warning("%s: the events.out.tfevents files of the earlier steps are missing", folder)
    for path in paths:
        kept, dropped, damaged = _read_events(path, step)
        if damaged:
            _log.warning("%s: dropped a damaged end", path)
        if not dropped and not damaged:
            continue
        from tensorboard.summary.writer.record_writer import RecordWriter

        with files.replaced(path, "wb") as file:
            records = RecordWriter(file)
            for record in kept:
                records.write(record)


def _read_events(path: str, step: int) -> tuple[list[bytes], int, bool]:
    """The records up to a step, how many others there are, and whether the file is damaged."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    kept, dropped, size = [], 0, 0
    for record in RawEventFileLoader(path).Load():
        size += len(record) + 16  # Length, its checksum, and the record's.
        if event_pb2.Event.FromString(record).step <= step:
            kept.append(record)
        else:
            dropped += 1
    return kept, dropped, size != os.path.getsize(path)


def _history_line(row: Mapping[str, float | None]) -> str:
    return json.dumps(files.with_checksum(row)) + "\n"


def read_history(path: str) -> list[dict[str, float]]:
    """Reads `history.jsonl`.

    Returns:
      Its rows, `{"step": 20, "train/loss": 0.31}`; none where the file does not exist. Damaged
      lines, such as a torn last one, are skipped.
    """
    if not os.path.exists(path):
        _log.warning("%s is missing: earlier steps have no learning curves", path)
        return []
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = files.without_checksum(json.loads(line))
            except (AttributeError, ValueError):
                row = None
            row = row or {}
            numbers = all(v is None or isinstance(v, int | float) for v in row.values())
            if numbers and isinstance(row.get("step"), int):
                rows.append(row)
            else:
                _log.warning("%s: skipped a damaged line", path)
    return rows
