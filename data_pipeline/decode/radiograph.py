"""Decoded image, its header, the limits of its size, and the exception for a refused file."""

from __future__ import annotations

import dataclasses
import math
import os
import stat

import numpy as np

from data_pipeline import remote

# Increased whenever a change alters pixels; caches and checkpoints carry it. Each version is listed
# with the images that came out differently before it.
DECODER_VERSION = 3
DECODER_CHANGES = {
    2: "PNG and TIFF of 16 bits, and DICOM with pixels that are not square",
    3: "DICOM with a padding range, a display shutter or an orientation other than the standard "
    "view, and JPEG 2000 in YBR colours",
}

# More than any radiograph has (a stitched full-leg image has some 30 million pixels), and so few
# that decoding one image takes far less than a gigabyte of memory.
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 256 * 2**20
TOO_LARGE = f"it has more pixels than the limit of {MAX_PIXELS // 10**6} million"


class Refused(Exception):
    """A file that the decoder refuses. The message is the reason, without text from the file."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Header fields of an image. Unknown is NaN or empty. Names and dates are not kept.

    Attributes:
      age_months: age at the image.
      sex: `"F"`, `"M"` or empty.
      view: projection, such as `"AP"`.
      body_part: such as `"ABDOMEN"`.
      modality: DICOM modality, such as `"DX"`; empty for PNG, JPEG and TIFF.
      manufacturer: of the equipment, such as `"FUJI PHOTO FILM CO. LTD."`.
      year: of the study, four digits.
      tube_voltage_kv: peak voltage of the X-ray tube.
      pixel_spacing_mm: height and width of a stored pixel, NaN if unknown.
      patient_key: a one-way hash of the patient's identifier.
      patient_alike: the same without regard to its spelling, see `cells.folded`.
      bits: bits stored of a pixel.
      size: stored height and width, before decoding at reduced scale and before it is oriented.
      notes: decisions of the decoder, such as the replacement of a useless window.
    """

    age_months: float = math.nan
    sex: str = ""
    view: str = ""
    body_part: str = ""
    modality: str = ""
    manufacturer: str = ""
    year: str = ""
    tube_voltage_kv: float = math.nan
    pixel_spacing_mm: tuple[float, float] = (math.nan, math.nan)
    patient_key: str = ""
    patient_alike: str = ""
    bits: int = 8
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """Greys, uint8 or uint16 `[H, W]` over the full range of the type, bright = dense."""

    pixels: np.ndarray
    header: Header


def check_size(height: int, width: int) -> None:
    """Refuses an impossible size. To be called before memory of that size is allocated."""
    if height < 1 or width < 1:
        raise Refused(f"its header gives an impossible size ({width}x{height} pixels)")
    if height * width > MAX_PIXELS:
        raise Refused(TOO_LARGE)


def read_file(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """Reads a regular file or an object of at most 256 MiB, or its first `limit` bytes.

    Raises:
      DataError: the package for this kind of store is not installed.
      Refused: it is not a regular file, empty, or cannot be opened.
    """
    try:
        if remote.is_remote(str(path)):
            data = remote.read(str(path), min(limit, MAX_FILE_BYTES + 1))
            size = len(data)
        else:
            # Opening a pipe would wait for its other end.
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise Refused("a folder, not an image; list the images in it")
            if not stat.S_ISREG(mode):
                raise Refused("not a regular file")
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A limit that is larger than the file would be allocated; none of that is read.
                data = b"" if size > MAX_FILE_BYTES <= limit else file.read(min(size, limit))
        if size > MAX_FILE_BYTES <= limit:
            raise Refused(f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB")
    except FileNotFoundError:
        raise Refused("the file does not exist") from None
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise Refused("the file is empty")
    return data
