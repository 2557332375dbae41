"""Preprocessing: trims and resizes an image of any size to the square input of a network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.decode.radiograph import DECODER_CHANGES, DECODER_VERSION, check_size
from data_pipeline.errors import UserError

_log = logging.getLogger(__name__)

RESIZE_MODES = ("pad", "squash", "crop")
_MAX_IMAGE_SIZE = 4096


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square image. Travels with every checkpoint.

    Attributes:
      image_size: S, the side of the image in pixels.
      resize: `"pad"` keeps the whole image and its proportions and fills up with black; `"squash"`
        keeps the whole image and stretches it; `"crop"` keeps the proportions and cuts the longer
        side at both ends.
      trim_borders: cut uniform margins (collimator shadow, scanner frame) before resizing.
    """

    image_size: int
    resize: str = "pad"
    trim_borders: bool = False

    def __post_init__(self) -> None:
        size = self.image_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_IMAGE_SIZE:
            raise UserError(f"image_size is {size!r}; expected 1 to {_MAX_IMAGE_SIZE} pixels")
        if self.resize not in RESIZE_MODES:
            raise UserError(f"resize is {self.resize!r}; expected one of {', '.join(RESIZE_MODES)}")
        if not isinstance(self.trim_borders, bool):
            raise UserError(f"trim_borders is {self.trim_borders!r}; expected True or False")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the version of the decoding code that they were used with."""
        return {**dataclasses.asdict(self), "decoder_version": DECODER_VERSION}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The reverse of `to_dict`.

        Raises:
          UserError: a key is unknown or missing, a value impossible, or the decoder a newer one.
        """
        values = dict(values)
        version = values.pop("decoder_version", DECODER_VERSION)
        if not isinstance(version, int) or not 0 < version <= DECODER_VERSION:
            raise UserError(
                f"preprocessing was written by decoder version {version}, this is version "
                f"{DECODER_VERSION}; use a newer release of this code"
            )
        if version < DECODER_VERSION:
            changes = [DECODER_CHANGES[later] for later in range(version + 1, DECODER_VERSION + 1)]
            _log.warning(
                "preprocessing was written by decoder version %d, this is version %d: these images "
                "come out differently: %s",
                version,
                DECODER_VERSION,
                "; ".join(changes),
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "image_size" not in values:
            problem = f"has the unknown key {unknown[0]!r}" if unknown else "lacks image_size"
            raise UserError(f"preprocessing {problem}; expected {', '.join(sorted(known))}")
        return cls(**values)

    def fingerprint(self) -> str:
        """Hash of all settings and the decoder version, 16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shortest_side(self, height: int, width: int) -> int:
        """Minimum of the shorter side, for decoding `height x width` pixels at reduced scale.

        Twice the resolution of the result, so that the final resize still anti-aliases; more where
        trimming may leave a fifth of the image.
        """
        side = (10 if self.trim_borders else 2) * self.image_size
        if self.resize == "pad":
            return max(1, -(-side * min(height, width) // max(height, width)))
        return side


def to_square(
    pixels: np.ndarray, preprocessing: Preprocessing, dtype: type[np.generic] = np.uint8
) -> np.ndarray:
    """Resizes an image `[H, W]`, uint8 or uint16 at full range, to `[S, S]`, anti-aliased.

    Args:
      pixels: the image.
      preprocessing: the size, and how the image is fitted into it.
      dtype: dtype of the result, uint8 or uint16, again at full range.
    """
    if preprocessing.trim_borders:
        pixels = trim_borders(pixels)
    height, width = pixels.shape
    size = preprocessing.image_size
    inner = (size, size)
    if preprocessing.resize == "pad":
        scale = size / max(height, width)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    elif preprocessing.resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    resized = _resize(pixels, inner, dtype)
    if inner == (size, size):
        return np.array(resized)
    square = np.zeros((size, size), dtype)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    square[top : top + inner[1], left : left + inner[0]] = resized
    return square


def square_pixels(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Enlarges an image `[H, W]` to square pixels from pixels `aspect` times as high as wide.

    Raises:
      Refused: the result has too many pixels.
    """
    height, width = pixels.shape
    if aspect > 1:
        height = round(height * aspect)
    else:
        width = round(width / aspect)
    check_size(height, width)
    return _resize(pixels, (width, height), pixels.dtype)


def _resize(
    pixels: np.ndarray, size: tuple[int, int], dtype: type[np.generic] | np.dtype[Any]
) -> np.ndarray:
    """Resizes to `size`, width and height, and to the full range of `dtype`."""
    if pixels.dtype == np.uint8 and dtype == np.uint8:
        image = Image.fromarray(pixels)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    # Pillow resizes 16 bits without loss in float alone.
    image = Image.fromarray(pixels.astype(np.float32))
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    maximum = np.iinfo(np.dtype(dtype)).max
    scale = np.float32(maximum / np.iinfo(pixels.dtype).max)
    return np.clip(np.rint(resized * scale), 0, maximum).astype(dtype)


def trim_borders(pixels: np.ndarray) -> np.ndarray:
    """Cuts uniform margins of an image `[H, W]`, at most two fifths of it from each side.

    A line is margin while 98 % of it lies within 4 % of the full range of the median of the
    outermost line: marks, dust and compression noise do not stop the cut, anatomy does.
    """
    top, bottom = _margins(pixels)
    left, right = _margins(pixels.T)
    return pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right]


def _margins(pixels: np.ndarray) -> tuple[int, int]:
    """How many lines are margin at the beginning and at the end of `[lines, N]`."""
    tolerance = 0.04 * np.iinfo(pixels.dtype).max
    counts = []
    for lines in (pixels, pixels[::-1]):
        level = float(np.median(lines[0]))
        limit = 2 * len(lines) // 5
        count = 0
        while count < limit:
            near = np.abs(lines[count].astype(np.float32) - level) <= tolerance
            if near.mean() < 0.98:
                break
            count += 1
        counts.append(count)
    return counts[0], counts[1]
