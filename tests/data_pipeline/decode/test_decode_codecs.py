"""Compressed pixel data: every codec gives the values that pydicom gives with the same library."""

import io

import jpeg_ls
import numpy as np
import pydicom
import pytest
from image_files import dicom_bytes, gdcm_dicom, jpeg_2000, jpeg_2000_of, picture_bytes, ramp
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_pipeline.decode import codecs, dicom, read_radiograph, tags
from data_pipeline.decode.dicom_file import PIXEL_DATA, parse_dicom
from data_pipeline.decode.radiograph import Refused
from data_pipeline.errors import UnreadableImage

HIP = "cr_hip_mono2_10bit_"


def stored(data):
    """Stored values as the decoder has them before any window."""
    parsed = parse_dicom(data, tags.HEADER | {PIXEL_DATA}, ())
    return codecs.decode(parsed, dicom._layout(parsed), None)[0]


def by_pydicom(data, plugin):
    dataset = pydicom.dcmread(io.BytesIO(data))
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    values, _ = decoder.as_array(dataset, raw=True, index=0, decoding_plugin=plugin)
    return values.view(np.uint8 if values.itemsize == 1 else np.uint16)


def stream(data):
    """The compressed stream of a DICOM file, and the file with another one in its place."""
    dataset = pydicom.dcmread(io.BytesIO(data))

    def replace(frame):
        dataset.PixelData = encapsulate([frame])
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()

    return next(generate_frames(dataset.PixelData, number_of_frames=1)), replace


NOISE = np.random.default_rng(0).integers(0, 2**16, (61, 83)).astype(np.uint16)
DEEP = {"BitsStored": 16, "HighBit": 15}
FILES = {
    "jpeg lossless": ("gdcm", lambda: gdcm_dicom(ramp(), "JPEGLosslessProcess14_1")),
    "jpeg lossless, noise": (
        "gdcm",
        lambda: gdcm_dicom(NOISE, "JPEGLosslessProcess14_1", **DEEP),
    ),
    "jpeg lossless, process 14": ("gdcm", lambda: gdcm_dicom(ramp(), "JPEGLosslessProcess14")),
    "jpeg lossless, 8 bits": (
        "gdcm",
        lambda: gdcm_dicom((NOISE[1:] >> 8).astype(np.uint8), "JPEGLosslessProcess14_1"),
    ),
    "jpeg-ls": (
        "pyjpegls",
        lambda: dicom_bytes(
            ramp(), syntax=JPEGLSLossless, compressed=bytes(jpeg_ls.encode_array(ramp()))
        ),
    ),
    "jpeg 2000, 12 bits": (
        "gdcm",
        lambda: dicom_bytes(ramp(), syntax=JPEG2000Lossless, compressed=jpeg_2000_of(ramp(), 12)),
    ),
    "jpeg 2000, noise": (
        "gdcm",
        lambda: dicom_bytes(
            NOISE, syntax=JPEG2000Lossless, compressed=jpeg_2000_of(NOISE, 16), **DEEP
        ),
    ),
    "run-length": (None, lambda: dicom_bytes(NOISE, syntax=RLELossless, **DEEP)),
}


@pytest.mark.parametrize("name", FILES)
def test_codecs_agree_with_pydicom_to_the_bit(name):
    plugin, file = FILES[name]
    data = file()
    np.testing.assert_array_equal(stored(data), by_pydicom(data, plugin or ""))


def test_lossless_is_lossless():
    for data in (file() for name, (_, file) in FILES.items() if "noise" in name):
        np.testing.assert_array_equal(stored(data), NOISE)


def test_the_stream_decides_over_a_wrong_transfer_syntax():
    _, file = FILES["jpeg lossless"]
    frame, _ = stream(file())
    for syntax in (JPEGBaseline8Bit, JPEG2000Lossless, "1.2.840.10008.1.2.4.51"):
        wrong = dicom_bytes(ramp(), syntax=syntax, compressed=frame)
        np.testing.assert_array_equal(stored(wrong), ramp())


@pytest.mark.parametrize("name", ["jpeg 2000, 12 bits", "jpeg 2000, noise"])
@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[:-2],  # No end marker.
        lambda frame: frame[:-2] + b"\0",
        lambda frame: frame + b"\xff",
        lambda frame: frame + b"\0\0\0\0",
        lambda frame: frame + b"padding",
    ],
)
def test_jpeg_2000_may_lack_its_end_marker_or_have_padding(name, change):
    frame, replace = stream(FILES[name][1]())
    assert frame.rstrip(b"\0").endswith(b"\xff\xd9")
    changed = change(frame[: frame.rindex(b"\xff\xd9") + 2])
    whole = stored(replace(frame))
    np.testing.assert_array_equal(stored(replace(changed)), whole)


@pytest.mark.parametrize("name", [name for name in FILES if "8 bits" not in name])
def test_what_is_cut_short_is_refused_as_such(name, tmp_path):
    frame, replace = stream(FILES[name][1]())
    for kept in (0.3, 0.9):
        path = tmp_path / "image"
        path.write_bytes(replace(frame[: int(kept * len(frame))]))
        with pytest.raises(UnreadableImage, match="cut short"):
            read_radiograph(path)


def test_a_file_that_ends_within_its_fragments_is_read_if_the_image_is_whole():
    frame, _ = stream(FILES["jpeg lossless"][1]())
    data = dicom_bytes(ramp(), syntax=JPEGLosslessSV1, compressed=frame + b"\0\0")
    assert data.endswith(b"\xff\xd9\0\0\xfe\xff\xdd\xe0\0\0\0\0")
    for missing in (8, 9, 10):  # The delimiter, and padding of the stream.
        np.testing.assert_array_equal(stored(data[:-missing]), ramp())
    with pytest.raises(Refused, match="cut short"):
        stored(data[:-11])


def test_damaged_streams_are_not_called_cut_short(tmp_path):
    frame, replace = stream(FILES["jpeg 2000, 12 bits"][1]())
    at = frame.index(b"\xff\x93")
    path = tmp_path / "image"
    path.write_bytes(replace(frame[: at - 8] + b"\xff" * 6 + frame[at - 2 :]))
    with pytest.raises(UnreadableImage, match="JPEG 2000 data is damaged"):
        read_radiograph(path)


def test_junk_between_segments_does_not_reach_gdcm():
    frame, replace = stream(FILES["jpeg lossless"][1]())
    at = frame.index(b"\xff\xc3")
    with pytest.raises(Refused, match="JPEG data is damaged"):
        stored(replace(frame[:at] + b"junk" + frame[at:]))


def test_other_compressions_are_refused(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(dicom_bytes(ramp(), syntax=JPEGLosslessSV1, compressed=bytes(100)))
    with pytest.raises(UnreadableImage, match="neither JPEG, JPEG-LS, JPEG 2000 nor run-length"):
        read_radiograph(path)


PHOTOMETRIC = "PhotometricInterpretation"
RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
COLOR = np.stack([ramp() >> 4, ramp()[::-1] >> 4, 255 - (ramp() >> 4)], axis=-1).astype(np.uint8)


def test_colours_of_every_codec_become_one_luminance():
    plain = stored(dicom_bytes(COLOR, **RGB))
    chroma = np.asarray(Image.fromarray(COLOR).convert("YCbCr"))
    transformed = jpeg_2000_of(COLOR, 8, photometric_interpretation=1, use_mct=True)
    jpeg_2000_files = [
        dicom_bytes(COLOR, syntax=JPEG2000Lossless, compressed=data, **RGB | {PHOTOMETRIC: name})
        for name, data in [
            ("RGB", jpeg_2000(COLOR)),
            ("YBR_RCT", jpeg_2000(COLOR)),
            ("YBR_RCT", transformed),
            ("YBR_FULL", transformed),
            ("YBR_FULL", jpeg_2000(chroma)),
        ]
    ]
    files = [
        *jpeg_2000_files[:4],
        dicom_bytes(COLOR, syntax=RLELossless, **RGB),
        gdcm_dicom(COLOR, "JPEGLosslessProcess14_1", **RGB),
        *(
            dicom_bytes(
                COLOR,
                syntax=JPEGLSLossless,
                compressed=bytes(jpeg_ls.encode_array(COLOR, interleave_mode=mode)),
                **RGB,
            )
            for mode in (1, 2)
        ),
    ]
    for data in files:
        np.testing.assert_array_equal(stored(data), plain)
    assert np.abs(stored(jpeg_2000_files[4]).astype(int) - plain).max() <= 1


@pytest.mark.parametrize("representation", ["OW", "OB"])
@pytest.mark.parametrize("shape", [(60, 80), (61, 83)])
def test_bytes_in_big_endian_words_are_in_order(representation, shape):
    image = (ramp(*shape) >> 4).astype(np.uint8)
    values = image.tobytes() + bytes(image.size % 2)
    if representation == "OW":  # The first pixel in the lower byte, which comes second.
        values = np.frombuffer(values, "<u2").astype(">u2").tobytes()
    data = dicom_bytes(image, syntax=ExplicitVRBigEndian, pixel_data=(representation, values))
    np.testing.assert_array_equal(stored(data), image)


def test_a_stream_with_too_many_segments_is_refused_at_once(tmp_path):
    small = (ramp() >> 4).astype(np.uint8)
    frame = picture_bytes(small, "JPEG")
    path = tmp_path / "image"
    for comments in (b"\xff\xfe\0\2" * 10**6, b"\xff" * 10**6):
        hostile = frame[:2] + comments + frame[2:]
        path.write_bytes(hostile)
        with pytest.raises(UnreadableImage, match="segments"):
            read_radiograph(path)
        path.write_bytes(dicom_bytes(small, syntax=JPEGBaseline8Bit, compressed=hostile))
        with pytest.raises(UnreadableImage, match="segments"):
            read_radiograph(path)


def test_real_jpeg_lossless_and_twelve_bits(real_images):
    exact, lossy = (
        (real_images / "dicom" / f"{HIP}{name}_RG2.dcm").read_bytes()
        for name in ("jpeglosslessSV1", "jpegextended12")
    )
    np.testing.assert_array_equal(stored(exact), by_pydicom(exact, "gdcm"))
    difference = np.abs(stored(exact).astype(int) - stored(lossy))
    assert difference.mean() < 5  # Of 1024 greys.
    # Bone is brighter than the air beside the thigh.
    image = stored(exact)
    assert image.shape == (2140, 1760)
    assert image[1000:1100, 800:900].mean() > image[1200:1300, 300:350].mean()


def test_real_jpeg_2000(real_images):
    for path in sorted((real_images / "dicom").glob("*jpeg2000*")):
        data = path.read_bytes()
        values = stored(data)
        if values.dtype == np.uint16:
            np.testing.assert_array_equal(values, by_pydicom(data, "gdcm"))
