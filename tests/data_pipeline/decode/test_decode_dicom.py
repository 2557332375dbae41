"""One image in many encodings is one image, and its header is read."""

import math

import numpy as np
import pytest
from dicom_images import FULL, RGB, YBR, eight_bits, expected, signed
from image_files import dicom_bytes, jpeg_2000, lut_item, picture_bytes, ramp
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from data_pipeline.decode import Preprocessing, load_image, looks_like_dicom, read_radiograph
from data_pipeline.decode.dicom import read_header
from data_pipeline.errors import UnreadableImage

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
