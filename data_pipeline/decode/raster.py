"""PNG, JPEG and TIFF: greys of 8 or 16 bits, as they would be displayed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.decode.radiograph import Header, Radiograph, Refused, check_size

FORMATS = ("PNG", "JPEG", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262
# Detectors deliver 10, 12, 14 or 16 bits, and exports often leave them in 16 without scaling.
_DETECTOR_BITS = (8, 10, 12, 14, 16)


def read_raster(
    path: str | os.PathLike, shortest_side: Callable[[int, int], int] | None = None
) -> Radiograph:
    """Reads a PNG, JPEG or TIFF file.

    Args:
      path: the file.
      shortest_side: given height and width, how small the shorter side may be decoded; JPEG uses
        it to decode at 1/2, 1/4 or 1/8 scale. None decodes in full.

    Raises:
      Refused: the film is too large, has several pages, or no grey can be made of it.
      Exception: whatever Pillow raises for a damaged file.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        check_size(height, width)
        if getattr(image, "n_frames", 1) > 1:
            raise Refused(f"it holds {image.n_frames} pictures; a radiograph is one")
        inverted = _sixteen_bit_white_is_zero(image)
        if image.format == "JPEG":
            if shortest_side is not None:
                scale = shortest_side(height, width) / min(height, width)
                # Only 1/2, 1/4 and 1/8 exist; draft takes the smallest that is large enough.
                image.draft(None, (-int(-width * scale // 1), -int(-height * scale // 1)))
            # TIFF turns itself in Pillow. A damaged tag is no reason to lose the film.
            with contextlib.suppress(Exception):
                if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                    image = ImageOps.exif_transpose(image)
                    height, width = (image.height, image.width)
        pixels, bits = _greys(image)
    if inverted:
        pixels = np.iinfo(pixels.dtype).max - pixels
    return Radiograph(pixels, Header(bits=bits, size=(height, width)))


def _sixteen_bit_white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts 8-bit WhiteIsZero TIFF by itself, and leaves 16-bit ones as they are.
    return (
        image.format == "TIFF"
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    )


def _greys(image: Image.Image) -> tuple[np.ndarray, int]:
    """Full-range pixels and the bits stored. Never through Pillow's clipping 16-to-8 conversion."""
    mode = image.mode
    if mode.startswith("I;16"):
        return full_range(np.asarray(image).astype(np.uint16, copy=False))
    if mode in ("I", "F"):
        raise Refused("its pixels are 32-bit or floating point; export it with 8 or 16 bits")
    if "A" in mode or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.array(image.convert("L")), 8


def full_range(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Spreads uint16 pixels of a 10-, 12-, 14- or 16-bit detector over 0 to 65535."""
    maximum = int(pixels.max())
    bits = next(b for b in _DETECTOR_BITS if maximum < 2**b)
    if bits == 16:
        return pixels, bits
    table = np.rint(np.arange(2**bits) * (65535 / (2**bits - 1))).astype(np.uint16)
    return table[pixels], bits
