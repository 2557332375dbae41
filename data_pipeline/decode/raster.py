"""PNG, JPEG and TIFF: greys of 8 or 16 bits, as they would be displayed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.decode.isolation import run_isolated, time_limit
from data_pipeline.decode.radiograph import TOO_LARGE, Header, Radiograph, Refused, check_size

FORMATS = ("PNG", "JPEG", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 40
# Mean spread of red, green and blue, in grey levels, above which a picture shows colour.
_MAX_COLOR = 10.0
# Detectors deliver 10, 12, 14 or 16 bits, and exports often leave them in 16 without scaling.
_DETECTOR_BITS = (8, 10, 12, 14, 16)


def read_raster(data: bytes, shortest_side: Callable[[int, int], int] | None = None) -> Radiograph:
    """Decodes the content of a PNG, JPEG or TIFF file.

    Args:
      data: the file's bytes.
      shortest_side: given height and width, how small the shorter side may be decoded; JPEG uses
        it to decode at 1/2, 1/4 or 1/8 scale. None decodes in full.

    Raises:
      Refused: the film is too large, has several pages, or no grey can be made of it.
      Exception: whatever Pillow raises for a damaged file.
    """
    with _open(data) as image:
        width, height = image.size
        check_size(height, width)
        if image.format == "TIFF" and image.info.get("compression") != "raw":
            limit = time_limit(height * width)
            return run_isolated(f"{__name__}:decode_tiff", data, timeout_s=limit)
        if image.format == "JPEG":
            # Every scan of a progressive JPEG passes over the whole film, however little it holds.
            if data.count(_START_OF_SCAN) > _MAX_SCANS:
                raise Refused(f"it has more than {_MAX_SCANS} progressive scans")
            if shortest_side is not None:
                scale = shortest_side(height, width) / min(height, width)
                # Only 1/2, 1/4 and 1/8 exist; draft takes the smallest that is large enough.
                image.draft(None, (-int(-width * scale // 1), -int(-height * scale // 1)))
        return _radiograph(image, (height, width))


def decode_tiff(data: bytes) -> Radiograph:
    """A compressed TIFF, which goes through libtiff. To be run isolated."""
    with _open(data) as image:
        return _radiograph(image, image.size[::-1])


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(TOO_LARGE) from None


def _radiograph(image: Image.Image, size: tuple[int, int]) -> Radiograph:
    if getattr(image, "n_frames", 1) > 1:
        raise Refused(f"it holds {image.n_frames} pictures; a radiograph is one")
    inverted = _sixteen_bit_white_is_zero(image)
    if image.format == "JPEG" and "exif" in image.info:  # TIFF turns itself in Pillow.
        # A damaged tag is no reason to lose the film.
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            image = ImageOps.exif_transpose(image)
            size = size[::-1] if orientation >= 5 else size
    pixels, bits, notes = _greys(image)
    if inverted:
        pixels = np.iinfo(pixels.dtype).max - pixels
    return Radiograph(pixels, Header(bits=bits, size=size, notes=notes))


def _sixteen_bit_white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts 8-bit WhiteIsZero TIFF by itself, and leaves 16-bit ones as they are.
    return (
        image.format == "TIFF"
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    )


def _greys(image: Image.Image) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Full-range pixels, bits stored, notes. Never through Pillow's clipping 16-to-8 conversion."""
    mode = image.mode
    if mode.startswith("I;16"):
        return *full_range(np.asarray(image).astype(np.uint16, copy=False)), ()
    if mode in ("I", "F"):
        raise Refused("its pixels are 32-bit or floating point; export it with 8 or 16 bits")
    if mode == "L" and "transparency" not in image.info:
        return np.asarray(image), 8, ()
    if "A" in mode or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    notes = ("in colour",) if mode != "1" and is_colored(image) else ()
    return np.asarray(image.convert("L")), 8, notes


def is_colored(image: Image.Image) -> bool:
    """Whether a picture shows colour rather than greys stored as colour."""
    small = np.asarray(image.convert("RGB").resize((64, 64)), np.int16)
    return float(np.ptp(small, axis=-1).mean()) > _MAX_COLOR


def full_range(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Spreads uint16 pixels of a 10-, 12-, 14- or 16-bit detector over 0 to 65535."""
    maximum = int(pixels.max())
    bits = next(b for b in _DETECTOR_BITS if maximum < 2**b)
    if bits == 16:
        return pixels, bits
    table = np.rint(np.arange(2**bits) * (65535 / (2**bits - 1))).astype(np.uint16)
    return table[pixels], bits
