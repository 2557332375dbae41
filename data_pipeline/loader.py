"""Records -> batches of uint8 images, through Grain.

A batch is a dictionary:
  image: uint8 `[B, S, S, 1]`.
  label: int32 `[B]`, index of the class, -1 = unknown.
  age_months: float32 `[B]`, NaN = unknown.
  mask: float32 `[B]`, 0 = padding or a file that could not be read.
  findings: float32 `[B, K]`, 1 present, 0 absent, NaN unknown; where an image may have several.
  context: float32 `[B, C]`, see `context.context_matrix`; where sex or view are inputs.
  soft_label: float32 `[B, K]`, only where the images have soft labels.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from data_pipeline import tables
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import DataError, UnreadableImage, UserError
from data_pipeline.manifest import Records

Batch = dict[str, np.ndarray]
_MAX_SUBSTITUTES = 100


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of every batch that one of several processes reads.

    A batch is cut into `count` equal parts; together, in order, they are the batch that one process
    would read. The drawn images and their order do not depend on the number of processes.

    Attributes:
      index: number of the part, from 0.
      count: how many parts there are.
    """

    index: int = 0
    count: int = 1

    def size(self, batch_size: int) -> int:
        """How many images of a batch the part has.

        Raises:
          UserError: the parts would not be equal.
        """
        if batch_size % self.count:
            raise UserError(
                f"config.batch_size ({batch_size}) must be a multiple of the {self.count} processes"
            )
        return batch_size // self.count

    def of(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """The part's rows of a batch, which may be the last one and shorter than `batch_size`."""
        size = self.size(batch_size)
        return rows[self.index * size : (self.index + 1) * size]


WHOLE = Part()


def class_indices(label: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Names `[N]` -> int32 `[N]`, -1 where a name is not among the classes."""
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in label], dtype=np.int32)


class BadFiles:
    """Files that could not be read, with the reason; shared by all threads.

    Attributes:
      constant: images that are of one grey value, such as black. They are used like others.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self.constant: set[str] = set()
        self._lock = threading.Lock()

    def add(self, path: str, reason: str) -> None:
        with self._lock:
            if path not in self._reasons:
                logging.getLogger(__name__).warning("skipped %s: %s", path, reason)
            self._reasons[path] = reason

    def add_constant(self, path: str) -> None:
        with self._lock:
            if not self.constant:
                logging.getLogger(__name__).warning("%s is of one grey value", path)
            self.constant.add(path)

    def __len__(self) -> int:
        return len(self._reasons)

    def write(self, path: str | os.PathLike[str], *, extend: bool = False) -> None:
        """Writes `bad_files.csv`, if there are any.

        Args:
          path: the file.
          extend: keep what it lists, such as files that a run met before it was stopped.
        """
        with self._lock:
            reasons = dict(self._reasons)
        if extend:
            # A list that is not there, or damaged, is no reason to lose the new one.
            with contextlib.suppress(OSError, csv.Error):
                _, earlier = tables.read_csv(path)
                reasons = {row[0]: row[1] for row in earlier if len(row) == 2} | reasons
        rows = sorted(reasons.items())
        if len(self.constant) > 1:
            logging.getLogger(__name__).warning(
                "%d images are of one grey value, such as %s",
                len(self.constant),
                min(self.constant),
            )
        if rows:
            tables.write_csv(path, ("image_path", "reason"), rows)


class ImageSource:
    """Random access to decoded images, for Grain.

    Args:
      records: the images, in order.
      classes: names of the classes; a label that is not among them counts as unknown.
      preprocessing: how a file becomes an image.
      on_error: `"raise"`, or `"skip"`: list the file in `bad_files` and continue.
      substitute: with `"skip"`, put the next readable image in the place of a bad one (training);
        otherwise a black image with mask 0 (evaluation).
      cache: folder of decoded images; used where it fits `preprocessing`.
      memory_mb: MiB; decoded images are kept in memory if all of them fit into this size.
      memory: decoded images by path, shared by sources of one preprocessing; not more than
        `memory_mb` in all.
      bad_files: where unreadable files are listed.
      findings: float32 `[N, K]`, see `labels.FindingNames.matrix`, where an image may have several.
      context: float32 `[N, C]`, see `context.context_matrix`, where sex or view are inputs.

    Attributes:
      labels: int32 `[N]`, -1 = unknown; -1 throughout with `findings`.
      findings, context: None, or those of a batch.
      substitutes: see `substitute`: `records` and `labels` are not those of every image read.
      soft_labels: None, or float32 `[N, K]`, a teacher's probabilities: `soft_label` of a batch.
    """

    def __init__(
        self,
        records: Records,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        on_error: str = "raise",
        substitute: bool = False,
        cache: str = "",
        memory_mb: int = 0,
        memory: dict[str, np.ndarray] | None = None,
        bad_files: BadFiles | None = None,
        findings: np.ndarray | None = None,
        context: np.ndarray | None = None,
    ):
        self.records = records
        self._preprocessing = preprocessing
        self._on_error = on_error
        self.substitutes = substitute
        self.bad_files = bad_files if bad_files is not None else BadFiles()
        self.labels = class_indices(records.label, classes if findings is None else ())
        self.findings, self.context = findings, context
        self.soft_labels: np.ndarray | None = None
        self._cache = None
        if cache:
            from data_pipeline.cache import find_cache

            self._cache = find_cache(cache, preprocessing)
        # Two threads may decode the same image at the same time and store equal arrays: no lock.
        self._memory: dict[str, np.ndarray] | None = None
        self._most_in_memory = (memory_mb << 20) // preprocessing.image_size**2
        if len(records) <= self._most_in_memory:
            self._memory = {} if memory is None else memory

    def __len__(self) -> int:
        return len(self.records)

    @property
    def has_condition(self) -> np.ndarray:
        """Bool `[N]`: the condition, or at least one finding, is known."""
        if self.findings is None:
            return np.asarray(self.labels >= 0)
        return np.asarray(np.isfinite(self.findings).any(1))

    def __repr__(self) -> str:
        return f"ImageSource({len(self)} images, {self._preprocessing})"

    def _read(self, row: int) -> np.ndarray:
        if self._memory is None:
            return self._decode(row)
        path = self.records.image_path[row]
        image = self._memory.get(path)
        if image is None:
            image = self._decode(row)
            if len(self._memory) < self._most_in_memory:
                self._memory[path] = image
        return image

    def _decode(self, row: int) -> np.ndarray:
        path = self.records.image_path[row]
        if self._cache is not None:
            image = self._cache.get(path)
            if image is not None:
                return image
        return load_image(path, self._preprocessing)

    def __getitem__(self, row: int) -> Batch:
        row = int(row)
        attempts = _MAX_SUBSTITUTES if self.substitutes else 1
        for attempt in range(attempts):
            at = (row + attempt) % len(self)
            try:
                return self._example(at, self._read(at), 1.0)
            except UnreadableImage as error:
                if self._on_error == "raise":
                    raise
                self.bad_files.add(error.path, error.reason)
        if self.substitutes:
            raise DataError(
                f"{_MAX_SUBSTITUTES} files in a row could not be read, the last "
                f"{self.records.image_path[at]}; run configs/check_data.py on this data"
            )
        side = self._preprocessing.image_size
        return self._example(row, np.zeros((side, side), np.uint8), 0.0)

    def read_batch(self, rows: np.ndarray) -> Batch:
        """The examples of several rows, stacked; cached images are read together."""
        batch = {
            "image": np.empty((len(rows), *2 * (self._preprocessing.image_size,), 1), np.uint8),
            "label": self.labels[rows],
            "age_months": self.records.age_months[rows],
            "mask": np.ones(len(rows), np.float32),
        }
        batch |= self._truth(rows)
        missing: Iterable[int] = range(len(rows))
        if self._cache is not None and self._memory is None:
            paths = self.records.image_path[rows]
            missing = np.flatnonzero(~self._cache.read_into(paths, batch["image"][..., 0]))
        for i in missing:
            for name, value in self[rows[i]].items():
                batch[name][i] = value
        flat = batch["image"].reshape(len(rows), math.prod(batch["image"].shape[1:]))
        constant = (flat.min(axis=1) == flat.max(axis=1)) & (batch["mask"] > 0)
        for path in self.records.image_path[rows[constant]]:
            self.bad_files.add_constant(path)
        return batch

    def _example(self, row: int, image: np.ndarray, mask: float) -> Batch:
        example = {
            "image": image[..., None],
            "label": self.labels[row],
            "age_months": self.records.age_months[row],
            "mask": np.float32(mask),
        }
        return example | self._truth(row)

    def _truth(self, rows: np.ndarray | int) -> Batch:
        """The further truth of a batch beside the label, if there is any."""
        found = {
            "findings": self.findings,
            "context": self.context,
            "soft_label": self.soft_labels,
        }
        return {name: values[rows] for name, values in found.items() if values is not None}


def training_batches(
    source: ImageSource, batch_size: int, *, seed: int, num_threads: int, part: Part = WHOLE
) -> grain.DatasetIterator:
    """Shuffled batches without end, or a part of each; a new order every epoch.

    The iterator's state is the number of batches drawn, whatever the threads and processes, so a
    run that is stopped and started again sees the same batches.
    """
    part.size(batch_size)
    dataset = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, drop_remainder=True)
        .map(lambda rows: source.read_batch(part.of(rows, batch_size)))
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=8))
    )
    return iter(dataset)


def mixed_batches(
    source: ImageSource,
    batch_size: int,
    *,
    num_labelled: int,
    seed: int,
    num_threads: int,
    part: Part = WHOLE,
) -> grain.DatasetIterator:
    """Shuffled batches without end: labelled images first, then any images.

    Args:
      source: the images, with `soft_labels` if a student learns from them.
      batch_size: images of a batch.
      num_labelled: images of a batch that are drawn from the labelled images; the others are drawn
        from all images.
      seed: seed of both orders.
      num_threads: number of decoding threads.
      part: of each batch, to be read.

    Raises:
      UserError: a batch has no place for both.
    """
    part.size(batch_size)
    if not 0 < num_labelled < batch_size:
        raise UserError(
            f"config.batch_size ({batch_size}) must be at least 2: a batch joins images that have "
            "a condition and others"
        )

    def draw(rows: np.ndarray, size: int) -> grain.MapDataset:
        return grain.MapDataset.source(rows).seed(seed).shuffle().repeat().batch(size)

    labelled = draw(np.flatnonzero(source.has_condition), num_labelled)
    others = draw(np.arange(len(source)), batch_size - num_labelled)

    def read(index: int) -> Batch:
        rows = np.concatenate([labelled[index], others[index]])
        return source.read_batch(part.of(rows, batch_size))

    dataset = (
        grain.MapDataset.range(len(others))
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=8))
    )
    return iter(dataset)


def evaluation_batches(
    source: ImageSource, batch_size: int, *, num_threads: int, part: Part = WHOLE, blocks: int = 1
) -> Iterator[Batch]:
    """All images once, in order, or a part of each batch.

    The last batch is padded with images of mask 0: every process has as many batches of one size.

    Args:
      source: the images.
      batch_size: images of a batch.
      num_threads: number of decoding threads.
      part: of each batch, to be read.
      blocks: number of equal blocks that the part is read in, each by one thread at a time.
    """
    size = part.size(batch_size)
    block = size // blocks
    if size % blocks:
        raise ValueError(f"{size} images cannot be read in {blocks} equal blocks")

    def read(index: int) -> Batch:
        number, within = divmod(index, blocks)
        start = number * batch_size + part.index * size + within * block
        rows = np.arange(start, max(start, min(start + block, len(source))))
        return _pad(source.read_batch(rows), block)

    dataset = (
        grain.MapDataset.range(-(-len(source) // batch_size) * blocks)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=8))
    )
    found = iter(dataset)
    while parts := list(itertools.islice(found, blocks)):
        if blocks == 1:
            yield parts[0]
        else:
            yield {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _pad(batch: Batch, size: int) -> Batch:
    """A batch of `size`, with images of mask 0 at its end."""
    missing = size - len(batch["mask"])
    if not missing:
        return batch
    batch = {
        name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
        for name, value in batch.items()
    }
    batch["label"][-missing:] = -1
    batch["age_months"][-missing:] = np.nan
    if "findings" in batch:
        batch["findings"][-missing:] = np.nan
    return batch
