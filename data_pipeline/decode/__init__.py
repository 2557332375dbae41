"""One file on disk -> one correct grey image, or one clear refusal."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import numpy as np

from data_pipeline.decode.dicom import read_dicom
from data_pipeline.decode.preprocessing import RESIZE_MODES, Preprocessing, to_square
from data_pipeline.decode.radiograph import (
    DECODER_VERSION,
    MAX_FILE_BYTES,
    Header,
    Radiograph,
    Refused,
)
from data_pipeline.decode.raster import read_raster
from data_pipeline.errors import UnreadableImage

__all__ = [
    "DECODER_VERSION",
    "RESIZE_MODES",
    "Header",
    "Preprocessing",
    "Radiograph",
    "load_image",
    "read_radiograph",
    "to_square",
]

PHANTOM_PREFIX = "phantom:"


def load_image(path: str, preprocessing: Preprocessing, dtype: type = np.uint8) -> np.ndarray:
    """An image as the network takes it: `[S, S]`, bright = dense.

    Args:
      path: a DICOM, PNG, JPEG or TIFF file, or the address of a phantom image.
      preprocessing: the size, and how the image is fitted into it.
      dtype: uint8, or uint16 at full range.

    Raises:
      UnreadableImage: the file is missing, damaged or no radiograph. Nothing else.
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


def read_radiograph(path: str | os.PathLike, *, min_side: int | None = None) -> Radiograph:
    """An image and what its header says.

    Args:
      path: a DICOM, PNG, JPEG or TIFF file; the content decides, not the name.
      min_side: decode at a reduced scale where that is faster, as long as the shorter side keeps
        this many pixels. None decodes in full.

    Raises:
      UnreadableImage: the file is missing, damaged or no radiograph.
    """
    return _read(str(path), None if min_side is None else lambda height, width: min_side)


def _read(path: str, shortest_side: Callable[[int, int], int] | None) -> Radiograph:
    try:
        data = _content(path)
        read = read_dicom if _is_dicom(data) else read_raster
        return read(data, shortest_side)
    except Refused as refusal:
        raise UnreadableImage(path, str(refusal)) from None
    except MemoryError:
        raise UnreadableImage(path, "not enough memory to decode it") from None
    except Exception as error:
        # The type alone: a library's message can quote the header, and with it a name.
        reason = f"damaged or not what its format says ({type(error).__name__})"
        raise UnreadableImage(path, reason) from None


def _content(path: str) -> bytes:
    """The bytes of a regular file of sensible size.

    Raises:
      Refused: it is none, or cannot be opened.
    """
    try:
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Refused("not a regular file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise Refused(f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB")
            data = file.read()
    except FileNotFoundError:
        raise Refused("the file does not exist") from None
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise Refused("the file is empty")
    return data


_RASTER = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
    (b"<", "a web page or XML text, often a failed download"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"%PDF", "a PDF document"),
    (b"\0\0\0\x0cjP  ", "a bare JPEG 2000 image"),
)
# Old archives keep DICOM without preamble: it starts with a low group, little or big endian.
_BARE_DICOM = (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08")


def _is_dicom(data: bytes) -> bool:
    """Whether the content is DICOM rather than PNG, JPEG or TIFF.

    Raises:
      Refused: it is none of them; what it is, if known.
    """
    if data.startswith(_RASTER):
        return False
    if data[128:132] == b"DICM":
        return True
    for signature, name in _FOREIGN:
        if data.startswith(signature):
            raise Refused(f"not a radiograph but {name}")
    if data.startswith(_BARE_DICOM):
        return True
    raise Refused("neither DICOM, PNG, JPEG nor TIFF")
