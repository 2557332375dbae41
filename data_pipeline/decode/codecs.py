"""DICOM pixel data to stored values, for every transfer syntax of still images (PS3.5 annex A).

Pillow decodes baseline JPEG in this process. OpenJPEG (JPEG 2000), CharLS (JPEG-LS) and GDCM (JPEG
Lossless and JPEG of 12 bits) run in separate processes. The stream determines the decoder, because
declared transfer syntaxes are often wrong.
"""

from __future__ import annotations

import dataclasses
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from data_pipeline.decode import dicom_file
from data_pipeline.decode.isolation import run_isolated, time_limit
from data_pipeline.decode.jpeg import END, START, JpegFrame, read_frame
from data_pipeline.decode.radiograph import Refused
from data_pipeline.decode.raster import is_colored

_RLE = "1.2.840.10008.1.2.5"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
_NATIVE = (
    "",
    dicom_file.IMPLICIT_LITTLE,
    dicom_file.EXPLICIT_LITTLE,
    dicom_file.DEFLATED,
    dicom_file.EXPLICIT_BIG,
)
_PLAIN_JPEG, _LOSSLESS, _JPEG_LS = (0xC0, 0xC1, 0xC2), 0xC3, 0xF7  # SOF markers.
_PIECE = 2**20
_JPEG_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ.


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pixel data is laid out, after checks.

    Attributes:
      rows, columns: size of the image in pixels.
      samples: values of a pixel, 1 or 3.
      photometric: photometric interpretation.
      planar: colours one after the other rather than pixel by pixel.
      allocated: bits allocated to a value, 8 or 16.
      stored: bits stored of a value.
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
    """Decodes pixel data to stored values, unsigned, uint8 or uint16 `[H, W]`.

    Args:
      dicom: the parsed file.
      layout: its checked layout.
      least: minimum of the shorter side, for codecs that decode at reduced scale.

    Returns:
      The values, and whether the image shows colour. A colour image gives its luminance; greys
      stored as colour show none.

    Raises:
      Refused: the data is cut short, damaged, or contradicts the header.
    """
    data = dicom.elements[dicom_file.PIXEL_DATA]
    syntax = dicom.transfer_syntax
    if not dicom.encapsulated:
        if syntax not in _NATIVE:
            raise Refused("its pixel data is not compressed as its header says")
        return _native(data, layout, dicom)
    if syntax in _NATIVE:
        raise Refused("its pixel data is compressed, and its header does not say how")
    frame = dicom_file.single_frame(data)
    decoder: str
    args: tuple[str, ...] = ()
    if syntax == _RLE:
        decoder = "run_length"
    elif frame.startswith(START):
        jpeg = read_frame(frame)
        plain = jpeg.precision == 8 and jpeg.marker in _PLAIN_JPEG  # Greys in any colour space.
        samples = layout.samples if plain else jpeg.samples
        _check_frame((jpeg.width, jpeg.height, samples), layout)
        if jpeg.precision > layout.allocated:
            raise Refused(f"its JPEG data has {jpeg.precision} bits, its header {layout.allocated}")
        if plain:
            return _jpeg(frame, jpeg, layout, least)
        if jpeg.marker == _JPEG_LS:
            decoder = "jpeg_ls"
        elif not jpeg.tidy:  # GDCM aborts on bytes between segments.
            raise _undecodable("JPEG", whole=True)
        else:
            decoder = "gdcm"
            args = (_JPEG_LOSSLESS if jpeg.marker == _LOSSLESS else _JPEG_EXTENDED,)
    elif _JPEG_2000 in frame[:4096]:  # A JP2 header may stand before the stream.
        decoder = "jpeg_2000"
    else:
        raise Refused("its pixel data is neither JPEG, JPEG-LS, JPEG 2000 nor run-length encoded")
    limit = time_limit(layout.rows * layout.columns)
    decoded: tuple[np.ndarray, bool] = run_isolated(
        f"{__name__}:{decoder}", frame, layout, *args, cpu_s=limit
    )
    return decoded


def _check_frame(frame: tuple[int, int, int], layout: Layout) -> None:
    """Compares width, height and samples of a stream with the header."""
    if frame != (layout.columns, layout.rows, layout.samples):
        raise Refused(
            "its compressed image has {}x{} pixels of {} samples, ".format(*frame)
            + f"its header says {layout.columns}x{layout.rows} of {layout.samples}"
        )


def _native(
    data: memoryview, layout: Layout, dicom: dicom_file.DicomFile
) -> tuple[np.ndarray, bool]:
    count = layout.rows * layout.columns * layout.samples
    if layout.photometric.startswith("YBR_FULL_422"):
        raise Refused("its colours are stored at half resolution without compression")
    size = count * layout.allocated // 8
    if len(data) < size:
        raise Refused(f"its pixel data is cut short: {len(data):,} of {size:,} bytes")
    values: np.ndarray
    if layout.allocated == 16:
        order = "<u2" if dicom.little_endian else ">u2"
        values = np.frombuffer(data, order, count).astype(np.uint16, copy=False)
    elif dicom.little_endian or not dicom.words or len(data) < size + size % 2:
        values = np.frombuffer(data, np.uint8, count)
    else:  # Two pixels a word, the first in its lower byte (PS3.5 8.1.1 and 7.3).
        values = np.frombuffer(data, ">u2", (count + 1) // 2).astype("<u2").view(np.uint8)[:count]
    return _grey(values, layout, layout.planar)


def _grey(
    values: np.ndarray, layout: Layout, planar: bool = False, rgb: bool = False
) -> tuple[np.ndarray, bool]:
    """Greys `[H, W]` of flat stored values, and whether they show colour.

    Args:
      values: unsigned.
      layout: of the image.
      planar: colours one after the other.
      rgb: the colours are RGB, whatever the header says.
    """
    size = (layout.rows, layout.columns)
    if values.size != layout.samples * layout.rows * layout.columns:
        raise Refused("its compressed data contradicts its header")
    if not layout.color:
        return values.reshape(size), False
    planes = values.reshape(3, *size) if planar else np.moveaxis(values.reshape(*size, 3), -1, 0)
    mode = "YCbCr" if layout.photometric.startswith("YBR") and not rgb else "RGB"
    bands = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
    image = Image.merge(mode, bands)
    return np.asarray(image.convert("L")), is_colored(image)


def _values(data: bytes, precision: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8 if precision <= 8 else np.uint16)


def _jpeg(
    frame: bytes, jpeg: JpegFrame, layout: Layout, least: int | None
) -> tuple[np.ndarray, bool]:
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG",)) as image:
            if least is not None:
                scale = least / min(layout.rows, layout.columns)
                image.draft(None, (-int(-jpeg.width * scale // 1), -int(-jpeg.height * scale // 1)))
            return np.asarray(image.convert("L")), layout.color and is_colored(image)
    except OSError:
        raise _undecodable("JPEG", END in frame) from None


def _undecodable(name: str, whole: bool) -> Refused:
    return Refused(f"its {name} data is {'damaged' if whole else 'cut short'}")


def jpeg_2000(frame: bytes, layout: Layout) -> tuple[np.ndarray, bool]:
    """JPEG 2000 and High-Throughput JPEG 2000. To be run isolated.

    Always in full: reduced scales of the codec are four times faster, but lie up to half a pixel
    beside the image and differ from it by more than ten grey levels at edges.
    """
    from openjpeg.utils import decode_pixel_data

    start = frame.index(_JPEG_2000)
    frame = frame[start:]
    # Width, height and their offsets, samples, and precision of the first (T.800 A.5.1).
    width, height, left, top = np.frombuffer(frame, ">u4", 4, 8).tolist()
    samples, precision = int.from_bytes(frame[40:42], "big"), (frame[42] & 0x7F) + 1
    _check_frame((width - left, height - top, samples), layout)
    if precision > layout.allocated:
        raise Refused(f"its JPEG 2000 data has {precision} bits, its header {layout.allocated}")
    whole = frame.rfind(END) > frame.rfind(b"\xff\x93")  # The last start of data.
    # OpenJPEG insists on an end marker and on complete data. The marker alone may be missing, and
    # a byte of padding stand in its place.
    for candidate in (frame,) if whole else (frame + END, frame[:-1] + END):
        try:
            data = bytes(decode_pixel_data(candidate, version=2))
            break
        except RuntimeError:
            continue
    else:
        raise _undecodable("JPEG 2000", whole)
    # Whether the codec transformed colours (COD marker, T.800 A.6.1); it returns RGB if so.
    transformed = frame[frame.index(b"\xff\x52") + 8] == 1
    rgb = transformed or layout.photometric in ("YBR_ICT", "YBR_RCT")
    values = _values(data, precision)
    if frame[42] & 0x80:  # Signed values, which come with their sign extended.
        values = values & values.dtype.type((1 << layout.stored) - 1)
    return _grey(values, layout, rgb=rgb)


def jpeg_ls(frame: bytes, layout: Layout) -> tuple[np.ndarray, bool]:
    """JPEG-LS, lossless and near-lossless. To be run isolated."""
    import jpeg_ls as charls

    if END not in frame:  # CharLS may take seconds to find out.
        raise _undecodable("JPEG-LS", whole=False)
    try:
        data, info = charls.decode_pixel_data(frame)
    except RuntimeError:
        raise _undecodable("JPEG-LS", whole=True) from None
    values = _values(data, info["bits_per_sample"])
    return _grey(values, layout, planar=info["interleave_mode"] == 0)


def gdcm(frame: bytes, layout: Layout, syntax: str) -> tuple[np.ndarray, bool]:
    """JPEG Lossless and JPEG of 12 bits. To be run isolated."""
    import gdcm as library

    fragment = library.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = library.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = library.DataElement(library.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = library.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    kind = library.PhotometricInterpretation.GetPIType("RGB" if layout.color else "MONOCHROME2")
    image.SetPhotometricInterpretation(library.PhotometricInterpretation(kind))
    kind = library.TransferSyntax.GetTSType(syntax)
    image.SetTransferSyntax(library.TransferSyntax(kind))
    bits = layout.allocated, layout.stored, layout.stored - 1
    image.SetPixelFormat(library.PixelFormat(layout.samples, *bits, int(layout.signed)))
    text = image.GetBuffer()
    if text is None:
        raise _undecodable("JPEG", END in frame)
    # The bytes come as text, with surrogates for what is not UTF-8. Encoding it in pieces takes a
    # third of the memory.
    pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    data = b"".join(piece.encode("utf-8", "surrogateescape") for piece in pieces)
    return _grey(_values(data, layout.allocated), layout)


def run_length(frame: bytes, layout: Layout) -> tuple[np.ndarray, bool]:
    """PackBits segments (PS3.5 annex G), one for each byte of a pixel. To be run isolated."""
    planes = layout.samples * layout.allocated // 8
    offsets = np.frombuffer(frame.ljust(64, b"\0"), "<u4", 16).tolist()
    if offsets[0] != planes:
        raise Refused("its run-length data contradicts its header")
    length = layout.rows * layout.columns
    decoded = [
        np.frombuffer(_unpack_bits(frame[begin:end], length), np.uint8)
        for begin, end in pairwise([*offsets[1 : planes + 1], len(frame)])
    ]
    if layout.allocated == 16:  # The most significant byte comes first.
        return _grey(decoded[0].astype(np.uint16) << 8 | decoded[1], layout)
    return _grey(np.concatenate(decoded), layout, planar=True)


def _unpack_bits(segment: bytes, length: int) -> bytearray:
    # Two bytes give at most 128: what cannot be true is refused before it takes memory.
    if len(segment) * 64 < length:
        raise Refused("its run-length data is too short for its size")
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
