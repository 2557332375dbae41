"""Stored values of a DICOM image to greys, in the order of the standard.

Modality LUT or rescale (PS3.3 C.11.1), VOI LUT or window (C.11.2), then polarity, once: photometric
interpretation (C.7.6.3.1.2) and presentation shape (C.11.6). Every step acts on single values, so
all of them together are one table over at most 65,536 values: exact, fast, and without a copy of
the image in floating point.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.decode import codecs, tags
from data_pipeline.decode.dicom_file import DicomFile
from data_pipeline.decode.percentiles import histogram, percentiles, window_by_percentiles

# A window is useless if it leaves more than this share of the image black or white, or if the image
# between its 1st and 99th percentile fills less than this share of the greys.
_MAX_SATURATED = 0.9
_MIN_CONTRAST = 0.1


def render(
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
        if layout.signed or dicom.number(tags.OVERLAY_BIT):
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
    inverse = dicom.text(tags.PRESENTATION_SHAPE).upper() == "INVERSE"
    if inverse and not mono1:
        notes.append("presentation shape INVERSE contradicts MONOCHROME2; inverted")
    if mono1 or inverse:  # Once: both elements state the same.
        greys = 1.0 - greys
    greys[padding] = 0.0
    dtype = (
        np.uint8 if stored.dtype == np.uint8 and tags.MODALITY_LUT not in dicom.items else np.uint16
    )
    table = np.rint(np.clip(greys, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return table[stored], bits


def _padding(dicom: DicomFile, layout: codecs.Layout, values: np.ndarray) -> np.ndarray:
    """Boolean, for every value: it marks pixels outside the image (PS3.3 C.7.5.1.1.2).

    With a Pixel Padding Range Limit, so do all values between it and the Pixel Padding Value.
    """
    ends = [dicom.number(tag) for tag in (tags.PADDING, tags.PADDING_LIMIT)]
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
    lut = _lut(dicom, dicom.items.get(tags.MODALITY_LUT), layout.signed)
    if lut is not None:
        entries, first, lut_bits = lut
        return entries[_lut_index(values, first, len(entries))], lut_bits
    slope = (dicom.decimals(tags.SLOPE) or [1.0])[0] or 1.0
    intercept = (dicom.decimals(tags.INTERCEPT) or [0.0])[0]
    return values * slope + intercept, bits


def _lut(
    dicom: DicomFile, item: dict[int, memoryview] | None, signed: bool
) -> tuple[np.ndarray, int, int] | None:
    """Entries, first value mapped, and bits of an entry; None without a usable table.

    pydicom 3.0.2 wraps 8-bit tables of more than 256 entries and fails on 12-bit ones.
    """
    if not item:
        return None
    if (
        not {tags.LUT_DESCRIPTOR, tags.LUT_DATA} <= item.keys()
        or len(item[tags.LUT_DESCRIPTOR]) < 6
    ):
        return None
    descriptor, data = item[tags.LUT_DESCRIPTOR], item[tags.LUT_DATA][: 2 * 65536]
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
    lut = _lut(dicom, dicom.items.get(tags.VOI_LUT), values.min() < 0)
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
    centers, widths = dicom.decimals(tags.CENTER), dicom.decimals(tags.WIDTH)
    if not centers or not widths:
        return None
    center, width = centers[0], widths[0]
    function = dicom.text(tags.WINDOW_FUNCTION).upper()
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
