"""Orientation, pixel aspect and scale: every image comes upright, unmirrored and square."""

import numpy as np
import pytest
from dicom_images import FULL, eight_bits
from image_files import dicom_bytes, picture_bytes, ramp
from pydicom.uid import (
    JPEGBaseline8Bit,
)

from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage


def oriented(image, row, column):
    """The image of a patient, `L\\F` or `A\\F` before, as a detector turned otherwise stores it."""
    for k in range(4):
        for mirror in (False, True):
            left = image[:, ::-1] if mirror else image
            names = {"x": "R" if mirror else "L", "-x": "L" if mirror else "R", "y": "F", "-y": "H"}
            # np.rot90 by k: rows and columns then run along these.
            directions = [("x", "y"), ("y", "-x"), ("-x", "-y"), ("-y", "x")][k]
            if (names[directions[0]], names[directions[1]]) == (row, column):
                return np.ascontiguousarray(np.rot90(left, k))
    raise AssertionError


@pytest.mark.parametrize("row_column", ["LF", "RF", "RH", "LH", "FL", "FR", "HL", "HR"])
def test_frontal_images_come_in_the_standard_view(read, row_column):
    row, column = row_column
    elements = {"PatientOrientation": [row + "P", column + "AR"], "ViewPosition": "AP", **FULL}
    wanted = read(dicom_bytes(ramp(), **FULL)).pixels
    radiograph = read(dicom_bytes(oriented(ramp(), row, column), **elements))
    np.testing.assert_array_equal(radiograph.pixels, wanted)
    notes = radiograph.header.notes
    assert len(notes) == (row_column != "LF")
    mirrored = row_column in ("RF", "LH", "FL", "HR")
    turned = row_column[1] != "F"
    assert all(("mirrored" in note, "turned" in note) == (mirrored, turned) for note in notes)


def test_lateral_images_are_turned_and_never_mirrored(read):
    wanted = read(dicom_bytes(ramp(), **FULL)).pixels

    def shown(pixels, row, column, view="LL"):
        elements = {"PatientOrientation": [row, column], "ViewPosition": view, **FULL}
        return read(dicom_bytes(np.ascontiguousarray(pixels), **elements)).pixels

    for row in "AP":
        np.testing.assert_array_equal(shown(ramp(), row, "F"), wanted)
        np.testing.assert_array_equal(shown(ramp()[::-1, ::-1], row, "H"), wanted)
    np.testing.assert_array_equal(shown(np.rot90(ramp()), "F", "A"), wanted)
    np.testing.assert_array_equal(shown(np.rot90(ramp(), -1), "H", "A"), wanted)


@pytest.mark.parametrize(
    ("orientation", "elements", "change"),
    [
        (["R", "F"], {"BodyPartExamined": "HAND"}, None),
        (["L", "H"], {"BodyPartExamined": "LOWER EXTREMITY"}, None),
        (["F", "R"], {"ViewPosition": "LLD"}, None),
        (["F", "L"], {"ViewPosition": "LLD"}, lambda pixels: pixels[:, ::-1]),
        (["R", "A"], {}, None),
        (["R", "L"], {}, None),
        (["F", "H"], {}, None),
        (["R"], {}, None),
        (["Müller", "F"], {}, None),
        (None, {}, None),
    ],
)
def test_what_is_not_turned(read, orientation, elements, change):
    wanted = read(dicom_bytes(ramp(), **FULL)).pixels
    radiograph = read(dicom_bytes(ramp(), PatientOrientation=orientation, **elements, **FULL))
    np.testing.assert_array_equal(radiograph.pixels, change(wanted) if change else wanted)
    noted = "BodyPartExamined" in elements or change is not None
    assert len(radiograph.header.notes) == noted
    assert "ller" not in str(radiograph.header.notes)


def test_jpeg_is_decoded_at_reduced_scale_on_request(read):
    radiograph = (ramp(512, 640) >> 4).astype(np.uint8)
    data = dicom_bytes(
        radiograph, syntax=JPEGBaseline8Bit, compressed=picture_bytes(radiograph, "JPEG")
    )
    radiograph = read(data, min_side=100)
    assert radiograph.pixels.shape == (128, 160)
    assert radiograph.header.size == (512, 640)


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelAspectRatio": ["2", "1"]}, (120, 80)),
        ({"PixelAspectRatio": ["1", "2"]}, (60, 160)),
        ({"PixelSpacing": [0.3, 0.2]}, (90, 80)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (60, 160)),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": ["2", "1"]}, (60, 80)),
        ({"PixelSpacing": [0.2, 0.2019]}, (60, 80)),
        ({"PixelSpacing": [0, 0.2]}, (60, 80)),
        ({"PixelAspectRatio": ["9", "1"]}, (60, 80)),
    ],
)
def test_pixels_become_square(read, elements, shape):
    radiograph = read(dicom_bytes(ramp(), **FULL, **elements))
    assert radiograph.pixels.shape == shape
    assert radiograph.pixels.dtype == np.uint16
    assert radiograph.header.size == (60, 80)
    assert any("square" in note for note in radiograph.header.notes) == (
        shape != (60, 80) or "9" in elements.get("PixelAspectRatio", "")
    )
    if shape != (60, 80):
        full = eight_bits(read(dicom_bytes(ramp(*shape), **FULL)))
        assert np.abs(eight_bits(radiograph) - full).max() <= 3


def test_images_of_square_and_other_pixels_are_one_image(read, tmp_path):
    path = tmp_path / "image"
    radiograph = (ramp(512, 640) >> 4).astype(np.uint8)
    half = np.ascontiguousarray(radiograph[::2])
    jpeg = dicom_bytes(
        half, syntax=JPEGBaseline8Bit, compressed=picture_bytes(half, "JPEG", quality=95),
        PixelAspectRatio=["2", "1"],
    )  # fmt: skip
    images = []
    for data in (dicom_bytes(radiograph), dicom_bytes(half, PixelAspectRatio=["2", "1"]), jpeg):
        path.write_bytes(data)
        images.append(load_image(str(path), Preprocessing(64)).astype(int))
    for image in images[1:]:
        assert np.abs(image - images[0]).max() <= 3


def test_stretching_has_the_limit_of_every_image(read):
    radiograph = np.zeros((5000, 5000), np.uint8)
    with pytest.raises(UnreadableImage, match="limit"):
        read(dicom_bytes(radiograph, PixelAspectRatio=["3", "1"]))
