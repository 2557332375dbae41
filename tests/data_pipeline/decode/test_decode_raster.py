"""PNG, JPEG and TIFF; resizing; refusals."""

import io
import itertools
import logging
import pickle
import struct
import zlib

import numpy as np
import pytest
from image_files import dicom_bytes, picture_bytes, ramp
from PIL import Image

from data_pipeline.decode import Preprocessing, load_image, read_radiograph, to_square
from data_pipeline.decode.preprocessing import trim_borders
from data_pipeline.decode.radiograph import DECODER_VERSION
from data_pipeline.errors import UnreadableImage, UserError

SMALL = (ramp() >> 4).astype(np.uint8)
WIDE = ramp() << 4
DEEP = np.stack([WIDE] * 3, axis=-1)


def by_percentiles(radiograph):
    low, high = np.percentile(radiograph, (0.5, 99.5), method="inverted_cdf").astype(float)
    return np.clip((radiograph - low) / (high - low), 0, 1) * 65535


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_not_clipped(read, kind):
    radiograph = read(picture_bytes(WIDE, kind))
    assert radiograph.pixels.dtype == np.uint16
    np.testing.assert_allclose(radiograph.pixels, by_percentiles(WIDE), atol=0.51)
    assert len(np.unique(radiograph.pixels)) > 1500
    assert radiograph.header.bits == 16


def test_sixteen_bits_are_shown_as_in_dicom_without_a_window(read):
    picture, dicom = read(picture_bytes(ramp(), "PNG")), read(dicom_bytes(ramp()))
    np.testing.assert_array_equal(picture.pixels, dicom.pixels)
    assert picture.header.notes == dicom.header.notes == ()


def test_brightness_does_not_jump_with_the_largest_value(read):
    radiograph = ramp().astype(float)
    means = []
    for largest in (1000, 1023, 1024, 4000, 4096, 16000, 20000, 65535):
        stored = np.rint(radiograph * (largest / radiograph.max())).astype(np.uint16)
        stored[0, 0] = min(3 * largest, 65535)  # An image mark.
        means.append(read(picture_bytes(stored, "PNG")).pixels.mean())
    assert np.ptp(means) < 0.01 * np.mean(means)


def test_an_almost_blank_picture_shows_what_is_there(read):
    radiograph = np.zeros((100, 100), np.uint16)
    radiograph[50, 10:30] = np.arange(100, 2100, 100)
    pixels = read(picture_bytes(radiograph, "PNG")).pixels
    np.testing.assert_allclose(pixels, radiograph * (65535 / 2000), atol=0.51)
    constant = np.full((60, 80), 700, np.uint16)
    assert (read(picture_bytes(constant, "PNG")).pixels == 0).all()


def test_eight_bits(read):
    np.testing.assert_array_equal(read(picture_bytes(SMALL, "PNG")).pixels, SMALL)
    jpeg = read(picture_bytes(SMALL, "JPEG", quality=95)).pixels.astype(int)
    assert np.abs(jpeg - SMALL).max() <= 3
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        tiff = read(picture_bytes(SMALL, "TIFF", compression=compression))
        np.testing.assert_array_equal(tiff.pixels, SMALL)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_in_tiff_is_inverted(read, bits):
    radiograph = SMALL if bits == 8 else WIDE
    negative = np.iinfo(radiograph.dtype).max - radiograph
    data = picture_bytes(negative, "TIFF", tiffinfo={262: 0})
    if bits == 8:
        # Pillow inverts on writing as well, so the stored bytes are the image itself.
        np.testing.assert_array_equal(read(data).pixels, negative)
    else:
        shown = read(picture_bytes(radiograph, "TIFF")).pixels
        np.testing.assert_allclose(read(data).pixels, shown, atol=400)  # Ranks round upwards.


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "LA", "1", "CMYK"])
def test_greys_in_other_modes(read, mode):
    image = Image.fromarray(SMALL).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    expected = np.asarray(image.convert("L"), int)
    assert np.abs(read(buffer.getvalue()).pixels - expected).max() <= 1


def test_colour_is_noted(read):
    color = np.stack([SMALL, SMALL[::-1], 255 - SMALL], axis=-1)
    assert read(picture_bytes(color, "PNG")).header.notes == ("in colour",)
    assert read(picture_bytes(np.stack([SMALL] * 3, -1), "PNG")).header.notes == ()


def test_transparent_is_black(read):
    radiograph = np.dstack([np.full((20, 30), 200, np.uint8), np.full((20, 30), 255, np.uint8)])
    radiograph[:, :10, 1] = 0
    pixels = read(picture_bytes(radiograph, "PNG")).pixels
    assert pixels[:, :10].max() == 0
    assert pixels[:, 10:].min() == 200


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_exif_orientation_is_applied_once(read, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn right to view.
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, kind, exif=exif)
    radiograph = read(buffer.getvalue())
    assert np.abs(radiograph.pixels.astype(int) - np.rot90(SMALL, -1)).max() <= 3
    if kind != "TIFF":
        assert radiograph.header.size == (80, 60)


def test_exif_behind_the_pixels_of_a_png_is_applied(read):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture_bytes(WIDE, "PNG")
    chunk = png_chunk(b"eXIf", exif.tobytes()[6:])
    turned = read(data[:-12] + chunk + data[-12:]).pixels
    np.testing.assert_array_equal(turned, np.rot90(read(data).pixels, -1))


def test_jpeg_is_decoded_at_reduced_scale_only_as_far_as_needed(tmp_path):
    radiograph = (ramp(1000, 800) >> 4).astype(np.uint8)
    path = tmp_path / "image.jpg"
    path.write_bytes(picture_bytes(radiograph, "JPEG", quality=95))
    assert read_radiograph(path, min_side=100).pixels.shape == (125, 100)
    assert read_radiograph(path, min_side=101).pixels.shape == (250, 200)
    full = to_square(read_radiograph(path).pixels, Preprocessing(64)).astype(int)
    assert np.abs(load_image(str(path), Preprocessing(64)) - full).max() <= 2


def test_resize_modes_keep_what_they_promise():
    radiograph = np.full((100, 50), 200, np.uint8)
    padded = to_square(radiograph, Preprocessing(40))
    assert padded.shape == (40, 40)
    assert (padded[:, 10:30] == 200).all()
    assert (padded[:, :10] == 0).all()
    assert (padded[:, 30:] == 0).all()
    assert (to_square(radiograph, Preprocessing(40, "squash")) == 200).all()
    radiograph[:25] = radiograph[75:] = 0
    assert (to_square(radiograph, Preprocessing(40, "crop")) == 200).all()


def test_resizing_anti_aliases():
    lines = np.zeros((512, 512), np.uint8)
    lines[::2] = 255
    small = to_square(lines, Preprocessing(64)).astype(int)
    assert np.abs(small[2:-2] - 127.5).max() < 4


def test_depths_agree():
    radiograph = ramp(300, 200)
    wide = np.rint(radiograph * (65535 / 4095)).astype(np.uint16)
    narrow = np.rint(radiograph * (255 / 4095)).astype(np.uint8)
    for mode in ("pad", "squash", "crop"):
        how = Preprocessing(48, mode)
        eight = to_square(wide, how).astype(int)
        assert np.abs(to_square(narrow, how) - eight).max() <= 1
        sixteen = to_square(wide, how, np.uint16)
        assert np.abs(sixteen / 257 - eight).max() <= 0.51


def test_trimming_cuts_margins_and_nothing_else():
    radiograph = np.zeros((100, 120), np.uint8)
    radiograph[20:90, 30:100] = np.random.default_rng(0).integers(40, 255, (70, 70))
    assert trim_borders(radiograph).shape == (70, 70)
    anatomy = radiograph[20:90, 30:100]
    assert trim_borders(anatomy).shape == (70, 70)
    assert trim_borders(np.zeros((50, 50), np.uint8)).shape == (10, 10)


def test_preprocessing_travels():
    how = Preprocessing(224, "crop", trim_borders=True)
    assert Preprocessing.from_dict(how.to_dict()) == how
    assert how.to_dict()["decoder_version"] == DECODER_VERSION
    variants = [how, Preprocessing(224), Preprocessing(192), Preprocessing(224, "crop")]
    assert len({variant.fingerprint() for variant in variants}) == 4
    for version in (DECODER_VERSION + 1, 0, "2"):
        with pytest.raises(UserError, match=f"decoder version {version}.*newer release"):
            Preprocessing.from_dict({**how.to_dict(), "decoder_version": version})
    with pytest.raises(UserError, match="unknown key 'side'"):
        Preprocessing.from_dict({"image_size": 64, "side": 1})
    with pytest.raises(UserError, match="resize is 'stretch'"):
        Preprocessing(64, "stretch")
    with pytest.raises(UserError, match="image_size"):
        Preprocessing(0)


def test_preprocessing_of_older_versions_is_used_with_a_warning(caplog):
    how = Preprocessing(224)
    with caplog.at_level(logging.WARNING):
        assert Preprocessing.from_dict(how.to_dict()) == how
    assert not caplog.text
    for version in range(1, DECODER_VERSION):
        caplog.clear()
        assert Preprocessing.from_dict({**how.to_dict(), "decoder_version": version}) == how
        assert f"decoder version {version}" in caplog.text
        assert "display shutter" in caplog.text
        assert ("16 bits" in caplog.text) == (version == 1)


def png_chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, pixels, bits=8, color_type=0):
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(pixels))
        + png_chunk(b"IEND", b"")
    )


def deep_png(channels, color_type):
    radiograph = np.repeat(ramp()[..., None], channels, axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in radiograph)
    return png(80, 60, rows, bits=16, color_type=color_type)


def tiff(pixels, order="<", big=False, photometric=1, signed=1, planar=1, bits=None, extra=()):
    """An uncompressed TIFF or BigTIFF of `pixels` `[H, W]` or `[H, W, C]`, as Pillow writes few."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    planes = samples if planar == 2 else 1
    stored = np.moveaxis(pixels, -1, 0) if planar == 2 else pixels
    data = stored.astype(pixels.dtype.newbyteorder(order)).tobytes()
    word = "Q" if big else "I"
    start = 16 if big else 8
    size = len(data) // planes
    tags = {
        256: [width], 257: [height], 258: [bits or 8 * pixels.itemsize] * samples, 259: [1],
        262: [photometric], 273: [start + i * size for i in range(planes)], 277: [samples],
        278: [height], 279: [size] * planes, 284: [planar], 339: [signed] * samples, **dict(extra),
    }  # fmt: skip
    offset = start + len(data) + len(data) % 2
    directory, heap = b"", b""
    heap_at = offset + (8 if big else 2) + len(tags) * (20 if big else 12) + (8 if big else 4)
    for tag, values in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        value = struct.pack(order + letter * len(values), *values)
        if len(value) > (8 if big else 4):
            at, heap = heap_at + len(heap), heap + value + b"\0" * (len(value) % 2)
            value = struct.pack(order + word, at)
        directory += struct.pack(order + "HH" + word, tag, kind, len(values))
        directory += value.ljust(8 if big else 4, b"\0")
    magic = b"II" if order == "<" else b"MM"
    head = (
        struct.pack(order + "HHHQ", 43, 8, 0, offset)
        if big
        else struct.pack(order + "HI", 42, offset)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    body = data + b"\0" * (len(data) % 2)
    return magic + head + body + count + directory + bytes(8 if big else 4) + heap


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int8, np.int16])
def test_tiff_of_every_kind_of_grey(read, order, big, photometric, kind):
    image = SMALL if np.dtype(kind).itemsize == 1 else WIDE
    wanted = read(tiff(image)).pixels
    shift = np.iinfo(kind).min
    stored = (image.astype(int) + shift).astype(kind)
    if photometric == 0:
        stored = (-1 - stored.astype(int) if shift else np.iinfo(kind).max - stored).astype(kind)
    signed = 2 if shift else 1
    data = tiff(stored, order, big, photometric, signed)
    if kind == np.int8 and photometric == 0:
        with pytest.raises(UnreadableImage, match="a kind of TIFF that cannot be read"):
            read(data)
        return
    pixels = read(data).pixels
    assert pixels.dtype == wanted.dtype
    # By percentiles, half a percent is clipped at either end; ranks round upwards.
    assert np.abs(pixels.astype(int) - wanted).max() <= (400 if pixels.dtype == np.uint16 else 0)
    assert pixels[:, -1].mean() > pixels[:, 0].mean()


def test_colours_of_tiff_pixel_by_pixel_and_in_planes(read):
    color = np.stack([SMALL, SMALL[::-1], 255 - SMALL], axis=-1)
    wanted = read(picture_bytes(color, "PNG")).pixels
    for order, planar in itertools.product("<>", (1, 2)):
        radiograph = read(tiff(color, order, order == "<", 2, planar=planar))
        np.testing.assert_array_equal(radiograph.pixels, wanted)
        assert radiograph.header.notes == ("in colour",)
    palette = Image.fromarray(color).quantize(200)
    buffer = io.BytesIO()
    palette.save(buffer, "TIFF")
    np.testing.assert_array_equal(read(buffer.getvalue()).pixels, np.asarray(palette.convert("L")))


def test_the_first_picture_of_a_phone_is_read(read):
    small = Image.fromarray(SMALL)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(
        buffer, "MPO", save_all=True, append_images=[small.resize((20, 15))], quality=95, exif=exif
    )
    radiograph = read(buffer.getvalue())
    assert np.abs(radiograph.pixels.astype(int) - np.rot90(SMALL, -1)).max() <= 3
    assert radiograph.header.notes == ("several pictures in one file (MPO); the first is shown",)
    assert read(buffer.getvalue(), min_side=30).pixels.shape == (40, 30)


REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"image_path,label\n" * 20, "neither DICOM, PNG, JPEG nor TIFF"),
    "web page": (b"<!doctype html><html>", "failed download"),
    "zip": (b"PK\x03\x04" + bytes(200), "ZIP archive"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "gif": (b"GIF89a" + bytes(100), "a GIF image"),
    "bomb": (png(60000, 60000, bytes(100)), "limit"),
    "truncated png": (picture_bytes(SMALL, "PNG")[:-100], "damaged"),
    "truncated jpeg": (picture_bytes(SMALL, "JPEG")[:-300], "damaged"),
    "truncated tiff": (picture_bytes(SMALL, "TIFF", compression="tiff_lzw")[:-900], "damaged"),
    "float": (picture_bytes(np.ones((9, 9), np.float32), "TIFF"), "floating point"),
    "tiff, integers of 32 bits": (tiff(SMALL.astype(np.int32), signed=2), "32-bit integers"),
    "tiff, integers of 64 bits": (tiff(SMALL.astype(np.int64), signed=2), "a kind of TIFF that"),
    "big-endian BigTIFF": (tiff(WIDE, ">", big=True), "BigTIFF in big-endian"),
    "tiff, 14 bits": (tiff(WIDE, bits=14), "a kind of TIFF that cannot be read"),
    "tiff, CIELAB": (tiff(np.stack([SMALL] * 3, -1), photometric=8), "CIELAB"),
    "apple double": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100), "an AppleDouble file of macOS"),
    "folder settings": (b"\0\0\0\1Bud1" + bytes(100), r"a .DS_Store file"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIC or AVIF image"),
    "chunks": (picture_bytes(SMALL, "PNG")[:33] + png_chunk(b"teSt", b"") * 100_001, "chunks"),
    "scans": (b"\xff\xd8\xff", "damaged"),
    "png, RGB of 16 bits": (deep_png(3, 2), "16 bits in each of several channels; convert it"),
    "png, grey and alpha of 16 bits": (deep_png(2, 4), "16 bits in each of several channels"),
    "png, RGBA of 16 bits": (deep_png(4, 6), "16 bits in each of several channels"),
    "tiff, RGB of 16 bits": (tiff(DEEP, photometric=2), "16 bits in each of several channels"),
    "tiff, planes of 16 bits": (
        tiff(DEEP, photometric=2, planar=2),
        "16 bits in each of several channels|a kind of TIFF that cannot be read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(read, name):
    data, reason = REFUSED[name]
    with pytest.raises(UnreadableImage, match=reason):
        read(data)


def test_several_pages_are_refused(read):
    buffer = io.BytesIO()
    page = Image.fromarray(SMALL)
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    with pytest.raises(UnreadableImage, match="2 pictures"):
        read(buffer.getvalue())


def test_many_progressive_scans_are_refused(read):
    data = picture_bytes(SMALL, "JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    with pytest.raises(UnreadableImage, match="progressive scans"):
        read(data[:at] + data[at:-2] * 60 + data[-2:])


def test_junk_between_the_segments_of_a_jpeg_is_skipped(read):
    data = picture_bytes(SMALL, "JPEG")
    wanted = read(data).pixels
    at = 4 + int.from_bytes(data[4:6], "big")
    for junk in (b"junk", b"\xff\xff", b"\xff\0\0"):
        np.testing.assert_array_equal(read(data[:at] + junk + data[at:]).pixels, wanted)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UnreadableImage, match="does not exist") as caught:
        load_image(str(tmp_path / "none.png"), Preprocessing(32))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.reason) == (caught.value.path, caught.value.reason)
    with pytest.raises(UnreadableImage, match="a folder, not an image"):
        load_image(str(tmp_path), Preprocessing(32))
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        load_image("a\0b", Preprocessing(32))


def test_phantom_images_come_through_the_same_door():
    from data_pipeline.phantom import open_phantom, render

    address = open_phantom("infant:films=40").image_path[0]
    radiograph = load_image(address, Preprocessing(64))
    np.testing.assert_array_equal(radiograph, render(address, 64))
    wide = load_image(address, Preprocessing(64), np.uint16)
    np.testing.assert_array_equal(wide // 257, radiograph)
