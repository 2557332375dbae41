"""Image decoder: DICOM, PNG, JPEG and TIFF files to greys, or a clear reason for refusal."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from data_pipeline.decode.dicom import read_dicom
from data_pipeline.decode.dicom_file import SNIFF_BYTES, sniff_dicom
from data_pipeline.decode.preprocessing import RESIZE_MODES, Preprocessing, to_square
from data_pipeline.decode.radiograph import (
    DECODER_VERSION,
    Header,
    Radiograph,
    Refused,
    read_file,
)
from data_pipeline.decode.raster import SIGNATURES, read_raster
from data_pipeline.errors import DataError, UnreadableImage

__all__ = [
    "DECODER_VERSION",
    "RESIZE_MODES",
    "Header",
    "Preprocessing",
    "Radiograph",
    "load_image",
    "looks_like_dicom",
    "read_radiograph",
    "to_square",
]

PHANTOM_PREFIX = "phantom:"


def load_image(
    path: str, preprocessing: Preprocessing, dtype: type[np.generic] = np.uint8
) -> np.ndarray:
    """Decodes and preprocesses an image to `[S, S]`, bright = dense.

    Args:
      path: a DICOM, PNG, JPEG or TIFF file, or the address of a phantom image.
      preprocessing: the size, and how the image is fitted into it.
      dtype: uint8, or uint16 at full range.

    Raises:
      UnreadableImage: the file is missing, damaged or not a radiograph.
    """
    if path.startswith(PHANTOM_PREFIX):
        from data_pipeline.phantom import render

        image = render(path, preprocessing.image_size)
        return image if dtype == np.uint8 else image.astype(np.uint16) * np.uint16(257)
    radiograph = _read(path, preprocessing.shortest_side)
    try:
        return to_square(radiograph.pixels, preprocessing, dtype)
    except MemoryError:
        raise UnreadableImage(path, "not enough memory to resize it") from None


def read_radiograph(path: str | os.PathLike[str], *, min_side: int | None = None) -> Radiograph:
    """Decodes an image and its header.

    Args:
      path: a DICOM, PNG, JPEG or TIFF file; the content decides, not the name.
      min_side: allows a reduced scale, where that is faster, at which the shorter side keeps this
        many pixels. None decodes in full.

    Raises:
      UnreadableImage: the file is missing, damaged or not a radiograph.
    """
    return _read(str(path), None if min_side is None else lambda height, width: min_side)


def _read(path: str, shortest_side: Callable[[int, int], int] | None) -> Radiograph:
    try:
        data = read_file(path)
        read = read_dicom if _is_dicom(data) else read_raster
        return read(data, shortest_side)
    except Refused as refusal:
        raise UnreadableImage(path, str(refusal)) from None
    except DataError:  # The package of this store is not installed.
        raise
    except MemoryError:
        raise UnreadableImage(path, "not enough memory to decode it") from None
    except Exception as error:
        # The type alone: a library's message can quote the header, and with it a name.
        reason = f"damaged or not what its format says ({type(error).__name__})"
        raise UnreadableImage(path, reason) from None


_FOREIGN = (
    (0, b"\0\5\x16\7", "an AppleDouble file of macOS"),
    (0, b"\0\5\x16\0", "an AppleSingle file of macOS"),
    (0, b"\0\0\0\x01Bud1", "a .DS_Store file of macOS"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
    (0, b"<", "a web page or XML text, often a failed download"),
    (0, b"GIF8", "a GIF image"),
    (0, b"BM", "a BMP image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"RIFF", "a WebP image, a video or sound"),
    (4, b"ftyp", "a HEIC or AVIF image, or a video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image outside DICOM"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 stream outside DICOM"),
)


def _is_dicom(data: bytes) -> bool:
    """Whether the content is DICOM rather than PNG, JPEG or TIFF.

    Raises:
      Refused: it is neither; the message names its kind, if known.
    """
    if data.startswith(SIGNATURES):
        return False
    if data[128:132] == b"DICM":
        return True
    for at, signature, name in _FOREIGN:
        if data.startswith(signature, at):
            raise Refused(f"not a radiograph but {name}")
    if sniff_dicom(data[:SNIFF_BYTES]):
        return True
    raise Refused("neither DICOM, PNG, JPEG nor TIFF")


def looks_like_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is DICOM by its first bytes, with or without preamble, whatever its name.

    Reads one kilobyte. A file that cannot be read is not DICOM.
    """
    try:
        return sniff_dicom(read_file(path, SNIFF_BYTES))
    except Refused:
        return False
