"""Bounding boxes of findings, mapped from the stored image to the preprocessed one."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator

import numpy as np

from data_pipeline.decode import PHANTOM_PREFIX, Preprocessing, Radiograph, read_radiograph
from data_pipeline.decode.preprocessing import trim_borders
from data_pipeline.manifest import Box, Records

_log = logging.getLogger(__name__)
# The note of the decoder if it orients an image by its Patient Orientation.
_ORIENTED = re.compile(
    r"patient orientation \S+; (?:turned by (\d+) degrees)?.*to the standard view"
)
_TOLERANCE = 1.01  # Annotations may touch the border, and may count pixels from 1.


def image_boxes(records: Records, row: int, preprocessing: Preprocessing) -> tuple[Box, ...]:
    """Boxes of one image, in whole pixels of the preprocessed image `[S, S]`.

    Boxes of the phantom are computed. Those of other images are mapped as `load_image` maps the
    pixels, which requires reading the file again, because trimmed borders depend on its content.
    Parts outside of the preprocessed image are cut off.

    Args:
      records: the images; `boxes` is in pixels of the stored image.
      row: the image.
      preprocessing: preprocessing of a file to the network's input.

    Returns:
      The boxes. Empty if no box is known, or if boxes are outside of the stored image, because they
      were drawn at another resolution.

    Raises:
      UnreadableImage: the image has boxes and cannot be read.
    """
    path = records.image_path[row]
    if path.startswith(PHANTOM_PREFIX):
        from data_pipeline.phantom import truth

        found = truth(path, preprocessing.image_size).boxes
        return tuple(Box(b.x0, b.y0, b.x1, b.y1, b.label) for b in found)
    if not records.boxes[row]:
        return ()
    radiograph = _read(path, preprocessing)
    height, width = radiograph.header.size
    if any(b.x1 > _TOLERANCE * width or b.y1 > _TOLERANCE * height for b in records.boxes[row]):
        _log.warning("%s: boxes lie outside of the image's %d x %d pixels", path, width, height)
        return ()
    return tuple(_map_boxes(records.boxes[row], radiograph, preprocessing))


def _read(path: str, preprocessing: Preprocessing) -> Radiograph:
    """The pixels that `load_image` resizes."""
    radiograph = read_radiograph(path, min_side=1)
    size = radiograph.header.size
    side = min(preprocessing.shortest_side(*size), *size)
    if min(radiograph.pixels.shape) < side:
        return read_radiograph(path, min_side=side)
    return radiograph


def _map_boxes(
    boxes: tuple[Box, ...], radiograph: Radiograph, preprocessing: Preprocessing
) -> Iterator[Box]:
    stored_height, stored_width = radiograph.header.size
    height, width = radiograph.pixels.shape
    top = left = 0
    if preprocessing.trim_borders:
        pixels = np.ascontiguousarray(radiograph.pixels)
        trimmed = trim_borders(pixels)
        # It is a view of the same memory; its start gives the size of the cut margins.
        begin = trimmed.ctypes.data - pixels.ctypes.data
        top, left = divmod(begin // pixels.itemsize, width)
        height_left, width_left = trimmed.shape
    else:
        height_left, width_left = height, width
    size = preprocessing.image_size
    scale_x, scale_y = size / width_left, size / height_left
    pad_x = pad_y = 0
    if preprocessing.resize == "pad":
        scale = size / max(height_left, width_left)
        inner = max(1, round(width_left * scale)), max(1, round(height_left * scale))
        scale_x, scale_y = inner[0] / width_left, inner[1] / height_left
        pad_x, pad_y = (size - inner[0]) // 2, (size - inner[1]) // 2
    elif preprocessing.resize == "crop":
        side = min(height_left, width_left)
        scale_x = scale_y = size / side
        top, left = top + (height_left - side) // 2, left + (width_left - side) // 2
    for box in boxes:
        ends = np.array([[box.x0 / stored_width, box.y0 / stored_height],
                         [box.x1 / stored_width, box.y1 / stored_height]])  # fmt: skip
        (x0, y0), (x1, y1) = _oriented(ends, radiograph.header.notes) * (width, height)
        x0, x1 = (pad_x + (x - left) * scale_x for x in (x0, x1))
        y0, y1 = (pad_y + (y - top) * scale_y for y in (y0, y1))
        x0, y0 = (max(0, math.floor(end + 1e-6)) for end in (x0, y0))
        x1, y1 = (min(size, math.ceil(end - 1e-6)) for end in (x1, y1))
        if x0 < x1 and y0 < y1:
            yield Box(x0, y0, x1, y1, box.label)


def _oriented(corners: np.ndarray, notes: tuple[str, ...]) -> np.ndarray:
    """Two opposite corners `[2, xy]`, in shares of the image, after the decoder has turned it."""
    for note in notes:
        match = _ORIENTED.search(note)
        if match:
            for _ in range(int(match[1] or 0) // 90):  # Counter-clockwise.
                corners = np.stack([corners[:, 1], 1 - corners[:, 0]], axis=1)
            if "mirrored" in note:
                corners = np.stack([1 - corners[:, 0], corners[:, 1]], axis=1)
    return np.sort(corners, axis=0)
