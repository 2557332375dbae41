"""Padding and display shutters are black and left out of the window."""

import numpy as np
import pytest
from dicom_images import FULL, RGB, signed
from image_files import dicom_bytes, picture_bytes, ramp
from pydicom.uid import (
    JPEGBaseline8Bit,
)


def padded(image, value, **elements):
    """Where padding shows white unless it is known: MONOCHROME1, padding at the low end."""
    return dicom_bytes(
        image,
        PhotometricInterpretation="MONOCHROME1",
        tags=[(0x00280120, "US", value), *elements.pop("limit", ())],
        **elements,
    )


@pytest.mark.parametrize("limit", [[(0x00280121, "US", 15)], [(0x00280121, "US", 0)]])
def test_a_range_of_padding_is_black_and_left_out_of_the_window(read, limit):
    image = 100 + ramp(100, 100) // 2
    image[:, :10] = np.arange(100)[:, None] % 16
    value = 15 - limit[0][2]  # Either end may be the lower one.
    shown = read(padded(image, value, limit=limit)).pixels
    assert (shown[:, :10] == 0).all()
    alone = read(dicom_bytes(image[:, 10:].copy(), PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_array_equal(shown[:, 10:], alone)
    one_value = read(padded(image, value)).pixels[:, :10]
    assert (one_value[image[:, :10] == value] == 0).all()
    assert (one_value[image[:, :10] != value] > 60000).all()


@pytest.mark.parametrize("mark", [-2000, -2000 & 0xFFFF, -2000 & 0xFFF])
def test_signed_padding_with_its_sign_extended_or_not(read, mark):
    image = signed(100 + ramp(100, 100) // 2) & 0xFFF
    image[:, :10] = -2000 & 0xFFF
    image[50:, :10] = (-2000 & 0xFFF) + 10
    tags = [(0x00280120, "US", mark & 0xFFFF), (0x00280121, "US", (mark + 20) & 0xFFFF)]
    data = dicom_bytes(
        image, PhotometricInterpretation="MONOCHROME1", PixelRepresentation=1, tags=tags
    )
    shown = read(data).pixels
    assert (shown[:, :10] == 0).all()
    assert (shown[:, 10:] > 0).mean() > 0.99


def test_padding_that_covers_everything_is_ignored(read):
    data = dicom_bytes(
        ramp(), tags=[(0x00280120, "US", 0), (0x00280121, "US", 4095)], **FULL
    )  # fmt: skip
    radiograph = read(data)
    np.testing.assert_array_equal(radiograph.pixels, read(dicom_bytes(ramp(), **FULL)).pixels)
    assert radiograph.header.notes == ("pixel padding ignored: it covers the whole image",)


def test_padding_is_black_and_does_not_shift_the_window(read):
    radiograph = ramp()
    radiograph[:, :10] = 4095
    inside = read(dicom_bytes(4095 - radiograph, PhotometricInterpretation="MONOCHROME1"))
    padded = read(
        dicom_bytes(
            4095 - radiograph,
            PhotometricInterpretation="MONOCHROME1",
            tags=[(0x00280120, "US", 0)],
        )
    )
    assert inside.pixels[:, :10].min() == 65535
    assert padded.pixels[:, :10].max() == 0


def shutter_mask(shape, inside):
    """Boolean `[H, W]` of a condition on row and column, which begin at 1."""
    rows, columns = np.mgrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    return inside(rows, columns)


EDGES = ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
RECTANGLE = {f"Shutter{edge}Edge": at for edge, at in zip(EDGES, (21, 70, 11, 40), strict=True)}
SHUTTERS = {
    "rectangular": (
        {"ShutterShape": "RECTANGULAR", **RECTANGLE},
        lambda y, x: (x >= 21) & (x <= 70) & (y >= 11) & (y <= 40),
    ),
    "circular": (
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [30, 41],
         "RadiusOfCircularShutter": 20},
        lambda y, x: (y - 30) ** 2 + (x - 41) ** 2 <= 400,
    ),
    "polygonal": (
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [11, 21, 11, 70, 40, 70]},
        lambda y, x: (y >= 11) & (x <= 70) & ((y - 11) * 49 <= (x - 21) * 29),
    ),
    "both": (
        {"ShutterShape": ["RECTANGULAR", "CIRCULAR"], "CenterOfCircularShutter": [30, 41],
         "RadiusOfCircularShutter": 20, **RECTANGLE},
        lambda y, x: ((y - 30) ** 2 + (x - 41) ** 2 <= 400) & (x >= 21) & (y >= 11) & (y <= 40),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUTTERS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_outside_of_the_display_shutter_the_image_is_black(read, name, photometric):
    elements, inside = SHUTTERS[name]
    inside = shutter_mask((60, 80), inside)
    image = np.clip(ramp(), 50, 4000)
    # Far from what is inside: a window by percentiles must not see it.
    image[~inside] = np.where(np.arange(60 * 80).reshape(60, 80) % 2, 0, 4095)[~inside]
    data = dicom_bytes(image, PhotometricInterpretation=photometric, **elements)
    radiograph = read(data)
    assert radiograph.header.notes == ("display shutter: the image is black outside of it",)
    edge = inside ^ (radiograph.pixels > 0)
    assert edge.mean() < (0.03 if name == "polygonal" else 0.01)  # Darkest pixels are 0 as well.
    assert (radiograph.pixels[~inside] == 0).mean() > (0.98 if name == "polygonal" else 0.9999)
    low, high = np.percentile(image[inside], (1, 99))
    middle = inside & (image > low) & (image < high)
    assert radiograph.pixels[middle].min() > 0
    assert radiograph.pixels[middle].max() < 65535


def test_a_shutter_follows_the_scale_of_decoding_and_goes_for_colours(read):
    image = np.full((480, 640), 200, np.uint8)
    edges = dict(zip(RECTANGLE, (161, 560, 81, 320), strict=True))
    jpeg = {"syntax": JPEGBaseline8Bit, "compressed": picture_bytes(image, "JPEG")}
    for samples in (1, 3):
        pixels = image if samples == 1 else np.stack([image] * 3, axis=-1)
        jpeg["compressed"] = picture_bytes(pixels, "JPEG")
        how = {"ShutterShape": "RECTANGULAR", **edges, **(RGB if samples == 3 else {})}
        radiograph = read(dicom_bytes(pixels, **jpeg, **how), min_side=100)
        assert radiograph.pixels.shape == (120, 160)
        np.testing.assert_array_equal(
            radiograph.pixels > 0, shutter_mask((120, 160), SHUTTERS["rectangular"][1]) * 0
            + shutter_mask((120, 160), lambda y, x: (x > 40) & (x <= 140) & (y > 20) & (y <= 80)),
        )  # fmt: skip


def test_a_shutter_of_many_vertices(read):
    turn = np.linspace(0, 2 * np.pi, 2000)
    vertices = np.stack([30 + 20 * np.sin(turn), 41 + 20 * np.cos(turn)], -1).round().astype(int)
    shutter = {"VerticesOfThePolygonalShutter": vertices.ravel().tolist()}
    pixels = read(dicom_bytes(ramp() + 50, ShutterShape="POLYGONAL", **shutter)).pixels
    inside = shutter_mask((60, 80), SHUTTERS["circular"][1])
    assert (inside ^ (pixels > 0)).mean() < 0.02
    far = [-(10**11), -(10**11), 10**11, 10**11, 10**11, 0]
    assert read(dicom_bytes(ramp(), ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=far))


@pytest.mark.parametrize(
    "elements",
    [
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "RECTANGULAR", **RECTANGLE, "ShutterRightVerticalEdge": 5},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [30, 41]},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3, 4]},
        {"ShutterShape": "BITMAP"},
        RECTANGLE,
    ],
)
def test_a_shutter_that_hides_everything_is_ignored(read, elements):
    radiograph = read(dicom_bytes(ramp(), **FULL, **elements))
    np.testing.assert_array_equal(radiograph.pixels, read(dicom_bytes(ramp(), **FULL)).pixels)
    (note,) = radiograph.header.notes
    assert note.startswith("display shutter ignored")


def test_a_shutter_around_the_whole_image_goes_without_a_note(read):
    edges = dict(zip(RECTANGLE, (1, 80, 1, 60), strict=True))
    header = read(dicom_bytes(ramp(), ShutterShape="RECTANGULAR", **edges, **FULL)).header
    assert header.notes == ()
