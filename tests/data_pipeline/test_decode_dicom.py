"""One image in many encodings is one image; what is no radiograph is refused by name."""

import math
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
    JPEGLosslessSV1,
    RLELossless,
)

from data_pipeline.decode import Preprocessing, load_image, read_radiograph
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import MAX_PIXELS
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
    )
    header = read(data).header
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


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        ("1.2.840.10008.1.2.4.51", "pylibjpeg-libjpeg"),
        (JPEGLosslessSV1, "python-gdcm"),
        ("1.2.840.10008.1.2.4.80", "pyjpegls"),
        ("1.2.840.10008.1.2.4.201", "pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_codec_is_named_with_its_install_line(read, syntax, package):
    from pydicom.pixels import get_decoder

    if set(get_decoder(syntax).available_plugins) - {"pillow"}:
        pytest.skip("the codec is installed")
    data = dicom_bytes(ramp(), syntax=syntax, compressed=b"\xff\xd8\xff\xc1\0\x0b\x0c" + b"\0" * 50)
    with pytest.raises(UnreadableImage, match=f"pip install .*{package}=="):
        read(data)


def test_a_picture_of_another_size_than_declared_is_refused(read):
    large = picture_bytes(np.zeros((500, 500), np.uint8), "JPEG")
    data = dicom_bytes(np.zeros((50, 50), np.uint8), syntax=JPEGBaseline8Bit, compressed=large)
    with pytest.raises(UnreadableImage, match="500x500 pixels, its header says 50x50"):
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


def test_real_files(real_images):
    """What can be decoded without optional codecs, looked at once, and what is refused."""
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
    assert len(radiographs) >= 13
