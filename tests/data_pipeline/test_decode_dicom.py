"""One image in many encodings is one image; what is no radiograph is refused by name."""

import contextlib
import math
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from image_files import SECRET, dicom_bytes, jpeg_2000, lut_item, picture_bytes, ramp
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from data_pipeline.adapters import headers
from data_pipeline.decode import Preprocessing, load_image, looks_like_dicom, read_radiograph
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import MAX_PIXELS, Refused
from data_pipeline.errors import UnreadableImage

FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.fixture
def read(tmp_path):
    def read(data, **options):
        path = tmp_path / "image"
        path.write_bytes(data)
        return read_radiograph(path, **options)

    return read


def eight_bits(radiograph):
    maximum = np.iinfo(radiograph.pixels.dtype).max
    return np.rint(radiograph.pixels * (255 / maximum)).astype(int)


def expected():
    return np.rint(ramp() * (255 / 4095)).astype(int)


def signed(radiograph):
    return (radiograph.astype(np.int16) - 2048).astype(np.uint16)


ENCODINGS = {
    "explicit": lambda radiograph: dicom_bytes(radiograph, **FULL),
    "implicit": lambda radiograph: dicom_bytes(radiograph, syntax=ImplicitVRLittleEndian, **FULL),
    "big-endian": lambda radiograph: dicom_bytes(radiograph, syntax=ExplicitVRBigEndian, **FULL),
    "deflated": lambda radiograph: dicom_bytes(
        radiograph, syntax=DeflatedExplicitVRLittleEndian, **FULL
    ),
    "run-length": lambda radiograph: dicom_bytes(radiograph, syntax=RLELossless, **FULL),
    "jpeg 2000": lambda radiograph: dicom_bytes(
        radiograph,
        syntax=JPEG2000Lossless,
        compressed=jpeg_2000(radiograph),
        BitsStored=16,
        HighBit=15,
        **FULL,
    ),
    "without preamble and meta": lambda radiograph: dicom_bytes(radiograph, **FULL)[
        dicom_bytes(radiograph, **FULL).index(b"\x08\0\x16\0UI") :
    ],
    "monochrome1": lambda radiograph: dicom_bytes(
        4095 - radiograph, PhotometricInterpretation="MONOCHROME1", **FULL
    ),
    "monochrome1 and INVERSE, once": lambda radiograph: dicom_bytes(
        4095 - radiograph,
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        **FULL,
    ),
    "INVERSE alone": lambda radiograph: dicom_bytes(
        4095 - radiograph, PresentationLUTShape="INVERSE", **FULL
    ),
    "signed with rescale": lambda radiograph: dicom_bytes(
        signed(radiograph), PixelRepresentation=1, RescaleSlope=1, RescaleIntercept=2048, **FULL
    ),
    "signed, sign bits cut off": lambda radiograph: dicom_bytes(
        signed(radiograph) & 0xFFF, PixelRepresentation=1, RescaleIntercept=2048, **FULL
    ),
    "negative slope": lambda radiograph: dicom_bytes(
        4095 - radiograph, RescaleSlope=-1, RescaleIntercept=4095, **FULL
    ),
    "slope without intercept": lambda radiograph: dicom_bytes(
        radiograph, RescaleSlope="2", WindowCenter=4096, WindowWidth=8192
    ),
    "empty slope": lambda radiograph: dicom_bytes(
        radiograph, RescaleSlope=None, RescaleIntercept=None, **FULL
    ),
    "several windows": lambda radiograph: dicom_bytes(
        radiograph, WindowCenter=[2048, 100], WindowWidth=[4096, 50]
    ),
    "linear exact": lambda radiograph: dicom_bytes(
        radiograph, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT"
    ),
    "high bits": lambda radiograph: dicom_bytes(radiograph << 4, HighBit=15, **FULL),
    "overlay in the upper bits": lambda radiograph: dicom_bytes(
        radiograph | (np.arange(80, dtype=np.uint16)[None, :] % 2) << 12,
        tags=[(0x60000102, "US", 12)],
        **FULL,
    ),
    "declares fewer bits than it uses": lambda radiograph: dicom_bytes(
        radiograph, BitsStored=10, HighBit=9, **FULL
    ),
    "modality lookup of 12 bits": lambda radiograph: dicom_bytes(
        4095 - radiograph, ModalityLUTSequence=[lut_item(np.arange(4095, -1, -1), 0, 12)], **FULL
    ),
    "lookup of 8 bits and 4096 entries, which beats a window": lambda radiograph: dicom_bytes(
        radiograph,
        VOILUTSequence=[lut_item(np.rint(np.arange(4096) * (255 / 4095)), 0, 8)],
        WindowCenter=100,
        WindowWidth=50,
    ),
    "window of width 0": lambda radiograph: dicom_bytes(radiograph, WindowCenter=0, WindowWidth=0),
    "window beside the image": lambda radiograph: dicom_bytes(
        radiograph, WindowCenter=60000, WindowWidth=100
    ),
    "window far too wide": lambda radiograph: dicom_bytes(
        radiograph, WindowCenter=2e6, WindowWidth=4e6
    ),
    "no window": lambda radiograph: dicom_bytes(radiograph),
}
# Where the window is made from percentiles, half a percent is clipped at each end.
BY_PERCENTILE = {"window of width 0", "window beside the image", "window far too wide", "no window"}


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_same_image_in_every_encoding_is_the_same_image(read, name):
    wanted = expected()
    if name in BY_PERCENTILE:
        low, high = np.percentile(ramp(), (0.5, 99.5))
        wanted = np.rint(np.clip((ramp() - low) / (high - low), 0, 1) * 255)
    assert np.abs(eight_bits(read(ENCODINGS[name](ramp()))) - wanted).max() <= 1


def test_a_sigmoid_window_is_an_s_curve(read):
    radiograph = read(dicom_bytes(ramp(), VOILUTFunction="SIGMOID", **FULL)).pixels / 65535
    values = ramp().astype(float)
    np.testing.assert_allclose(radiograph, 1 / (1 + np.exp(-4 * (values - 2048) / 4096)), atol=1e-3)


def test_colours_become_their_luminance(read):
    grey = (ramp() >> 4).astype(np.uint8)
    color = np.stack([grey, grey // 2, grey // 4], axis=-1)
    radiograph = read(
        dicom_bytes(
            color, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
        )
    )
    luminance = color @ np.array([0.299, 0.587, 0.114])
    assert np.abs(radiograph.pixels - luminance).max() <= 1


RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
YBR = RGB | {"PhotometricInterpretation": "YBR_FULL"}


def test_colour_is_noted_and_greys_stored_as_colour_are_not(read):
    grey = (ramp() >> 4).astype(np.uint8)
    color = np.stack([grey, grey[::-1], 255 - grey], axis=-1)
    chroma = np.asarray(Image.fromarray(color).convert("YCbCr"))
    jpeg = {"syntax": JPEGBaseline8Bit, "compressed": picture_bytes(color, "JPEG")}
    jpeg_2000_file = {"syntax": JPEG2000Lossless, "compressed": jpeg_2000(color)}
    colored = [
        dicom_bytes(color, **RGB),
        dicom_bytes(chroma, **YBR),
        dicom_bytes(color, **jpeg, **YBR),
        dicom_bytes(color, **jpeg_2000_file, **RGB),
    ]
    for data in colored:
        assert read(data).header.notes == ("in colour",)
    neutral = np.full_like(grey, 128)
    assert read(dicom_bytes(np.stack([grey] * 3, -1), **RGB)).header.notes == ()
    assert read(dicom_bytes(np.stack([grey, neutral, neutral], -1), **YBR)).header.notes == ()


@pytest.mark.parametrize(
    "elements",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
    ],
)
def test_raw_detector_data_is_noted(read, elements):
    (note,) = read(dicom_bytes(ramp(), **FULL, **elements)).header.notes
    assert "FOR PROCESSING" in note
    shown = dicom_bytes(ramp(), PresentationIntentType="FOR PRESENTATION", **FULL)
    assert read(shown).header.notes == ()


def test_an_almost_blank_image_shows_what_is_there(read):
    radiograph = np.zeros((100, 100), np.uint16)
    radiograph[50, 10:30] = np.arange(100, 2100, 100)
    np.testing.assert_allclose(
        read(dicom_bytes(radiograph)).pixels, radiograph * (65535 / 2000), atol=0.51
    )


def test_a_constant_image_is_black(read):
    assert (read(dicom_bytes(np.full((60, 80), 100, np.uint16))).pixels == 0).all()


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


def test_what_the_header_says(read):
    data = dicom_bytes(
        ramp(),
        PatientAge="007M",
        PatientSex="F",
        ViewPosition="AP",
        BodyPartExamined="ABDOMEN",
        PixelSpacing=[0.2, 0.3],
        Manufacturer="FUJI PHOTO FILM CO., LTD.",
    )
    header = read(data).header
    assert (header.manufacturer, header.year) == ("FUJI PHOTO FILM CO., LTD.", "2020")
    assert (header.age_months, header.sex, header.view) == (7.0, "F", "AP")
    assert (header.body_part, header.modality, header.bits) == ("ABDOMEN", "DX", 12)
    assert header.pixel_spacing_mm == (0.2, 0.3)
    assert header.size == (60, 80)
    assert len(header.patient_key) == 16
    assert "4711" not in header.patient_key


@pytest.mark.parametrize(
    ("elements", "months"),
    [
        ({"PatientAge": "005D"}, 5 / 30.4375),
        ({"PatientAge": "3 m"}, 3.0),
        ({"PatientAge": "058"}, 91 / 30.4375),
        ({"PatientAge": "000Y"}, 91 / 30.4375),
        ({"PatientAge": None}, 91 / 30.4375),
        ({"PatientBirthDate": ""}, math.nan),
        ({"StudyDate": ""}, math.nan),
    ],
)
def test_age_from_the_string_or_the_dates(read, elements, months):
    age = read(dicom_bytes(ramp(), **elements)).header.age_months
    assert age == pytest.approx(months, nan_ok=True)


def test_header_alone_agrees_with_the_image(read, tmp_path):
    data = dicom_bytes(ramp(), PatientAge="007M", syntax=RLELossless)
    header = read(data).header
    assert read_header(str(tmp_path / "image")).age_months == header.age_months


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


def test_dicom_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "IM0001"
    whole = dicom_bytes(ramp(), **FULL)
    big = dicom_bytes(ramp(), syntax=ExplicitVRBigEndian)
    implicit = dicom_bytes(ramp(), syntax=ImplicitVRLittleEndian)
    yes = [
        whole,
        whole[132:],  # Meta information without preamble.
        whole[whole.index(b"\x08\0\x16\0UI") :],
        implicit[implicit.index(b"\x08\0\x16\0\x1a\0\0\0") :],
        big[big.index(b"\0\x08\0\x16UI") :],
    ]
    for data in yes:
        path.write_bytes(data)
        assert looks_like_dicom(path)
        assert read_radiograph(path).pixels.shape == (60, 80)
    no = [
        picture_bytes((ramp() >> 4).astype(np.uint8), "PNG"),
        b"\x08\0" * 500,
        b"\x02\0" + bytes(500),
        b"\x08\0\x16\0" + b"\xff" * 500,
        b"image_path,label\n" * 50,
        b"",
    ]
    for data in no:
        path.write_bytes(data)
        assert not looks_like_dicom(path)
    assert not looks_like_dicom(tmp_path)
    assert not looks_like_dicom(tmp_path / "none")


def test_real_files(real_images):
    """Real files, which were looked at once, and what is refused."""
    preprocessing = Preprocessing(image_size=64)
    radiographs, refused = {}, {}
    for path in sorted((real_images / "dicom").iterdir()):
        try:
            radiographs[path.stem] = load_image(str(path), preprocessing).astype(int)
        except UnreadableImage as error:
            refused[path.stem] = error.reason
    chest = radiographs["cr_chest_mono1_10bit_explicitLE"]
    for name in ("deflated", "explicitBE", "implicitLE"):
        assert np.abs(radiographs[f"derived_cr_chest_mono1_{name}"] - chest).max() <= 1
    assert np.abs(radiographs["derived_cr_chest_no_preamble_no_meta"] - chest).max() <= 1
    # Lungs are darker than the spine between them, whatever the polarity of the file.
    for name in ("cr_chest_mono1_10bit_explicitLE", "cr_chest_mono2_8bit_jpegbaseline_rsna",
                 "cr_chest_mono1_15bit_jpeg2000lossy_RG1"):  # fmt: skip
        radiograph = radiographs[name]
        assert radiograph[20:36, 30:34].mean() > radiograph[20:36, 14:22].mean()
    assert "animal" in refused["dx_thorax_animal_age005Y_mono1_8bit_explicitLE"]
    assert "mammogram" in refused["mg_breast_mono2_12bit_jpeglosslessSV1_overlay"]
    assert "cut short" in refused["broken_truncated_pixeldata"]
    assert "no pixel data" in refused["cr_mono1_12bit_32px_charset_japanese"]
    assert (len(radiographs), len(refused)) == (16, 4)
