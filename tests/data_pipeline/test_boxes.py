"""Boxes of the stored image lie on the same pixels after preprocessing."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipeline.boxes import _oriented, image_boxes
from data_pipeline.decode import RESIZE_MODES, Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.manifest import Box, Records
from data_pipeline.phantom import open_phantom, truth


def records(path, *boxes):
    return Records.create([str(path)], source="s", boxes=[boxes])


def write_image(path, size, box, margin=0):
    """A grey image with a white rectangle; noise, but for the margins, which are black."""
    height, width = size
    pixels = np.random.default_rng(0).integers(60, 140, size, np.uint8)
    pixels[: 2 * margin] = pixels[height - margin :] = 0
    pixels[:, :margin] = pixels[:, width - 3 * margin :] = 0
    pixels[box.y0 : box.y1, box.x0 : box.x1] = 255
    Image.fromarray(pixels).save(path, quality=95)
    return path


@pytest.mark.parametrize(
    ("resize", "trim", "size", "suffix"),
    [
        *itertools.product(RESIZE_MODES, (False, True), ((300, 200), (170, 400)), ("png",)),
        ("pad", True, (1600, 2000), "jpg"),  # Decoded at a reduced scale.
        ("crop", False, (1600, 2000), "jpg"),
    ],
)  # fmt: skip
def test_a_box_lies_on_its_pixels(tmp_path, resize, trim, size, suffix):
    height, width = size
    box = Box(int(width * 0.4), int(height * 0.45), int(width * 0.6), int(height * 0.7), "mass")
    path = write_image(tmp_path / f"a.{suffix}", size, box, margin=height // 20 if trim else 0)
    preprocessing = Preprocessing(64, resize=resize, trim_borders=trim)
    (found,) = image_boxes(records(path, box), 0, preprocessing)
    assert found.label == "mass"
    white = load_image(str(path), preprocessing) > 200
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    bright = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(found[:4]) - bright).max() <= 1


def test_what_lies_outside_is_cut_off(tmp_path):
    path = write_image(tmp_path / "a.png", (100, 300), Box(0, 0, 1, 1, ""))
    boxes = Box(0, 10, 90, 20, "left"), Box(90, 10, 150, 20, "half"), Box(150, 0, 151, 1, "in")
    found = image_boxes(records(path, *boxes), 0, Preprocessing(100, resize="crop"))
    assert found == (Box(0, 10, 50, 20, "half"), Box(50, 0, 51, 1, "in"))


def test_boxes_of_another_resolution_are_unknown(tmp_path, caplog):
    path = write_image(tmp_path / "a.png", (100, 100), Box(0, 0, 1, 1, ""))
    assert image_boxes(records(path, Box(0, 0, 9, 9, "")), 0, Preprocessing(32))
    assert not image_boxes(
        records(path, Box(0, 0, 9, 9, ""), Box(0, 0, 9, 200, "")), 0, Preprocessing(32)
    )
    assert "boxes lie outside of the image's 100 x 100 pixels" in caplog.text


def test_an_image_is_not_read_without_boxes(tmp_path):
    assert image_boxes(records(tmp_path / "none.png"), 0, Preprocessing(32)) == ()
    with pytest.raises(UnreadableImage):
        image_boxes(records(tmp_path / "none.png", Box(0, 0, 1, 1, "")), 0, Preprocessing(32))


def test_the_phantom_knows_its_boxes():
    phantom = open_phantom("infant:films=22")
    found = [image_boxes(phantom, row, Preprocessing(64)) for row in range(11)]
    expected = [truth(path, 64).boxes for path in phantom.image_path[:11]]
    assert [len(boxes) for boxes in found] == [len(boxes) for boxes in expected]
    (box,), (true,) = next(pair for pair in zip(found, expected, strict=True) if pair[0])
    assert box == (true.x0, true.y0, true.x1, true.y1, true.label)


@pytest.mark.parametrize(("turns", "mirrored"), [(n, m) for n in range(4) for m in (False, True)])
def test_boxes_turn_with_the_image(turns, mirrored):
    """As the decoder turns pixels by their Patient Orientation."""
    pixels = np.zeros((8, 8), bool)
    pixels[1:3, 4:8] = True
    done = [f"turned by {90 * turns} degrees"] * bool(turns) + ["mirrored"] * mirrored
    note = f"patient orientation R\\F; {' and '.join(done)} to the standard view"
    corners = np.array([[4, 1], [8, 3]]) / 8
    (x0, y0), (x1, y1) = (8 * _oriented(corners, ("another", note))).astype(int)
    turned = np.rot90(pixels, turns)
    turned = turned[:, ::-1] if mirrored else turned
    expected = np.zeros_like(turned)
    expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(turned, expected)
