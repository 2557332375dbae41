"""What is no radiograph is refused by name, soon and in little memory."""

import contextlib
import math
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from image_files import SECRET, dicom_bytes, jpeg_2000, picture_bytes, ramp
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from data_pipeline.adapters import headers
from data_pipeline.decode import read_radiograph
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import MAX_PIXELS, Refused
from data_pipeline.errors import UnreadableImage

REFUSED = {
    "mammogram": ({"Modality": "MG"}, "mammogram"),
    "mammogram by class": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, "mammogram"),
    "breast": ({"BodyPartExamined": "BREAST"}, "mammogram"),
    "ct": ({"Modality": "CT"}, "a CT slice (CT)"),
    "unknown modality": ({"Modality": "XYZ"}, "modality"),
    "animal": ({"AcquisitionDeviceProcessingDescription": "CANINE THORAX"}, "animal"),
    "species": ({"PatientSpeciesDescription": "Feline"}, "animal"),
    "frames": ({"NumberOfFrames": 3}, "3 frames"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    "no size": ({"remove": ("Rows",)}, "no size"),
    "no rows": ({"Rows": 0}, "impossible size"),
    "too large": ({"Rows": 60000, "Columns": 60000}, "limit"),
    "32 bits": ({"BitsAllocated": 32}, "32 bits"),
    "more bits stored than allocated": ({"BitsStored": 17}, "contradicts itself"),
    "cut short": ({"Rows": 61}, "cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_radiograph_is_refused_by_name(read, name):
    elements, reason = REFUSED[name]
    with pytest.raises(UnreadableImage) as caught:
        read(dicom_bytes(ramp(), **elements))
    assert reason in caught.value.reason
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(caught.value.path)


def test_no_pixel_data_is_said_so(read):
    data = dicom_bytes(ramp())
    at = data.index(b"\xe0\x7f\x10\0OW")
    with pytest.raises(UnreadableImage, match="no pixel data"):
        read(data[:at])


def test_a_picture_of_another_size_than_declared_is_refused(read):
    large = picture_bytes(np.zeros((500, 500), np.uint8), "JPEG")
    data = dicom_bytes(np.zeros((50, 50), np.uint8), syntax=JPEGBaseline8Bit, compressed=large)
    with pytest.raises(UnreadableImage, match="500x500 pixels of 1 samples, its header says 50x50"):
        read(data)


def test_bombs_are_refused_before_they_take_memory(read):
    deflated = dicom_bytes(ramp(), syntax=DeflatedExplicitVRLittleEndian)
    at = deflated.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    with pytest.raises(UnreadableImage, match="inflates to more than"):
        read(deflated[:at] + zeros)
    side = int(math.sqrt(MAX_PIXELS))
    segment = b"\x01\0\0\0" + b"\x40\0\0\0" + bytes(56) + b"\x81\0" * 100
    bomb = dicom_bytes(
        np.zeros((8, 8), np.uint8), syntax="1.2.840.10008.1.2.5", compressed=segment,
        Rows=side, Columns=side,
    )  # fmt: skip
    with pytest.raises(UnreadableImage, match="too short for its size"):
        read(bomb)


def fragments(count):
    """An encapsulated DICOM file of so many empty fragments."""
    data = dicom_bytes(ramp(), syntax=JPEG2000Lossless, compressed=jpeg_2000(ramp()))
    at = data.index(b"\xfe\xff\0\xe0")
    return data[:at] + b"\xfe\xff\0\xe0\0\0\0\0" * count + b"\xfe\xff\xdd\xe0\0\0\0\0"


def repeated(element, count):
    """A DICOM file with an element many times before its pixel data."""
    data = dicom_bytes(ramp())
    at = data.index(b"\x28\0\2\0US")
    return data[:at] + element * count + data[at:]


VOI_LUT = b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff"
ITEM = b"\xfe\xff\0\xe0\xff\xff\xff\xff"
HOSTILE = {
    "fragments": (lambda: fragments(5_000_000), "more than 100000 fragments"),
    "elements": (lambda: repeated(b"\x09\0\1\0LO\0\0", 2_000_000), "more than 200000 elements"),
    "sequences": (lambda: repeated(VOI_LUT, 1_000_000), "more than 200000 elements"),
    "nesting": (lambda: repeated(VOI_LUT + ITEM, 500_000), "more than 200000 elements"),
    "items": (
        lambda: repeated(VOI_LUT + b"\xfe\xff\0\xe0\0\0\0\0" * 2_000_000, 1),
        "more than 200000 elements",
    ),
    "long items, again and again": (
        lambda: repeated(b"\x28\0\x10\x30SQ\0\0\0\0\0\0\xfe\xff\0\xe0\0\0\0\0", 90_000),
        None,
    ),
    "a large private element": (
        lambda: repeated(b"\x09\0\1\0OB\0\0" + (10**8).to_bytes(4, "little") + bytes(10**8), 1),
        None,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_soon(tmp_path, name):
    file, reason = HOSTILE[name]
    path = tmp_path / "image"
    path.write_bytes(file())
    start = time.process_time()
    if reason is None:
        read_radiograph(path)
    else:
        with pytest.raises(UnreadableImage, match=reason):
            read_radiograph(path)
    with contextlib.suppress(Refused):
        read_header(path)
    assert time.process_time() - start < 2


def test_the_header_of_a_bomb_takes_little_memory(tmp_path):
    deflated = dicom_bytes(ramp(), syntax=DeflatedExplicitVRLittleEndian)
    at = deflated.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = b"\x09\0\1\0OB\0\0\xff\xff\xff\x7f"
    bomb = packer.compress(private) + packer.compress(bytes(2**27)) + packer.flush()
    path = tmp_path / "image"
    path.write_bytes(deflated[:at] + bomb)
    tracemalloc.start()
    try:
        read_header(path)
        assert headers._birth_date(str(path)) == ""
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
