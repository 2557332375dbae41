"""TensorBoard files, and `history.jsonl` beside them for the report.

The one place that imports TensorFlow (through CLU), and only when a writer is made: two seconds
and half a gigabyte that no other part of the program has to pay. Without TensorFlow the same
summaries are written through the tensorboard package alone.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from PIL import Image


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
        logging.getLogger(__name__).info("no TensorFlow: TensorBoard files are written without it")
        return EventFileWriter(folder)
    # TensorFlow only writes files here: no need to hear how it would compute.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from clu import metric_writers

    return metric_writers.SummaryWriter(folder)


class EventFileWriter:
    """Writes the same TensorBoard summaries as CLU's `SummaryWriter`, without TensorFlow."""

    def __init__(self, folder: str):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter as Events

        os.makedirs(folder, exist_ok=True)
        self._events = Events(folder)

    def _add(self, step: int, tag: str, tensor, plugin: str) -> None:
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
        self._events.add_event(
            event_pb2.Event(
                wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[value])
            )
        )

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
        self._events.add_event(event_pb2.Event(step=0, summary=summary))

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _to_uint8(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(np.asarray(images, np.float32) * 255), 0, 255).astype(np.uint8)


class History:
    """Scalars by step as JSON lines, one object a line: `{"step": 20, "train/loss": 0.31}`.

    Args:
      path: the file.
      step: where a resumed run starts: later lines, of a run that was cut off, are removed.
    """

    def __init__(self, path: str, step: int):
        kept = [row for row in read_history(path) if row["step"] <= step]
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._path = path

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        row = {"step": step} | {
            # JSON has no NaN.
            tag: float(value) if math.isfinite(value) else None
            for tag, value in scalars.items()
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_history(path: str) -> list[dict[str, float]]:
    """The rows of `history.jsonl`, none where it does not exist. A torn last line is left out."""
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    rows.append(json.loads(line))
    return rows
