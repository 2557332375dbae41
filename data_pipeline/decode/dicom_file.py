"""The few elements of a DICOM file that a picture needs, read without the rest.

Written for this purpose instead of parsing everything: names, addresses and comments are skipped
over and never become text in memory, nothing in the file is followed recursively, and the header
of one file costs a fraction of a millisecond, which counts for 300,000 of them.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Container, Iterator

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


@dataclasses.dataclass(frozen=True)
class DicomFile:
    """Elements by tag, as raw bytes, with what is needed to interpret them.

    Attributes:
      transfer_syntax: UID of the encoding of the pixel data; empty where the file does not say.
      little_endian: byte order of binary values.
      elements: tag -> value. Pixel data in fragments keeps its item headers.
      items: tag of a sequence -> elements of its first item.
      encapsulated: the pixel data is in fragments, that is, compressed.
    """

    transfer_syntax: str
    little_endian: bool
    elements: dict[int, bytes]
    items: dict[int, dict[int, bytes]]
    encapsulated: bool

    def text(self, tag: int) -> str:
        """The value as text without padding; empty if absent."""
        value = self.elements.get(tag, b"")[:1024]
        return bytes(value).decode("ascii", "replace").strip(" \0\t\r\n")

    def number(self, tag: int) -> int | None:
        """The first 16-bit unsigned value; None if absent."""
        value = self.elements.get(tag, b"")
        return int.from_bytes(value[:2], self.byte_order) if len(value) >= 2 else None

    def decimals(self, tag: int) -> list[float]:
        """The values of a decimal string; those that are no number are left out."""
        numbers = []
        for part in self.text(tag).split("\\"):
            try:
                number = float(part)
            except ValueError:
                continue
            if abs(number) < 1e12:  # neither infinite nor NaN
                numbers.append(number)
        return numbers

    @property
    def byte_order(self) -> str:
        return "little" if self.little_endian else "big"


def parse_dicom(data: bytes, wanted: Container[int], sequences: Container[int]) -> DicomFile:
    """Parses a whole file, or its beginning as far as the pixel data.

    Args:
      data: the file's bytes.
      wanted: tags of the elements to keep.
      sequences: tags of the sequences whose first item to keep.

    Raises:
      Refused: the file says nothing that can be parsed, or inflates beyond reason.
    """
    start = 132 if data[128:132] == b"DICM" else 0
    syntax = ""
    if data[start : start + 2] == b"\x02\0":
        for tag, _, value_at, length, end in _elements(data, start, False, "<"):
            if tag >> 16 != 2:
                break
            start = end
            if tag == _TRANSFER_SYNTAX:
                syntax = data[value_at : value_at + length].decode("ascii", "replace").strip("\0 ")
    if syntax == DEFLATED:
        data, start = _inflate(data[start:]), 0
    order = ">" if syntax == EXPLICIT_BIG else "<"
    implicit = syntax == IMPLICIT_LITTLE
    head = data[start : start + 6]
    if len(head) == 6:
        # What stands there decides over what is declared: wrong declarations are common.
        if not syntax and head[0] == 0 and head[1] != 0:
            order = ">"
        implicit = not head[4:6].isalpha() or not head[4:6].isupper()
    elements, items, encapsulated = {}, {}, False
    for tag, _, value_at, length, end in _elements(data, start, implicit, order):
        if tag == PIXEL_DATA:
            encapsulated = length == _UNDEFINED
        if tag in wanted:
            elements[tag] = memoryview(data)[value_at : None if length == _UNDEFINED else end]
        elif tag in sequences:
            items[tag] = _first_item(data, value_at, implicit, order)
    return DicomFile(syntax, order == "<", elements, items, encapsulated)


def _elements(
    data: bytes, at: int, implicit: bool, order: str, stop: int | None = None
) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Yields `tag, representation, value_at, length, end` of every element at the top level.

    Elements inside sequences of undefined length are passed over by counting delimiters. Ends at
    `stop`, at the end of an item, at the pixel data, or where the data is cut short.
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


def _first_item(data: bytes, at: int, implicit: bool, order: str) -> dict[int, bytes]:
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


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, _MAX_INFLATED_BYTES)
    except zlib.error:
        raise Refused("its deflated data is damaged") from None
    if inflater.unconsumed_tail:
        raise Refused(f"it inflates to more than {_MAX_INFLATED_BYTES // 2**20} MiB")
    return inflated


def single_frame(value: bytes) -> bytes:
    """The compressed picture of encapsulated pixel data, its fragments joined.

    Raises:
      Refused: the fragments are cut short.
    """
    at, fragments, whole = 0, [], False
    while at + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHI", value, at)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            whole = True
            break
        if tag != _ITEM or at + 8 + length > len(value):
            break
        fragments.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    # The first item is the offset table, which one frame does not need.
    if len(fragments) < 2 or not whole:
        raise Refused("its pixel data is cut short")
    return b"".join(fragments[1:])
