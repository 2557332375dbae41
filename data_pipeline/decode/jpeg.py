"""JPEG markers (ITU T.81 annex B): what a stream contains, checked before it is decoded."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.decode.radiograph import Refused

START = b"\xff\xd8"
END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_MAX_SEGMENTS = 4096
_MAX_SCANS = 40


class JpegFrame(NamedTuple):
    """The frame header.

    Attributes:
      marker: second byte of the SOF marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive,
        0xC3 lossless, 0xF7 JPEG-LS.
      precision: bits of a sample.
      height, width: in pixels.
      samples: components of a pixel.
      tidy: nothing stands between the segments.
    """

    marker: int
    precision: int
    height: int
    width: int
    samples: int
    tidy: bool


def read_frame(data: bytes) -> JpegFrame:
    """Reads the frame header of a JPEG or JPEG-LS stream.

    Raises:
      Refused: there is none before the first scan, or the stream would take too long to decode.
        Decoders step through every segment, and every scan of a progressive JPEG passes over the
        whole image, however little it holds.
    """
    at, frame, tidy = 2, None, True
    for _ in range(_MAX_SEGMENTS):
        end, at = at, data.find(b"\xff", at)
        if not 0 <= at <= len(data) - 10:
            raise Refused("its JPEG data is damaged or cut short")
        marker = data[at + 1]
        tidy &= at == end and marker != 0
        if marker == 0xFF:  # A fill byte.
            at += 1
            continue
        if marker == _START_OF_SCAN:
            break
        if marker in _FRAME_MARKERS and frame is None:
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            frame = JpegFrame(marker, data[at + 4], height, width, data[at + 9], tidy)
        at += 2
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    else:
        raise Refused(f"its JPEG data has more than {_MAX_SEGMENTS} segments")
    if frame is None:
        raise Refused("its JPEG data has no frame header")
    if frame.marker == 0xC2 and data.count(b"\xff\xda") > _MAX_SCANS:
        raise Refused(f"its JPEG data has more than {_MAX_SCANS} progressive scans")
    return frame._replace(tidy=tidy)
