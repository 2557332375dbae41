"""Features of a frozen encoder: pooled last maps of many images."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.training import augment
from infantxray.training.augment import Augmentation
from infantxray.training.batches import map_batches
from infantxray.training.waiting import waiting

PyTree = Any
FeatureFunction = Callable[[PyTree, jax.Array, jax.Array], jax.Array]

_PIXELS_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the images that could be read.

    Attributes:
      values: `[N, C]`, such as pooled last maps.
      label: int `[N]`, -1 unknown.
      rows: `[N]`, rows of the source.
      records: of the images.
      findings: `[N, K]`, see `ImageSource`, where an image may have several.
    """

    values: np.ndarray
    label: np.ndarray
    rows: np.ndarray
    records: Records
    findings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Features:
        """Some of the images, by integer index or boolean mask."""
        return Features(
            self.values[rows],
            self.label[rows],
            self.rows[rows],
            self.records.take(rows),
            None if self.findings is None else self.findings[rows],
        )

    @classmethod
    def concatenate(cls, parts: list[Features]) -> Features:
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.rows for part in parts]),
            Records.concatenate([part.records for part in parts]),
            None
            if parts[0].findings is None
            else np.concatenate([part.findings for part in parts if part.findings is not None]),
        )


def encoder_variables(variables: PyTree) -> PyTree:
    """The encoder's part of a model's variables. VGG19 has no `batch_stats`."""
    return {name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree}


def pooled_map(
    encoder: Any,
    *,
    mean: float = augment.MEAN,
    std: float = augment.STD,
    changes: Augmentation | None = None,
) -> FeatureFunction:
    """The function from images to means of an encoder's last map.

    Args:
      encoder: see `infantxray.models.create_encoder`.
      mean, std: the input scale of its weights.
      changes: augmentation of the images; None = the images as they are.

    Returns:
      A function of the encoder's variables, images uint8 `[B, S, S, 1]` and keys `[B]`, to
      features float32 `[B, C]`.
    """

    def pooled(variables: PyTree, image: jax.Array, keys: jax.Array) -> jax.Array:
        x = augment.to_intensity(image)
        if changes is not None:
            x = augment.augment(x, keys, changes)
        maps = encoder.apply(variables, augment.normalise(x, mean, std), train=False)
        return maps[-1].mean(axis=(1, 2)).astype(jnp.float32)

    return pooled


def pixels(variables: PyTree, image: jax.Array, keys: jax.Array) -> jax.Array:
    """Means of 32 x 32 squares: images `[B, S, S, 1]` -> `[B, 1024]`, float32."""
    del variables, keys  # There are no parameters and no random numbers.
    batch, side = image.shape[:2]
    times = side // _PIXELS_SIDE
    x = image.reshape(batch, _PIXELS_SIDE, times, _PIXELS_SIDE, times).astype("float32")
    return x.mean(axis=(2, 4)).reshape(batch, -1)


def read_features(path: str, source: ImageSource) -> Features:
    """Reads features of the images of a source that another program computed.

    Args:
      path: an npz file with `image_path` `[M]` and `values` `[M, C]`. Paths are those of the
        manifest, or relative to the file.
      source: the images. Each needs a vector; those of other images are not used.

    Raises:
      DataError: the file cannot be read, names an image twice, or lacks a finite vector for one.
    """
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array")
            names, values = file["image_path"].astype(str), file["values"].astype(np.float32)
        if values.ndim != 2 or len(values) != len(names):
            raise ValueError(f"{len(names)} paths and values of shape {values.shape}")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it must be an npz file with the arrays image_path "
            "(text, one an image) and values (numbers, a row an image)"
        ) from None
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names.tolist()).items() if count > 1)
        raise DataError(f"{path} has several vectors of {twice}; keep one")
    folder = os.path.dirname(os.path.abspath(path))
    row_of = {os.path.normpath(os.path.join(folder, name)): i for i, name in enumerate(names)}
    row_of |= {name: i for i, name in enumerate(names)}
    found = [row_of.get(name, -1) for name in source.records.image_path]
    missing = [i for i, row in enumerate(found) if row < 0 or not np.isfinite(values[row]).all()]
    if missing:
        raise DataError(
            f"{path} has no finite vector of {len(missing):,} of {len(found):,} images, such as "
            f"{source.records.image_path[missing[0]]}"
        )
    rows = np.arange(len(found))
    return Features(values[found], source.labels, rows, source.records, source.findings)


class Extractor:
    """Computes features of many images, on all devices.

    Args:
      function: function from variables, images uint8 `[B, S, S, 1]` and keys `[B]` to features
        `[B, C]`.
      batch_size: images at a time on each device.
      num_threads: number of decoding threads.
    """

    def __init__(self, function: FeatureFunction, *, batch_size: int, num_threads: int):
        self._function = jax.jit(
            lambda variables, image, key, start: function(
                variables, image, augment.example_keys(key, len(image), start)
            )
        )
        self._batch_size, self._num_threads = batch_size, num_threads

    def __call__(self, source: ImageSource, variables: PyTree = None, seed: int = 0) -> Features:
        """The features of the readable images of a source.

        Args:
          source: the images.
          variables: the first argument of the function.
          seed: seed of the augmentation.

        Raises:
          ValueError: the source puts other images in the place of unreadable ones.
        """
        if source.substitutes:
            raise ValueError(
                "features would be those of other images than the labels: open the source without "
                "substitutes (training=False)"
            )
        key = jax.random.key(seed)
        values: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        batches = map_batches(
            lambda image, start: self._function(variables, image, key, start),
            source,
            batch_size=self._batch_size,
            num_threads=self._num_threads,
        )
        with waiting(lambda: f"features of {sum(map(len, rows)):,} of {len(source):,} images"):
            for part, kept in batches:
                values.append(part)
                rows.append(kept)
        kept = np.concatenate(rows) if rows else np.zeros(0, int)
        return Features(
            np.concatenate(values) if values else np.zeros((0, 0), np.float32),
            source.labels[kept],
            kept,
            source.records.take(kept),
            None if source.findings is None else source.findings[kept],
        )
