"""DICOM decoder: stored values to greys, in the order of the standard.

Modality LUT or rescale (PS3.3 C.11.1), VOI LUT or window (C.11.2), then polarity, once: photometric
interpretation (C.7.6.3.1.2) and presentation shape (C.11.6). Every step acts on single values, so
all of them together are one table over at most 65,536 values: exact, fast, and without a copy of
the image in floating point. Padding, display shutter and patient orientation follow.
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
from data_pipeline.decode import codecs
from data_pipeline.decode.age import age_months
from data_pipeline.decode.dicom_file import PIXEL_DATA, DicomFile, parse_dicom
from data_pipeline.decode.geometry import SHUTTER_TAGS, shutter, standard_view
from data_pipeline.decode.percentiles import histogram, percentiles, window_by_percentiles
from data_pipeline.decode.preprocessing import square_pixels
from data_pipeline.decode.radiograph import Header, Radiograph, Refused, check_size, read_file

_SOP_CLASS, _STUDY_DATE, _MODALITY, _INTENT = 0x00080016, 0x00080020, 0x00080060, 0x00080068
_MANUFACTURER, _ORIENTATION = 0x00080070, 0x00200020
_STUDY_DESCRIPTION, _SERIES_DESCRIPTION = 0x00081030, 0x0008103E
_PATIENT_ID, _BIRTH_DATE, _SEX, _AGE = 0x00100020, 0x00100030, 0x00100040, 0x00101010
_SPECIES, _SPECIES_CODE, _BREED = 0x00102201, 0x00102202, 0x00102292
_BODY_PART, _PROTOCOL, _PROCESSING = 0x00180015, 0x00181030, 0x00181400
_TUBE_VOLTAGE, _IMAGER_SPACING, _VIEW = 0x00180060, 0x00181164, 0x00185101
_SAMPLES, _PHOTOMETRIC, _PLANAR = 0x00280002, 0x00280004, 0x00280006
_FRAMES, _ROWS, _COLUMNS = 0x00280008, 0x00280010, 0x00280011
_SPACING, _PIXEL_ASPECT = 0x00280030, 0x00280034
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_CENTER, _WIDTH = 0x00281050, 0x00281051
_INTERCEPT, _SLOPE, _WINDOW_FUNCTION = 0x00281052, 0x00281053, 0x00281056
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_PRESENTATION_SHAPE, _OVERLAY_BIT = 0x20500020, 0x60000102

_HEADER_TAGS = SHUTTER_TAGS | frozenset(
    {_SOP_CLASS, _STUDY_DATE, _MODALITY, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PATIENT_ID}
    | {_BIRTH_DATE, _SEX, _AGE, _SPECIES, _BREED, _BODY_PART, _PROTOCOL, _PROCESSING}
    | {_IMAGER_SPACING, _VIEW, _SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS}
    | {_SPACING, _ALLOCATED, _STORED, _HIGH_BIT, _SIGNED, _PADDING, _CENTER, _WIDTH}
    | {_INTERCEPT, _SLOPE, _WINDOW_FUNCTION, _PRESENTATION_SHAPE, _OVERLAY_BIT}
    | {_INTENT, _PIXEL_ASPECT, _MANUFACTURER, _ORIENTATION, _PADDING_LIMIT, _TUBE_VOLTAGE}
)
_SEQUENCES = frozenset({_MODALITY_LUT, _VOI_LUT, _SPECIES_CODE})

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
# A window is useless if it leaves more than this share of the image black or white, or if the image
# between its 1st and 99th percentile fills less than this share of the greys.
_MAX_SATURATED = 0.9
_MIN_CONTRAST = 0.1
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
    dicom = parse_dicom(data, _HEADER_TAGS | {PIXEL_DATA}, _SEQUENCES)
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
        pixels, bits = _render(dicom, layout, stored, inside, notes)
    if inside is not None:
        pixels = np.where(inside, pixels, pixels.dtype.type(0))
    if aspect != 1.0:
        pixels = square_pixels(pixels, aspect)
    orientation = dicom.text(_ORIENTATION).upper()
    pixels = standard_view(pixels, orientation, header.view, header.body_part, notes)
    return Radiograph(pixels, dataclasses.replace(header, bits=bits, notes=tuple(notes)))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header, without decoding the image.

    Raises:
      Refused: the file holds no plain radiograph, or cannot be read.
    """
    data = read_file(path, _HEADER_READ_BYTES)
    dicom = parse_dicom(data, _HEADER_TAGS | {PIXEL_DATA}, _SEQUENCES, _HEADER_INFLATED_BYTES)
    if PIXEL_DATA not in dicom.elements and len(data) == _HEADER_READ_BYTES:
        data = read_file(path)
        dicom = parse_dicom(data, _HEADER_TAGS | {PIXEL_DATA}, _SEQUENCES, _HEADER_INFLATED_BYTES)
    refuse_foreign(dicom)
    return _header(dicom)


def refuse_foreign(dicom: DicomFile) -> None:
    """Refuses files that are not a plain radiograph of a person.

    Raises:
      Refused: with the kind of image, never with text of the header.
    """
    modality = dicom.text(_MODALITY).upper()
    sop_class = dicom.text(_SOP_CLASS)
    if (
        modality == "MG"
        or sop_class.startswith(_MAMMOGRAPHY_CLASSES)
        or dicom.text(_BODY_PART).upper() == "BREAST"
    ):
        raise Refused("a mammogram (modality MG), not a plain radiograph")
    if sop_class.startswith(_DENTAL_CLASS):
        raise Refused("a dental image, not a plain radiograph")
    if modality not in _RADIOGRAPHY:
        if modality in _OTHER_MODALITIES:
            raise Refused(f"{_OTHER_MODALITIES[modality]} ({modality}), not a plain radiograph")
        raise Refused("its modality is not that of a plain radiograph (CR, DX, RG)")
    descriptions = (_PROCESSING, _PROTOCOL, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _BODY_PART)
    species = dicom.text(_SPECIES).lower()
    if (
        any(_ANIMAL.search(dicom.text(tag)) for tag in descriptions)
        or (species and not species.startswith(("human", "homo sapiens")))
        or dicom.text(_BREED)
    ):
        raise Refused("a veterinary image: its header says that it shows an animal")
    frames = dicom.decimals(_FRAMES)
    if frames and frames[0] > 1:
        raise Refused(f"it holds {frames[0]:.0f} frames; a radiograph is one")


def _layout(dicom: DicomFile) -> codecs.Layout:
    rows, columns = dicom.number(_ROWS), dicom.number(_COLUMNS)
    if rows is None or columns is None:
        raise Refused("its header gives no size (Rows, Columns)")
    check_size(rows, columns)
    allocated = dicom.number(_ALLOCATED) or 16
    stored = dicom.number(_STORED) or allocated
    high_bit = dicom.number(_HIGH_BIT)
    high_bit = stored - 1 if high_bit is None else high_bit
    if allocated not in (8, 16):
        raise Refused(f"its pixels take {allocated} bits; 8 and 16 can be read")
    if not 0 < stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise Refused(f"its header contradicts itself: {stored} bits stored in {allocated}")
    samples = dicom.number(_SAMPLES) or 1
    photometric = dicom.text(_PHOTOMETRIC).upper() or ("RGB" if samples == 3 else "MONOCHROME2")
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
        planar=dicom.number(_PLANAR) == 1,
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        signed=dicom.number(_SIGNED) == 1,
    )


def _header(dicom: DicomFile) -> Header:
    notes: list[str] = []
    dates = dicom.text(_BIRTH_DATE), dicom.text(_STUDY_DATE)
    age = age_months(dicom.text(_AGE), *dates, notes)
    if dicom.text(_INTENT).upper() == "FOR PROCESSING" or dicom.text(_SOP_CLASS) == _RAW_CLASS:
        notes.append("raw detector data (FOR PROCESSING), not as a viewer shows an image")
    identifier = bytes(dicom.value(_PATIENT_ID, 256)).strip(b" \0")
    sex = dicom.text(_SEX).upper()
    manufacturer = dicom.text(_MANUFACTURER)
    year = dicom.text(_STUDY_DATE)[:4]
    spelled = folded(identifier.decode("utf-8", "replace")).encode()
    keys = [
        hashlib.blake2b(each, digest_size=8, person=b"infantxray").hexdigest()
        for each in (identifier, spelled)
    ]
    return Header(
        age_months=age,
        sex=sex if sex in ("F", "M") else "",
        view=_code(dicom.text(_VIEW)),
        body_part=_code(dicom.text(_BODY_PART)),
        modality=_code(dicom.text(_MODALITY)),
        manufacturer=manufacturer if _COMPANY.fullmatch(manufacturer) else "",
        year=year if _YEAR.fullmatch(year) else "",
        tube_voltage_kv=next((v for v in dicom.decimals(_TUBE_VOLTAGE) if v > 0), math.nan),
        pixel_spacing_mm=_pair(dicom, _SPACING, _IMAGER_SPACING) or (math.nan, math.nan),
        patient_key=keys[0] if identifier else "",
        patient_alike=keys[1] if identifier else "",
        bits=dicom.number(_STORED) or 0,
        size=(dicom.number(_ROWS) or 0, dicom.number(_COLUMNS) or 0),
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
    height, width = _pair(dicom, _SPACING, _IMAGER_SPACING, _PIXEL_ASPECT) or (1.0, 1.0)
    aspect = height / width
    if abs(aspect - 1.0) <= _SQUARE:
        return 1.0
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        notes.append("pixels of impossible proportions; taken as square")
        return 1.0
    notes.append("pixels are not square; stretched to the image's proportions")
    return aspect


def _render(
    dicom: DicomFile,
    layout: codecs.Layout,
    stored: np.ndarray,
    inside: np.ndarray | None,
    notes: list[str],
) -> tuple[np.ndarray, int]:
    """Greys at full range, bright = dense, and their bits.

    Args:
      dicom: the parsed file.
      layout: of its pixel data.
      stored: values `[H, W]`, unsigned.
      inside: boolean `[H, W]`, the pixels that the window is to show. None means all.
      notes: gets a note for every decision.
    """
    bits = layout.stored
    shift = layout.high_bit + 1 - bits
    if shift:
        stored = stored >> np.uint8(shift)
    maximum = int(stored.max())
    if maximum >= 2**bits:
        # Bits above those declared: a sign, an overlay in the pixels, or a wrong header.
        if layout.signed or dicom.number(_OVERLAY_BIT):
            stored = stored & stored.dtype.type(2**bits - 1)
        else:
            bits = maximum.bit_length()
            notes.append(f"pixels use {bits} bits, the header declares {layout.stored}")
    values = np.arange(2**bits, dtype=np.float64)
    if layout.signed:
        values[2 ** (bits - 1) :] -= 2**bits
    counts = histogram(stored if inside is None else stored[inside], 2**bits)
    padding = _padding(dicom, layout, values)
    if counts[~padding].any():
        counts[padding] = 0
    elif np.count_nonzero(counts) > 1:
        notes.append("pixel padding ignored: it covers the whole image")
        padding[:] = False
    values, modality_bits = _modality_values(dicom, layout, values, bits)
    greys = _window(dicom, layout, values, counts, modality_bits, notes)
    mono1 = layout.photometric.startswith("MONOCHROME1")
    inverse = dicom.text(_PRESENTATION_SHAPE).upper() == "INVERSE"
    if inverse and not mono1:
        notes.append("presentation shape INVERSE contradicts MONOCHROME2; inverted")
    if mono1 or inverse:  # Once: both elements state the same.
        greys = 1.0 - greys
    greys[padding] = 0.0
    dtype = np.uint8 if stored.dtype == np.uint8 and _MODALITY_LUT not in dicom.items else np.uint16
    table = np.rint(np.clip(greys, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return table[stored], bits


def _padding(dicom: DicomFile, layout: codecs.Layout, values: np.ndarray) -> np.ndarray:
    """Boolean, for every value: it marks pixels outside the image (PS3.3 C.7.5.1.1.2).

    With a Pixel Padding Range Limit, so do all values between it and the Pixel Padding Value.
    """
    ends = [dicom.number(tag) for tag in (_PADDING, _PADDING_LIMIT)]
    if ends[0] is None:
        return np.zeros(len(values), bool)
    marks = [end for end in ends if end is not None]
    if layout.signed:
        half = len(values) // 2  # Some writers do not extend the sign to 16 bits.
        marks = [
            end - 2**16 if end >= 2**15 else end - 2 * half if half <= end < 2 * half else end
            for end in marks
        ]
    return (values >= min(marks)) & (values <= max(marks))


def _modality_values(
    dicom: DicomFile, layout: codecs.Layout, values: np.ndarray, bits: int
) -> tuple[np.ndarray, int]:
    """Values after the modality LUT or the rescale, and the bits that they span."""
    lut = _lut(dicom, dicom.items.get(_MODALITY_LUT), layout.signed)
    if lut is not None:
        entries, first, lut_bits = lut
        return entries[_lut_index(values, first, len(entries))], lut_bits
    slope = (dicom.decimals(_SLOPE) or [1.0])[0] or 1.0
    intercept = (dicom.decimals(_INTERCEPT) or [0.0])[0]
    return values * slope + intercept, bits


def _lut(
    dicom: DicomFile, item: dict[int, memoryview] | None, signed: bool
) -> tuple[np.ndarray, int, int] | None:
    """Entries, first value mapped, and bits of an entry; None without a usable table.

    pydicom 3.0.2 wraps 8-bit tables of more than 256 entries and fails on 12-bit ones.
    """
    if not item:
        return None
    if not {_LUT_DESCRIPTOR, _LUT_DATA} <= item.keys() or len(item[_LUT_DESCRIPTOR]) < 6:
        return None
    descriptor, data = item[_LUT_DESCRIPTOR], item[_LUT_DATA][: 2 * 65536]
    count, first, bits = (
        int.from_bytes(descriptor[i : i + 2], dicom.byte_order) for i in (0, 2, 4)
    )
    count = count or 65536
    if signed and first >= 2**15:
        first -= 2**16
    order = "<" if dicom.little_endian else ">"
    if len(data) >= 2 * count:
        entries: np.ndarray = np.frombuffer(data, order + "u2", count)
    elif len(data) >= count and bits <= 8:
        # Two entries a word; in big-endian words the second comes first.
        packed = np.frombuffer(data, np.uint8)
        if not dicom.little_endian and len(packed) % 2 == 0:
            packed = packed.reshape(-1, 2)[:, ::-1].ravel()
        entries = packed[:count]
    else:
        return None
    # Declared bits are often wrong: never fewer than the entries need.
    bits = max(bits if 1 <= bits <= 16 else 1, int(entries.max()).bit_length())
    return entries.astype(np.float64), first, bits


def _lut_index(values: np.ndarray, first: int, count: int) -> np.ndarray:
    return np.asarray(np.clip(np.rint(values) - first, 0, count - 1), np.int64)


def _window(
    dicom: DicomFile,
    layout: codecs.Layout,
    values: np.ndarray,
    counts: np.ndarray,
    bits: int,
    notes: list[str],
) -> np.ndarray:
    """Greys 0 to 1 of every value: by VOI LUT, else the first window, else percentiles."""
    lut = _lut(dicom, dicom.items.get(_VOI_LUT), values.min() < 0)
    if lut is not None:
        entries, first, lut_bits = lut
        index = _lut_index(values, first, len(entries))
        greys: np.ndarray | None = entries[index] / (2**lut_bits - 1)
        source = "lookup table"
    else:
        greys = _stored_window(dicom, values)
        source = "window"
    if greys is not None and _shows(greys, counts):
        return greys
    if greys is not None:
        notes.append(f"stored {source} shows almost nothing; window by percentiles instead")
    elif layout.allocated == 8 and bits <= 8:
        # Eight bits without a window are display values.
        low, high = float(values.min()), float(values.max())
        return np.asarray((values - low) / max(high - low, 1e-9))
    return window_by_percentiles(values, counts)


def _stored_window(dicom: DicomFile, values: np.ndarray) -> np.ndarray | None:
    """The first stored window, by its function (PS3.3 C.11.2.1.2); None without a valid one."""
    centers, widths = dicom.decimals(_CENTER), dicom.decimals(_WIDTH)
    if not centers or not widths:
        return None
    center, width = centers[0], widths[0]
    function = dicom.text(_WINDOW_FUNCTION).upper()
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width < 1:
        return None
    if width == 1:
        return np.where(values > center - 0.5, 1.0, 0.0)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _shows(greys: np.ndarray, counts: np.ndarray) -> bool:
    """Whether the image, given by counts of each value, is neither saturated nor flat."""
    present = counts > 0
    if present.sum() < 3:
        return True  # No window shows more.
    total = counts.sum()
    saturated = counts[(greys <= 0.0) | (greys >= 1.0)].sum() / total
    low, high = percentiles(greys, counts, (1.0, 99.0))
    return saturated <= _MAX_SATURATED and high - low >= _MIN_CONTRAST
