"""PNG, JPEG and TIFF decoder: greys of 8 or 16 bits, as a viewer would show them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from data_pipeline.decode.isolation import run_isolated, time_limit
from data_pipeline.decode.jpeg import START, read_frame
from data_pipeline.decode.percentiles import histogram, window_by_percentiles
from data_pipeline.decode.radiograph import TOO_LARGE, Header, Radiograph, Refused, check_size

PNG = b"\x89PNG\r\n\x1a\n"
BIG_ENDIAN_BIGTIFF = b"MM\0+"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIGTIFF)
SIGNATURES = (PNG, b"\xff\xd8\xff", *TIFF)
_MAX_CHUNKS = 100_000
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
# Mean spread of red, green and blue, in grey levels, above which an image shows colour.
_MAX_COLOR = 10.0
# Greys that Pillow unpacks and does not look for in TIFF: big endian, and WhiteIsZero.
_UNLISTED_TIFF: Any = {
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (b"MM", 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
}


def read_raster(data: bytes, shortest_side: Callable[[int, int], int] | None = None) -> Radiograph:
    """Decodes the content of a PNG, JPEG or TIFF file.

    Args:
      data: the file's bytes.
      shortest_side: given height and width, the minimum of the shorter side; JPEG is decoded at
        1/2, 1/4 or 1/8 scale accordingly. None decodes in full.

    Raises:
      Refused: the image is too large, has several pages, or cannot be converted to greys.
      Exception: any exception of Pillow for a damaged file.
    """
    if data.startswith(BIG_ENDIAN_BIGTIFF):  # Pillow 13.0 mistakes its header.
        raise Refused("a BigTIFF in big-endian byte order, which cannot be read; save it as TIFF")
    if data.startswith(TIFF):
        decoded: Radiograph = run_isolated(
            f"{__name__}:decode_tiff", data, cpu_s=time_limit(len(data))
        )
        return decoded
    notes: tuple[str, ...] = ()
    if data.startswith(START):
        read_frame(data)
    else:
        _refuse_many_chunks(data)
    with _open(data, ("PNG", "JPEG")) as image:
        width, height = image.size
        check_size(height, width)
        if image.format == "MPO":
            notes = ("several pictures in one file (MPO); the first is shown",)
        if image.format == "PNG":
            _refuse_deep_channels(data[24] == 16 and image.mode != "I;16")  # Bit depth.
        elif shortest_side is not None:
            scale = shortest_side(height, width) / min(height, width)
            # Only 1/2, 1/4 and 1/8 exist; draft takes the smallest that is large enough.
            image.draft(None, (-int(-width * scale // 1), -int(-height * scale // 1)))
        image.load()  # Metadata of a PNG may follow its pixels.
        size = (height, width)
        if "exif" in image.info:
            # A damaged tag is no reason to lose the image.
            with contextlib.suppress(Exception):
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                image = ImageOps.exif_transpose(image)
                size = size[::-1] if orientation >= 5 else size
        return _radiograph(image, size, notes)


def decode_tiff(data: bytes) -> Radiograph:
    """Decodes TIFF or BigTIFF. To be run isolated: libtiff may crash, directories never end."""
    TiffImagePlugin.OPEN_INFO |= _UNLISTED_TIFF
    with _open(data, ("TIFF",)) as image:
        size = image.size[::-1]
        check_size(*size)
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_TIFF_BITS, (1,))
        _refuse_deep_channels(len(bits) > 1 and max(bits) > 8)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise Refused(f"it holds {frames} pictures; a radiograph is one")
        image.load()  # Pillow applies the orientation of a TIFF itself.
        signed = tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == _SIGNED
        white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == 0
        # Pillow leaves 16-bit WhiteIsZero as it is, and takes signed bytes for unsigned ones.
        if image.mode == "I" and signed and bits[0] == 16:
            radiograph = _sixteen_bits((np.asarray(image) + 2**15).astype(np.uint16), size)
        else:
            radiograph = _radiograph(image, size)
        pixels = radiograph.pixels
        if signed and pixels.dtype == np.uint8:
            pixels = pixels ^ np.uint8(128)
        if white_is_zero and pixels.dtype == np.uint16:
            pixels = 65535 - pixels
        return Radiograph(pixels, radiograph.header)


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(TOO_LARGE) from None
    except UnidentifiedImageError:
        raise Refused(f"damaged, or a kind of {' or '.join(formats)} that cannot be read") from None


def _refuse_many_chunks(data: bytes) -> None:
    """Pillow reads the chunks of a PNG in Python, empty ones as well."""
    at = len(PNG)
    for _ in range(_MAX_CHUNKS):
        if at >= len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise Refused(f"it has more than {_MAX_CHUNKS} chunks")


def _refuse_deep_channels(deep: bool) -> None:
    """Refuses them: Pillow reads only the upper byte, which is little of a 12-bit image."""
    if deep:
        raise Refused("it has 16 bits in each of several channels; convert it to 16-bit grey")


def _radiograph(
    image: Image.Image, size: tuple[int, int], notes: tuple[str, ...] = ()
) -> Radiograph:
    """Full-range greys. Never through Pillow's conversion of 16 to 8 bits, which clips."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _sixteen_bits(np.asarray(image).astype(np.uint16, copy=False), size)
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating point numbers"
        raise Refused(f"its pixels are {kind}; export it with 8 or 16 bits")
    if mode == "LAB":
        raise Refused("its colours are in CIELAB space; convert it to grey")
    if mode == "La":
        image = image.convert("LA")
    if mode != "L" or "transparency" in image.info:
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(black, image)
        if mode != "1" and is_colored(image):
            notes += ("in colour",)
    return Radiograph(np.asarray(image.convert("L")), Header(bits=8, size=size, notes=notes))


def is_colored(image: Image.Image) -> bool:
    """Whether an image shows colour rather than greys stored as colour."""
    small = np.asarray(image.convert("RGB").resize((64, 64)), np.int16)
    return float(np.ptp(small, axis=-1).mean()) > _MAX_COLOR


def _sixteen_bits(stored: np.ndarray, size: tuple[int, int]) -> Radiograph:
    """Greys at full range of 10 to 16 bits; nothing in the file says how many the detector had.

    By percentiles, as DICOM without a window: a scale by the largest value would make some images
    of one detector four times as bright as others.
    """
    values = np.arange(int(stored.max()) + 1, dtype=np.float64)
    greys = window_by_percentiles(values, histogram(stored, len(values)))
    pixels = np.rint(greys * 65535).astype(np.uint16)[stored]
    return Radiograph(pixels, Header(bits=16, size=size))
