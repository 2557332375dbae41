"""DICOM decoder: checks, header, pixel data, greys, display shutter, orientation.

`greyscale` turns stored values to greys, `codecs` decompresses pixel data, `dicom_file` parses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable

import numpy as np

from data_pipeline.cells import folded
from data_pipeline.decode import codecs, tags
from data_pipeline.decode.age import age_months
from data_pipeline.decode.dicom_file import PIXEL_DATA, DicomFile, parse_dicom
from data_pipeline.decode.geometry import SHUTTER_TAGS, shutter, standard_view
from data_pipeline.decode.greyscale import render
from data_pipeline.decode.preprocessing import square_pixels
from data_pipeline.decode.radiograph import Header, Radiograph, Refused, check_size, read_file

_HEADER = tags.HEADER | SHUTTER_TAGS

# Plain radiographs, and the modalities that viewers export them as. Others are refused by name.
_RADIOGRAPHY = frozenset({"CR", "DX", "DR", "RG", "OT", "SC", ""})
_OTHER_MODALITIES = {
    "MG": "a mammogram",
    "BMD": "a bone densitometry",
    "CT": "a CT slice",
    "MR": "an MR slice",
    "US": "an ultrasound image",
    "NM": "a nuclear medicine image",
    "PT": "a PET slice",
    "XA": "an angiogram",
    "RF": "a fluoroscopy image",
    "IO": "a dental image",
    "PX": "a panoramic dental image",
    "ES": "an endoscopy image",
    "XC": "a photograph",
    "GM": "a microscopy image",
    "SM": "a microscopy image",
    "OP": "an ophthalmic photograph",
    "PR": "a presentation state, which holds no image",
    "SR": "a report, which holds no image",
    "KO": "a list of key images, which holds no image",
    "DOC": "a document",
    "SEG": "a segmentation",
    "ECG": "an electrocardiogram",
}
_MAMMOGRAPHY_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3")
_DENTAL_CLASS = "1.2.840.10008.5.1.4.1.1.1.3"
_RAW_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-ray for processing.
_ANIMAL = re.compile(r"\b(canine|feline|equine|bovine|avian|veterinar\w*)\b", re.IGNORECASE)

_COMPANY = re.compile(r"[A-Za-z0-9 .,&()/+-]{1,64}")
_YEAR = re.compile(r"(19|20)\d\d", re.ASCII)

# Sides of a pixel that differ by less are equal: measured sizes never are exactly.
_SQUARE = 0.01
# The sides of a pixel of a detector or scanner never differ by more than this factor.
_MAX_PIXEL_ASPECT = 4.0
_HEADER_READ_BYTES = 2**18
_HEADER_INFLATED_BYTES = 2**22


def read_dicom(data: bytes, shortest_side: Callable[[int, int], int] | None = None) -> Radiograph:
    """Decodes the content of a DICOM file.

    Args:
      data: the file's bytes.
      shortest_side: given height and width, the minimum of the shorter side; JPEG is decoded at
        reduced scale accordingly. None decodes in full.

    Raises:
      Refused: the file holds no plain radiograph, or its pixel data cannot be decoded.
    """
    dicom = parse_dicom(data, _HEADER | {PIXEL_DATA}, tags.SEQUENCES)
    refuse_foreign(dicom)
    if PIXEL_DATA not in dicom.elements:
        raise Refused("it has a header but no pixel data, or is cut short before it")
    layout = _layout(dicom)
    header = _header(dicom)
    notes = list(header.notes)
    aspect = _pixel_aspect(dicom, notes)
    least = None
    if shortest_side and aspect == 1.0:
        least = shortest_side(layout.rows, layout.columns)
    stored, in_color = codecs.decode(dicom, layout, least)
    inside = shutter(dicom, stored.shape, (layout.rows, layout.columns), notes)
    if layout.color:
        pixels, bits = stored, layout.stored
        if in_color:
            notes.append("in colour")
    else:
        pixels, bits = render(dicom, layout, stored, inside, notes)
    if inside is not None:
        pixels = np.where(inside, pixels, pixels.dtype.type(0))
    if aspect != 1.0:
        pixels = square_pixels(pixels, aspect)
    orientation = dicom.text(tags.ORIENTATION).upper()
    pixels = standard_view(pixels, orientation, header.view, header.body_part, notes)
    return Radiograph(pixels, dataclasses.replace(header, bits=bits, notes=tuple(notes)))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header, without decoding the image.

    Raises:
      Refused: the file holds no plain radiograph, or cannot be read.
    """
    data = read_file(path, _HEADER_READ_BYTES)
    dicom = parse_dicom(data, _HEADER | {PIXEL_DATA}, tags.SEQUENCES, _HEADER_INFLATED_BYTES)
    if PIXEL_DATA not in dicom.elements and len(data) == _HEADER_READ_BYTES:
        data = read_file(path)
        dicom = parse_dicom(data, _HEADER | {PIXEL_DATA}, tags.SEQUENCES, _HEADER_INFLATED_BYTES)
    refuse_foreign(dicom)
    return _header(dicom)


def refuse_foreign(dicom: DicomFile) -> None:
    """Refuses files that are not a plain radiograph of a person.

    Raises:
      Refused: with the kind of image, never with text of the header.
    """
    modality = dicom.text(tags.MODALITY).upper()
    sop_class = dicom.text(tags.SOP_CLASS)
    if (
        modality == "MG"
        or sop_class.startswith(_MAMMOGRAPHY_CLASSES)
        or dicom.text(tags.BODY_PART).upper() == "BREAST"
    ):
        raise Refused("a mammogram (modality MG), not a plain radiograph")
    if sop_class.startswith(_DENTAL_CLASS):
        raise Refused("a dental image, not a plain radiograph")
    if modality not in _RADIOGRAPHY:
        if modality in _OTHER_MODALITIES:
            raise Refused(f"{_OTHER_MODALITIES[modality]} ({modality}), not a plain radiograph")
        raise Refused("its modality is not that of a plain radiograph (CR, DX, RG)")
    descriptions = (
        tags.PROCESSING,
        tags.PROTOCOL,
        tags.STUDY_DESCRIPTION,
        tags.SERIES_DESCRIPTION,
        tags.BODY_PART,
    )
    species = dicom.text(tags.SPECIES).lower()
    if (
        any(_ANIMAL.search(dicom.text(tag)) for tag in descriptions)
        or (species and not species.startswith(("human", "homo sapiens")))
        or dicom.text(tags.BREED)
    ):
        raise Refused("a veterinary image: its header says that it shows an animal")
    frames = dicom.decimals(tags.FRAMES)
    if frames and frames[0] > 1:
        raise Refused(f"it holds {frames[0]:.0f} frames; a radiograph is one")


def _layout(dicom: DicomFile) -> codecs.Layout:
    rows, columns = dicom.number(tags.ROWS), dicom.number(tags.COLUMNS)
    if rows is None or columns is None:
        raise Refused("its header gives no size (Rows, Columns)")
    check_size(rows, columns)
    allocated = dicom.number(tags.ALLOCATED) or 16
    stored = dicom.number(tags.STORED) or allocated
    high_bit = dicom.number(tags.HIGH_BIT)
    high_bit = stored - 1 if high_bit is None else high_bit
    if allocated not in (8, 16):
        raise Refused(f"its pixels take {allocated} bits; 8 and 16 can be read")
    if not 0 < stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise Refused(f"its header contradicts itself: {stored} bits stored in {allocated}")
    samples = dicom.number(tags.SAMPLES) or 1
    photometric = dicom.text(tags.PHOTOMETRIC).upper() or ("RGB" if samples == 3 else "MONOCHROME2")
    expected = ("MONOCHROME1", "MONOCHROME2") if samples == 1 else ("RGB", "YBR")
    if samples not in (1, 3) or not photometric.startswith(expected):
        name = photometric if photometric.isprintable() and len(photometric) <= 16 else "unknown"
        name = name if re.fullmatch(r"[A-Z0-9_ ]+", name) else "unknown"
        raise Refused(f"its pixels are {samples} x {name}; greys, RGB and YBR can be read")
    if samples == 3 and allocated != 8:
        raise Refused("its colours have more than 8 bits")
    return codecs.Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        planar=dicom.number(tags.PLANAR) == 1,
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        signed=dicom.number(tags.SIGNED) == 1,
    )


def _header(dicom: DicomFile) -> Header:
    notes: list[str] = []
    dates = dicom.text(tags.BIRTH_DATE), dicom.text(tags.STUDY_DATE)
    age = age_months(dicom.text(tags.AGE), *dates, notes)
    if (
        dicom.text(tags.INTENT).upper() == "FOR PROCESSING"
        or dicom.text(tags.SOP_CLASS) == _RAW_CLASS
    ):
        notes.append("raw detector data (FOR PROCESSING), not as a viewer shows an image")
    identifier = bytes(dicom.value(tags.PATIENT_ID, 256)).strip(b" \0")
    sex = dicom.text(tags.SEX).upper()
    manufacturer = dicom.text(tags.MANUFACTURER)
    year = dicom.text(tags.STUDY_DATE)[:4]
    spelled = folded(identifier.decode("utf-8", "replace")).encode()
    keys = [
        hashlib.blake2b(each, digest_size=8, person=b"infantxray").hexdigest()
        for each in (identifier, spelled)
    ]
    return Header(
        age_months=age,
        sex=sex if sex in ("F", "M") else "",
        view=_code(dicom.text(tags.VIEW)),
        body_part=_code(dicom.text(tags.BODY_PART)),
        modality=_code(dicom.text(tags.MODALITY)),
        manufacturer=manufacturer if _COMPANY.fullmatch(manufacturer) else "",
        year=year if _YEAR.fullmatch(year) else "",
        tube_voltage_kv=next((v for v in dicom.decimals(tags.TUBE_VOLTAGE) if v > 0), math.nan),
        pixel_spacing_mm=_pair(dicom, tags.SPACING, tags.IMAGER_SPACING) or (math.nan, math.nan),
        patient_key=keys[0] if identifier else "",
        patient_alike=keys[1] if identifier else "",
        bits=dicom.number(tags.STORED) or 0,
        size=(dicom.number(tags.ROWS) or 0, dicom.number(tags.COLUMNS) or 0),
        notes=tuple(notes),
    )


def _code(text: str) -> str:
    """A coded value (VR CS, PS3.5 6.2); empty for free text, which may contain a name."""
    text = text.upper()
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else ""


def _pair(dicom: DicomFile, *tags: int) -> tuple[float, float] | None:
    """The first of these elements that holds two positive numbers."""
    for tag in tags:
        numbers = dicom.decimals(tag)
        if len(numbers) == 2 and min(numbers) > 0:
            return numbers[0], numbers[1]
    return None


def _pixel_aspect(dicom: DicomFile, notes: list[str]) -> float:
    """Height of a pixel over its width (PS3.3 C.7.6.3.1.7); 1 if they are nearly equal."""
    height, width = _pair(dicom, tags.SPACING, tags.IMAGER_SPACING, tags.PIXEL_ASPECT) or (1.0, 1.0)
    aspect = height / width
    if abs(aspect - 1.0) <= _SQUARE:
        return 1.0
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        notes.append("pixels of impossible proportions; taken as square")
        return 1.0
    notes.append("pixels are not square; stretched to the image's proportions")
    return aspect
