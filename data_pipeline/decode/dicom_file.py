"""DICOM parser for the few elements that an image needs (PS3.5 section 7, PS3.10).

It does not parse the rest: names, addresses and comments never become text in memory, nothing is
followed recursively, and no file takes more than a fixed number of steps. A header takes a fraction
of a millisecond, which counts for 300,000 files.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Container, Iterator
from itertools import islice
from typing import Literal

from data_pipeline.decode.radiograph import Refused

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

PIXEL_DATA = 0x7FE00010
_TRANSFER_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# These value representations have a length of four bytes, the others one of two (PS3.5, 7.1.2).
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_MAX_INFLATED_BYTES = 160 * 2**20
_MAX_ELEMENTS = 200_000
_MAX_FRAGMENTS = 100_000
# Files without preamble begin with an element of a low group, in either byte order.
_FIRST_GROUPS = (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08")
SNIFF_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class DicomFile:
    """Elements by tag, as raw bytes, with what is needed to interpret them.

    Attributes:
      transfer_syntax: UID of the encoding of the pixel data; empty if the file does not state it.
      little_endian: byte order of binary values.
      elements: tag -> value. Pixel data in fragments keeps its item headers.
      items: tag of a sequence -> elements of its first item.
      encapsulated: the pixel data is in fragments, that is, compressed.
      words: the pixel data is a series of 16-bit words (OW), whatever the size of a pixel.
    """

    transfer_syntax: str
    little_endian: bool
    elements: dict[int, memoryview]
    items: dict[int, dict[int, memoryview]]
    encapsulated: bool
    words: bool

    def text(self, tag: int, limit: int = 1024) -> str:
        """The value as text without padding; empty if absent."""
        return bytes(self.value(tag, limit)).decode("ascii", "replace").strip(" \0\t\r\n")

    def value(self, tag: int, limit: int) -> memoryview:
        """The first `limit` bytes of a value; empty if absent."""
        return self.elements.get(tag, memoryview(b""))[:limit]

    def number(self, tag: int) -> int | None:
        """The first 16-bit unsigned value; None if absent."""
        value = self.value(tag, 2)
        return int.from_bytes(value, self.byte_order) if len(value) == 2 else None

    def decimals(self, tag: int) -> list[float]:
        """The values of a decimal string; those that are no number are left out."""
        numbers = []
        for part in self.text(tag, 2**16).split("\\"):
            try:
                number = float(part)
            except ValueError:
                continue
            if abs(number) < 1e12:  # neither infinite nor NaN
                numbers.append(number)
        return numbers

    @property
    def byte_order(self) -> Literal["little", "big"]:
        return "little" if self.little_endian else "big"


def sniff_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head`, `SNIFF_BYTES` of it, can be DICOM.

    It is if "DICM" follows a preamble. Without a preamble, its first elements must be plausible: of
    groups 2 or 8, in ascending order, and short.
    """
    if head[128:132] == b"DICM":
        return True
    if not head.startswith(_FIRST_GROUPS):
        return False
    implicit, order = _encoding(head, 0, "")
    last = 0
    for tag, _, _, length, _ in islice(_elements(head, 0, implicit, order), 3):
        if not last < tag or (not last and tag >> 16 not in (2, 8)) or length > 4096:
            return False
        last = tag
    return last > 0


def parse_dicom(
    data: bytes,
    wanted: Container[int],
    sequences: Container[int],
    max_inflated: int = _MAX_INFLATED_BYTES,
) -> DicomFile:
    """Parses a whole file, or its beginning as far as the pixel data.

    Args:
      data: the file's bytes.
      wanted: tags of the elements to keep.
      sequences: tags of the sequences whose first item to keep.
      max_inflated: how far to inflate a deflated file.

    Raises:
      Refused: the file has too many elements, or inflates to more than 160 MiB.
    """
    start = 132 if data[128:132] == b"DICM" else 0
    syntax = ""
    if data[start : start + 2] == b"\x02\0":
        for tag, _, value_at, length, end in _elements(data, start, False, "<"):
            if tag >> 16 != 2:
                break
            start = end
            if tag == _TRANSFER_SYNTAX:
                value = data[value_at : value_at + min(length, 64)]
                syntax = value.decode("ascii", "replace").strip("\0 ")
    if syntax == DEFLATED:
        data, start = _inflate(data[start:], max_inflated), 0
    implicit, order = _encoding(data, start, syntax)
    elements: dict[int, memoryview] = {}
    sequence_at: dict[int, int] = {}
    encapsulated = words = False
    for tag, representation, value_at, length, end in _elements(data, start, implicit, order):
        if tag == PIXEL_DATA:
            encapsulated, words = length == _UNDEFINED, representation == b"OW"
        if tag in wanted:
            elements[tag] = memoryview(data)[value_at : None if length == _UNDEFINED else end]
        elif tag in sequences:
            sequence_at[tag] = value_at
    items = {tag: _first_item(data, at, implicit, order) for tag, at in sequence_at.items()}
    return DicomFile(syntax, order == "<", elements, items, encapsulated, words)


def _encoding(data: bytes, start: int, syntax: str) -> tuple[bool, str]:
    """Whether the data set at `start` is of implicit representation, and its byte order.

    The first element is used rather than the declaration: wrong declarations are common.
    """
    order = ">" if syntax == EXPLICIT_BIG else "<"
    head = data[start : start + 6]
    if len(head) < 6:
        return syntax == IMPLICIT_LITTLE, order
    if not syntax and head[0] == 0 and head[1] != 0:
        order = ">"
    return not (head[4:6].isalpha() and head[4:6].isupper()), order


def _elements(
    data: bytes, at: int, implicit: bool, order: str, stop: int | None = None
) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Yields `tag, representation, value_at, length, end` of every element at the top level.

    Skips the contents of sequences of undefined length by counting delimiters. Ends at `stop`, at
    the end of an item, at the pixel data, or where the data is cut short.
    """
    stop = len(data) if stop is None else min(stop, len(data))
    long_header = struct.Struct(order + "HHI")
    short_header = struct.Struct(order + "HH2sH")
    length_field = struct.Struct(order + "I")
    depth = 0
    opened = None
    seen = 0
    while at + 8 <= stop:
        seen += 1
        if seen > _MAX_ELEMENTS:
            raise Refused(f"its header has more than {_MAX_ELEMENTS} elements")
        group, element, length = long_header.unpack_from(data, at)
        tag = group << 16 | element
        representation = b""
        value_at = at + 8
        if group != 0xFFFE and not implicit:
            _, _, representation, short = short_header.unpack_from(data, at)
            if representation in _LONG:
                if at + 12 > stop:
                    return
                (length,) = length_field.unpack_from(data, at + 8)
                value_at = at + 12
            elif representation.isalpha() and representation.isupper():
                length = short
            # Otherwise this one element is written implicitly, as some writers do.
        if tag in (_ITEM_END, _SEQUENCE_END):
            if depth == 0:
                return
            depth -= 1
            at = value_at
            if depth == 0 and opened is not None:
                yield (*opened, at)
                opened = None
            continue
        if tag == PIXEL_DATA and depth == 0:
            yield tag, representation, value_at, length, min(value_at + length, stop)
            return
        if length == _UNDEFINED:
            if depth == 0:
                opened = (tag, representation, value_at, length)
            depth += 1
            at = value_at
            continue
        at = value_at + length
        if depth == 0:
            yield tag, representation, value_at, length, min(at, stop)


def _first_item(data: bytes, at: int, implicit: bool, order: str) -> dict[int, memoryview]:
    """The elements of a sequence's first item; empty if it has none."""
    if len(data) < at + 8:
        return {}
    group, element, length = struct.unpack_from(order + "HHI", data, at)
    if group << 16 | element != _ITEM:
        return {}
    stop = None if length == _UNDEFINED else at + 8 + length
    return {
        tag: memoryview(data)[value_at:end]
        for tag, _, value_at, size, end in _elements(data, at + 8, implicit, order, stop)
        if size != _UNDEFINED
    }


def _inflate(data: bytes, limit: int) -> bytes:
    """Inflates up to `limit` bytes; refuses more than that of a file that is read in full."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, limit)
    except zlib.error:
        raise Refused("its deflated data is damaged") from None
    if inflater.unconsumed_tail and limit == _MAX_INFLATED_BYTES:
        raise Refused(f"it inflates to more than {limit // 2**20} MiB")
    return inflated


def single_frame(value: memoryview) -> bytes:
    """Joins the fragments of encapsulated pixel data to one compressed image (PS3.5 A.4).

    The last fragment may be cut short, and the delimiter missing: the decoder finds out whether
    the image is whole.

    Raises:
      Refused: there are too many fragments, or none.
    """
    at, fragments = 0, list[memoryview]()
    while at + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHI", value, at)
        if group << 16 | element != _ITEM:
            break
        if len(fragments) == _MAX_FRAGMENTS:
            raise Refused(f"its pixel data is in more than {_MAX_FRAGMENTS} fragments")
        fragments.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    # The first item is the offset table, which one frame does not need.
    frame = b"".join(fragments[1:])
    if not frame:
        raise Refused("its pixel data is cut short")
    return frame
