"""Pixel data of every transfer syntax to stored values."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from data_pipeline.decode import dicom_file
from data_pipeline.decode.isolation import run_isolated, time_limit
from data_pipeline.decode.radiograph import Refused
from data_pipeline.decode.raster import is_colored

_RLE = "1.2.840.10008.1.2.5"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_NATIVE = (
    "",
    dicom_file.IMPLICIT_LITTLE,
    dicom_file.EXPLICIT_LITTLE,
    dicom_file.DEFLATED,
    dicom_file.EXPLICIT_BIG,
)
# What the optional packages decode, through pydicom: name, and the line that installs a decoder.
_GDCM = "python-gdcm==3.2.6"
_OPTIONAL = {
    _JPEG_EXTENDED: ("JPEG of 12 bits", "pylibjpeg==2.1.0 pylibjpeg-libjpeg==2.5.0 (GPL)"),
    "1.2.840.10008.1.2.4.57": ("JPEG Lossless", _GDCM),
    "1.2.840.10008.1.2.4.70": ("JPEG Lossless", _GDCM),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS", "pyjpegls==1.5.1"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS", "pyjpegls==1.5.1"),
    "1.2.840.10008.1.2.4.201": ("High-Throughput JPEG 2000", "pylibjpeg-openjpeg==2.6.0"),
    "1.2.840.10008.1.2.4.202": ("High-Throughput JPEG 2000", "pylibjpeg-openjpeg==2.6.0"),
    "1.2.840.10008.1.2.4.203": ("High-Throughput JPEG 2000", "pylibjpeg-openjpeg==2.6.0"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pixel data is laid out, checked.

    Attributes:
      rows, columns: the image's size.
      samples: values a pixel, 1 or 3.
      photometric: photometric interpretation.
      planar: colours one after the other rather than pixel by pixel.
      allocated: bits a value takes, 8 or 16.
      stored: bits of it that are used.
      high_bit: position of the highest of them.
      signed: two's complement.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: bool
    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def color(self) -> bool:
        return self.samples == 3


def decode(
    dicom: dicom_file.DicomFile, layout: Layout, least: int | None
) -> tuple[np.ndarray, bool]:
    """Stored values, unsigned, uint8 or uint16 `[H, W]`, and whether the picture shows colour.

    Of a colour picture the values are its luminance; greys stored as colour show none.

    Args:
      dicom: the parsed file.
      layout: its checked layout.
      least: the least that the shorter side may have, where the codec can decode at reduced scale.

    Raises:
      Refused: the data is cut short, contradicts the header, or needs a codec that is missing.
    """
    data = dicom.elements[dicom_file.PIXEL_DATA]
    syntax = dicom.transfer_syntax
    if not dicom.encapsulated:
        if syntax not in _NATIVE:
            raise Refused("its pixel data is not compressed as its header says")
        return _native(data, layout, dicom.little_endian)
    if syntax in _NATIVE:
        raise Refused("its pixel data is compressed, and its header does not say how")
    frame = dicom_file.single_frame(data)
    if syntax == _RLE:
        return _grey(_rle(frame, layout), layout)
    if syntax in (_JPEG_BASELINE, _JPEG_EXTENDED) and _jpeg_precision(frame) == 8:
        return _jpeg(frame, layout, least)
    limit = time_limit(layout.rows * layout.columns)
    if syntax in _JPEG_2000:
        return run_isolated(f"{__name__}:jpeg_2000", frame, layout, cpu_s=limit)
    if syntax in _OPTIONAL:
        return run_isolated(f"{__name__}:optional", frame, layout, syntax, cpu_s=limit)
    raise Refused("its transfer syntax is unknown or for video")


def _native(data: memoryview, layout: Layout, little_endian: bool) -> tuple[np.ndarray, bool]:
    count = layout.rows * layout.columns * layout.samples
    if layout.photometric.startswith("YBR_FULL_422"):
        raise Refused("its colours are stored at half resolution without compression")
    size = count * layout.allocated // 8
    if len(data) < size:
        raise Refused(f"its pixel data is cut short: {len(data):,} of {size:,} bytes")
    if layout.allocated == 8:
        values = np.frombuffer(data, np.uint8, count)
    else:
        values = np.frombuffer(data, "<u2" if little_endian else ">u2", count)
        values = values.astype(np.uint16, copy=False)
    if layout.samples == 1:
        return values.reshape(layout.rows, layout.columns), False
    if layout.planar:
        values = values.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0)
    return _grey(values.reshape(layout.rows, layout.columns, 3), layout)


def _grey(values: np.ndarray, layout: Layout) -> tuple[np.ndarray, bool]:
    """Greys `[H, W]` of stored values `[H, W]` or `[H, W, 3]`, and whether they show colour."""
    if not layout.color:
        return values, False
    bands = [Image.fromarray(np.ascontiguousarray(values[..., i])) for i in range(3)]
    image = Image.merge("YCbCr" if layout.photometric.startswith("YBR") else "RGB", bands)
    return np.asarray(image.convert("L")), is_colored(image)


def _rle(frame: bytes, layout: Layout) -> np.ndarray:
    """PackBits segments (PS3.5 annex G), one a byte of a value, most significant first."""
    planes = layout.samples * layout.allocated // 8
    offsets = np.frombuffer(frame, "<u4", 16) if len(frame) >= 64 else np.zeros(16, np.uint32)
    if offsets[0] != planes:
        raise Refused("its run-length data contradicts its header")
    ends = [*offsets[2 : planes + 1], len(frame)]
    length = layout.rows * layout.columns
    decoded = []
    for begin, end in zip(offsets[1 : planes + 1], ends, strict=True):
        segment = frame[int(begin) : int(end)]
        # Two bytes give at most 128: what cannot be true is refused before it takes memory.
        if len(segment) * 64 < length:
            raise Refused("its run-length data is too short for its size")
        decoded.append(np.frombuffer(_unpack_bits(segment, length), np.uint8))
    if layout.allocated == 16:
        values = decoded[0].astype(np.uint16) << 8 | decoded[1]
        return values.reshape(layout.rows, layout.columns)
    if layout.samples == 3:
        return np.stack(decoded, axis=-1).reshape(layout.rows, layout.columns, 3)
    return decoded[0].reshape(layout.rows, layout.columns)


def _unpack_bits(segment: bytes, length: int) -> bytearray:
    out = bytearray()
    at, stop = 0, len(segment) - 1
    while at < stop and len(out) < length:
        code = segment[at]
        if code < 128:
            out += segment[at + 1 : at + 2 + code]
            at += 2 + code
        elif code > 128:
            out += segment[at + 1 : at + 2] * (257 - code)
            at += 2
        else:
            at += 1
    if len(out) < length:
        raise Refused("its run-length data is cut short")
    return out[:length]


def _jpeg_precision(frame: bytes) -> int:
    """Bits of a value, from the frame header (T.81 B.2.2); 0 without one."""
    at = 2
    while at + 4 < len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in (0xC0, 0xC1, 0xC2):
            return frame[at + 4]
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0


def _jpeg(frame: bytes, layout: Layout, least: int | None) -> tuple[np.ndarray, bool]:
    with Image.open(io.BytesIO(frame), formats=("JPEG",)) as image:
        _same_size(image, layout)
        if least is not None:
            scale = least / min(layout.rows, layout.columns)
            image.draft(None, (-int(-image.width * scale // 1), -int(-image.height * scale // 1)))
        return np.asarray(image.convert("L")), layout.color and is_colored(image)


def jpeg_2000(frame: bytes, layout: Layout) -> tuple[np.ndarray, bool]:
    """JPEG 2000, signed values in two's complement. To be run isolated.

    Always in full: its own reduced scales are four times faster, but lie up to half a pixel beside
    the image and differ from it by more than ten grey levels at edges.
    """
    precision, signed = _jpeg_2000_header(frame)
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Refused("its JPEG 2000 data is cut short")
    with Image.open(io.BytesIO(frame), formats=("JPEG2000",)) as image:
        _same_size(image, layout)
        if layout.color:
            return np.array(image.convert("L")), is_colored(image)
        if image.mode not in ("L", "I;16"):
            raise Refused("its JPEG 2000 data contradicts its header")
        values = np.array(image)
    # Pillow scales up to the full 8 or 16 bits, and lifts signed values by half the range.
    values >>= values.dtype.type(8 * values.itemsize - precision)
    if signed:
        values -= values.dtype.type(2 ** (precision - 1))
        values &= values.dtype.type(2**layout.stored - 1)
    return values, False


def _jpeg_2000_header(frame: bytes) -> tuple[int, bool]:
    """Precision and sign of the first component, from the main header (T.800 A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(frame) < start + 60:
        raise Refused("its JPEG 2000 data is damaged")
    component = frame[start + 42]
    return (component & 0x7F) + 1, component >= 0x80


def _same_size(image: Image.Image, layout: Layout) -> None:
    if image.size != (layout.columns, layout.rows):
        raise Refused(
            f"its picture has {image.width}x{image.height} pixels, its header says "
            f"{layout.columns}x{layout.rows}"
        )


def optional(frame: bytes, layout: Layout, syntax: str) -> tuple[np.ndarray, bool]:
    """What needs a package that is not required. To be run isolated."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    name, package = _OPTIONAL[syntax]
    decoder = get_decoder(syntax)
    plugins = set(decoder.available_plugins)
    # pydicom also counts codecs that fail on these: Pillow and GDCM know no JPEG of 12 bits.
    if not (plugins - {"pillow", "gdcm"} if syntax == _JPEG_EXTENDED else plugins):
        raise Refused(f"{name} needs a decoder: pip install {package}")
    values, _ = decoder.as_array(
        encapsulate([frame]),
        raw=True,
        index=0,
        rows=layout.rows,
        columns=layout.columns,
        samples_per_pixel=layout.samples,
        photometric_interpretation=layout.photometric,
        planar_configuration=int(layout.planar),
        number_of_frames=1,
        bits_allocated=layout.allocated,
        bits_stored=layout.stored,
        pixel_representation=int(layout.signed),
        pixel_keyword="PixelData",
    )
    values = values.view(np.uint8 if values.itemsize == 1 else np.uint16)
    return _grey(values & values.dtype.type(2**layout.stored - 1), layout)
