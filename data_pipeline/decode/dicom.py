"""DICOM to greys, in the standard's order: modality values, then window, then polarity, once.

PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (photometric interpretation), C.11.6
(presentation shape). Every step acts on single stored values, so all of them together are one
table over the at most 65,536 values that a pixel can have: exact, fast, and without a float image
in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable

import numpy as np

from data_pipeline.decode import codecs
from data_pipeline.decode.age import age_months
from data_pipeline.decode.dicom_file import PIXEL_DATA, DicomFile, parse_dicom
from data_pipeline.decode.percentiles import histogram, percentiles, window_by_percentiles
from data_pipeline.decode.preprocessing import square_pixels
from data_pipeline.decode.radiograph import Header, Radiograph, Refused, check_size

_SOP_CLASS, _STUDY_DATE, _MODALITY, _INTENT = 0x00080016, 0x00080020, 0x00080060, 0x00080068
_STUDY_DESCRIPTION, _SERIES_DESCRIPTION = 0x00081030, 0x0008103E
_PATIENT_ID, _BIRTH_DATE, _SEX, _AGE = 0x00100020, 0x00100030, 0x00100040, 0x00101010
_SPECIES, _SPECIES_CODE, _BREED = 0x00102201, 0x00102202, 0x00102292
_BODY_PART, _PROTOCOL, _PROCESSING = 0x00180015, 0x00181030, 0x00181400
_IMAGER_SPACING, _VIEW = 0x00181164, 0x00185101
_SAMPLES, _PHOTOMETRIC, _PLANAR = 0x00280002, 0x00280004, 0x00280006
_FRAMES, _ROWS, _COLUMNS = 0x00280008, 0x00280010, 0x00280011
_SPACING, _PIXEL_ASPECT = 0x00280030, 0x00280034
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_PADDING, _CENTER, _WIDTH = 0x00280120, 0x00281050, 0x00281051
_INTERCEPT, _SLOPE, _WINDOW_FUNCTION = 0x00281052, 0x00281053, 0x00281056
_MODALITY_LUT, _VOI_LUT = 0x00283000, 0x00283010
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_PRESENTATION_SHAPE, _OVERLAY_BIT = 0x20500020, 0x60000102

_HEADER_TAGS = frozenset(
    {_SOP_CLASS, _STUDY_DATE, _MODALITY, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PATIENT_ID}
    | {_BIRTH_DATE, _SEX, _AGE, _SPECIES, _BREED, _BODY_PART, _PROTOCOL, _PROCESSING}
    | {_IMAGER_SPACING, _VIEW, _SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS}
    | {_SPACING, _ALLOCATED, _STORED, _HIGH_BIT, _SIGNED, _PADDING, _CENTER, _WIDTH}
    | {_INTERCEPT, _SLOPE, _WINDOW_FUNCTION, _PRESENTATION_SHAPE, _OVERLAY_BIT}
    | {_INTENT, _PIXEL_ASPECT}
)
_SEQUENCES = frozenset({_MODALITY_LUT, _VOI_LUT, _SPECIES_CODE})

# Plain radiographs, and what a viewer exports one as. Everything else is refused by its name.
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
    "PR": "a presentation state, which holds no picture",
    "SR": "a report, which holds no picture",
    "KO": "a list of key images, which holds no picture",
    "DOC": "a document",
    "SEG": "a segmentation",
    "ECG": "an electrocardiogram",
}
_MAMMOGRAPHY_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3")
_DENTAL_CLASS = "1.2.840.10008.5.1.4.1.1.1.3"
_RAW_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-ray for processing.
_ANIMAL = re.compile(r"\b(canine|feline|equine|bovine|avian|veterinar\w*)\b", re.IGNORECASE)

# Sides of a pixel that differ by no more are equal, as measured ones never are exactly; ...
_SQUARE = 0.01
# ... and no detector or scanner has pixels that differ by more than this factor.
_MAX_PIXEL_ASPECT = 4.0
# A window is useless if it leaves more than this share of the image black or white, ...
_MAX_SATURATED = 0.9
# ... or if the image between its 1st and 99th percentile fills less than this share of the greys.
_MIN_CONTRAST = 0.1
_HEADER_READ_BYTES = 2**18


def read_dicom(data: bytes, shortest_side: Callable[[int, int], int] | None = None) -> Radiograph:
    """Decodes the content of a DICOM file.

    Args:
      data: the file's bytes.
      shortest_side: given height and width, how small the shorter side may be decoded; JPEG uses
        it to decode at reduced scale. None decodes in full.

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
    if layout.color:
        pixels, bits = stored, layout.stored
        if in_color:
            notes.append("in colour")
    else:
        pixels, bits = _render(dicom, layout, stored, notes)
    if aspect != 1.0:
        pixels = square_pixels(pixels, aspect)
    return Radiograph(pixels, dataclasses.replace(header, bits=bits, notes=tuple(notes)))


def read_header(path: str) -> Header:
    """What the header says, without decoding the image.

    Raises:
      Refused: the file holds no plain radiograph.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(_HEADER_READ_BYTES)
        dicom = parse_dicom(data, _HEADER_TAGS | {PIXEL_DATA}, _SEQUENCES)
        if PIXEL_DATA not in dicom.elements and len(data) == _HEADER_READ_BYTES:
            dicom = parse_dicom(data + file.read(), _HEADER_TAGS | {PIXEL_DATA}, _SEQUENCES)
    refuse_foreign(dicom)
    return _header(dicom)


def refuse_foreign(dicom: DicomFile) -> None:
    """Refuses by name what is no plain radiograph of a person.

    Raises:
      Refused: always with the kind, never with text of the header.
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
        raise Refused("its modality is none of plain radiography (CR, DX, RG)")
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
    notes = []
    dates = dicom.text(_BIRTH_DATE), dicom.text(_STUDY_DATE)
    age = age_months(dicom.text(_AGE), *dates, notes)
    if dicom.text(_INTENT).upper() == "FOR PROCESSING" or dicom.text(_SOP_CLASS) == _RAW_CLASS:
        notes.append("raw detector data (FOR PROCESSING), not as a viewer shows an image")
    identifier = dicom.elements.get(_PATIENT_ID, b"")
    identifier = bytes(identifier[:256]).strip(b" \0")
    sex = dicom.text(_SEX).upper()
    key = hashlib.blake2b(identifier, digest_size=8, person=b"infantxray").hexdigest()
    return Header(
        age_months=age,
        sex=sex if sex in ("F", "M") else "",
        view=_code(dicom.text(_VIEW)),
        body_part=_code(dicom.text(_BODY_PART)),
        modality=_code(dicom.text(_MODALITY)),
        pixel_spacing_mm=_pair(dicom, _SPACING, _IMAGER_SPACING) or (math.nan, math.nan),
        patient_key=key if identifier else "",
        bits=dicom.number(_STORED) or 0,
        size=(dicom.number(_ROWS) or 0, dicom.number(_COLUMNS) or 0),
        notes=tuple(notes),
    )


def _code(text: str) -> str:
    """A coded value (VR CS, PS3.5 6.2); free text in its place is dropped, it may name someone."""
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
    """A pixel's height over its width (PS3.3 C.7.6.3.1.7), 1 unless clearly another."""
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
    dicom: DicomFile, layout: codecs.Layout, stored: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, int]:
    """Stored values `[H, W]`, unsigned, to greys at full range, bright = dense, and their bits."""
    bits = layout.stored
    shift = layout.high_bit + 1 - bits
    if shift:
        stored = stored >> np.uint8(shift)
    maximum = int(stored.max())
    if maximum >= 2**bits:
        # Bits above those declared: a sign, an overlay drawn into the pixels, or a wrong header.
        if layout.signed or dicom.number(_OVERLAY_BIT):
            stored = stored & stored.dtype.type(2**bits - 1)
        else:
            bits = maximum.bit_length()
            notes.append(f"pixels use {bits} bits, the header declares {layout.stored}")
    values = np.arange(2**bits, dtype=np.float64)
    if layout.signed:
        values[2 ** (bits - 1) :] -= 2**bits
    counts = histogram(stored, 2**bits)
    padding = _padding(dicom, layout, bits)
    if padding is not None and counts[padding] < stored.size:
        counts[padding] = 0
    values, modality_bits = _modality_values(dicom, layout, values, bits)
    greys = _window(dicom, layout, values, counts, modality_bits, notes)
    mono1 = layout.photometric.startswith("MONOCHROME1")
    inverse = dicom.text(_PRESENTATION_SHAPE).upper() == "INVERSE"
    if inverse and not mono1:
        notes.append("presentation shape INVERSE contradicts MONOCHROME2; inverted")
    if mono1 or inverse:  # once: the two tags state the same thing
        greys = 1.0 - greys
    if padding is not None:
        greys[padding] = 0.0
    dtype = np.uint8 if stored.dtype == np.uint8 and _MODALITY_LUT not in dicom.items else np.uint16
    table = np.rint(np.clip(greys, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return table[stored], bits


def _padding(dicom: DicomFile, layout: codecs.Layout, bits: int) -> int | None:
    """The stored value that marks pixels outside the image."""
    value = dicom.number(_PADDING)
    if value is None:
        return None
    if layout.signed:
        return value & (2**bits - 1)
    return value if value < 2**bits else None


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
    dicom: DicomFile, item: dict[int, bytes] | None, signed: bool
) -> tuple[np.ndarray, int, int] | None:
    """Entries, first value mapped, and bits of an entry; None without a usable table.

    The lookup is done here because pydicom's (3.0.2) wraps 8-bit tables of more than 256 entries
    and fails on 12-bit ones.
    """
    if not item:
        return None
    descriptor = bytes(item.get(_LUT_DESCRIPTOR, b""))
    data = bytes(item.get(_LUT_DATA, b""))
    if len(descriptor) < 6:
        return None
    count, first, bits = (
        int.from_bytes(descriptor[i : i + 2], dicom.byte_order) for i in (0, 2, 4)
    )
    count = count or 65536
    if signed and first >= 2**15:
        first -= 2**16
    order = "<" if dicom.little_endian else ">"
    if len(data) >= 2 * count:
        entries = np.frombuffer(data, order + "u2", count)
    elif len(data) >= count and bits <= 8:
        # Two entries a word; in big-endian words the second comes first.
        packed = np.frombuffer(data, np.uint8)
        if not dicom.little_endian and len(packed) % 2 == 0:
            packed = packed.reshape(-1, 2)[:, ::-1].ravel()
        entries = packed[:count]
    else:
        return None
    # Declared bits are often wrong by the time they reach a file: never below what is there.
    bits = max(bits if 1 <= bits <= 16 else 1, int(entries.max()).bit_length())
    return entries.astype(np.float64), first, bits


def _lut_index(values: np.ndarray, first: int, count: int) -> np.ndarray:
    return np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)


def _window(
    dicom: DicomFile,
    layout: codecs.Layout,
    values: np.ndarray,
    counts: np.ndarray,
    bits: int,
    notes: list[str],
) -> np.ndarray:
    """Greys 0 to 1 of every value: VOI LUT, else the first window, else what shows the image."""
    lut = _lut(dicom, dicom.items.get(_VOI_LUT), values.min() < 0)
    if lut is not None:
        entries, first, lut_bits = lut
        greys = entries[_lut_index(values, first, len(entries))] / (2**lut_bits - 1)
        source = "lookup table"
    else:
        greys = _stored_window(dicom, values)
        source = "window"
    if greys is not None and _shows(greys, counts):
        return greys
    if greys is not None:
        notes.append(f"stored {source} shows almost nothing; window by percentiles instead")
    elif layout.allocated == 8 and bits <= 8:
        # Eight bits without a window are display values already.
        return (values - values.min()) / max(values.max() - values.min(), 1e-9)
    return window_by_percentiles(values, counts)


def _stored_window(dicom: DicomFile, values: np.ndarray) -> np.ndarray | None:
    """The first stored window, by its function (PS3.3 C.11.2.1.2); None without a valid one."""
    centers, widths = dicom.decimals(_CENTER), dicom.decimals(_WIDTH)
    if not centers or not widths:
        return None
    center, width = centers[0], widths[0]
    function = dicom.text(_WINDOW_FUNCTION).upper()
    if function == "SIGMOID" and width > 0:
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width < 1:
        return None
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _shows(greys: np.ndarray, counts: np.ndarray) -> bool:
    """Whether the image, given as counts of every value, is neither saturated nor flat."""
    present = counts > 0
    if present.sum() < 3:
        return True  # nothing to see whatever the window
    total = counts.sum()
    saturated = counts[(greys <= 0.0) | (greys >= 1.0)].sum() / total
    low, high = percentiles(greys, counts, (1.0, 99.0))
    return saturated <= _MAX_SATURATED and high - low >= _MIN_CONTRAST
