"""What a decoded image is, how large it may be, and how a decoder says no."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# Raised whenever a change here alters pixels: caches and checkpoints carry it.
DECODER_VERSION = 2

# Well above any radiograph (a stitched full-leg image has some 30 million pixels), and low enough
# that one image stays far below a gigabyte of memory at every step of decoding.
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 256 * 2**20
TOO_LARGE = f"it has more pixels than the limit of {MAX_PIXELS // 10**6} million"


class Refused(Exception):
    """A decoder's refusal. The message is the reason, without any text from the file."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about its image. Unknown is NaN or empty; names and dates are never kept.

    Attributes:
      age_months: age at the image.
      sex: `"F"`, `"M"` or empty.
      view: projection, such as `"AP"`.
      body_part: such as `"ABDOMEN"`.
      modality: DICOM modality, such as `"DX"`; empty for PNG, JPEG and TIFF.
      pixel_spacing_mm: height and width of a stored pixel, NaN if unknown.
      patient_key: a one-way hash of the patient's identifier.
      bits: bits a pixel that the file stores.
      size: stored height and width, before any decoding at reduced scale.
      notes: what the decoder had to decide by itself, such as replacing a useless window.
    """

    age_months: float = math.nan
    sex: str = ""
    view: str = ""
    body_part: str = ""
    modality: str = ""
    pixel_spacing_mm: tuple[float, float] = (math.nan, math.nan)
    patient_key: str = ""
    bits: int = 8
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """An image as greys: bright = dense, uint8 or uint16 `[H, W]` over the type's full range."""

    pixels: np.ndarray
    header: Header


def check_size(height: int, width: int) -> None:
    """Refuses a size that no image has. To be called before anything of that size is allocated."""
    if height < 1 or width < 1:
        raise Refused(f"its header gives an impossible size ({width}x{height} pixels)")
    if height * width > MAX_PIXELS:
        raise Refused(TOO_LARGE)
