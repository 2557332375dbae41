"""PNG, JPEG and TIFF: greys of 8 or 16 bits, as they would be displayed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.decode.isolation import run_isolated, time_limit
from data_pipeline.decode.percentiles import histogram, window_by_percentiles
from data_pipeline.decode.radiograph import TOO_LARGE, Header, Radiograph, Refused, check_size

FORMATS = ("PNG", "JPEG", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 40
# Mean spread of red, green and blue, in grey levels, above which a picture shows colour.
_MAX_COLOR = 10.0


def read_raster(data: bytes, shortest_side: Callable[[int, int], int] | None = None) -> Radiograph:
    """Decodes the content of a PNG, JPEG or TIFF file.

    Args:
      data: the file's bytes.
      shortest_side: given height and width, how small the shorter side may be decoded; JPEG uses
        it to decode at 1/2, 1/4 or 1/8 scale. None decodes in full.

    Raises:
      Refused: the image is too large, has several pages, or no grey can be made of it.
      Exception: whatever Pillow raises for a damaged file.
    """
    with _open(data) as image:
        width, height = image.size
        check_size(height, width)
        _refuse_deep_channels(image, data)
        if image.format == "TIFF" and image.info.get("compression") != "raw":
            limit = time_limit(height * width)
            return run_isolated(f"{__name__}:decode_tiff", data, cpu_s=limit)
        if image.format == "JPEG":
            # Every scan of a progressive JPEG passes over the whole image, however little it holds.
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


def _refuse_deep_channels(image: Image.Image, data: bytes) -> None:
    """Pillow reads the upper byte alone of these, which of a 12-bit image is next to nothing."""
    if image.format == "PNG":
        deep = data[24] == 16 and image.mode != "I;16"  # The header's bit depth.
    else:
        bits = image.tag_v2.get(_TIFF_BITS, (1,)) if image.format == "TIFF" else (8,)
        deep = len(bits) > 1 and max(bits) > 8
    if deep:
        raise Refused("it has 16 bits in each of several channels; convert it to 16-bit grey")


def _radiograph(image: Image.Image, size: tuple[int, int]) -> Radiograph:
    if getattr(image, "n_frames", 1) > 1:
        raise Refused(f"it holds {image.n_frames} pictures; a radiograph is one")
    inverted = _sixteen_bit_white_is_zero(image)
    image.load()  # PNG may say so behind its pixels.
    if image.format in ("JPEG", "PNG") and "exif" in image.info:  # TIFF turns itself in Pillow.
        # A damaged tag is no reason to lose the image.
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
        return _sixteen_bits(np.asarray(image).astype(np.uint16, copy=False)), 16, ()
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


def _sixteen_bits(stored: np.ndarray) -> np.ndarray:
    """Greys at full range of a detector's 10 to 16 bits, which nothing in the file tells apart.

    By percentiles, as DICOM without a window: a scale from the image's largest value would make
    images of one detector four times as bright as others.
    """
    values = np.arange(int(stored.max()) + 1, dtype=np.float64)
    greys = window_by_percentiles(values, histogram(stored, len(values)))
    return np.rint(greys * 65535).astype(np.uint16)[stored]
