"""Boxes of the stored image lie on the same pixels after preprocessing."""

import itertools

import numpy as np
import pytest
from image_files import dicom_bytes
from PIL import Image

from data_pipeline.adapters import ADAPTERS
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


def _annotations(name, image, box, size):
    """What a data set says of a box, as files relative to its folder."""
    ends = ",".join(f"{end:.2f}" for end in box[:4])
    rows = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n" + "".join(
        f"{image},R{reader},Cardiomegaly,{ends}\n" for reader in (8, 9)
    )
    if name == "vindr_cxr":
        return {"annotations/annotations_train.csv": rows}
    if name == "vindr_pcxr":
        labels = "image_id,rad_ID,No finding,Pneumonia\n" + f"{image},R8,0.0,1.0\n"
        return {"annotations_train.csv": rows, "image_labels_train.csv": labels}
    height, width = size
    x, y, w, h = box.x0 + box.x1, box.y0 + box.y1, box.x1 - box.x0, box.y1 - box.y0
    files = {"dataset.csv": f"filestem,patient_id,age,fracture_visible\n{image},1,9.3,1\n"}
    if name == "yolo":
        shares = f"{x / 2 / width:.6f} {y / 2 / height:.6f} {w / width:.6f} {h / height:.6f}"
        return files | {f"folder_structure/yolov5/labels/{image}.txt": f"3 {shares}\n"}
    factor = 2 if name == "voc of twice the resolution" else 1
    tags = "".join(
        f"<{tag}>{factor * end}</{tag}>"
        for tag, end in zip(("xmin", "ymin", "xmax", "ymax"), box[:4], strict=True)
    )
    size = f"<size><width>{factor * width}</width><height>{factor * height}</height></size>"
    text = f"<annotation>{size}<object><name>fracture</name><bndbox>{tags}</bndbox></object>"
    return files | {f"folder_structure/pascalvoc/{image}.xml": f"{text}</annotation>"}


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        *((name, {}) for name in ("yolo", "voc", "voc of twice the resolution")),
        ("vindr_cxr", {}),
        ("vindr_cxr", {"PatientOrientation": ["R", "F"], "PixelSpacing": [0.2, 0.1]}),
        (
            "vindr_pcxr",
            {"PatientOrientation": ["F", "L"], "PhotometricInterpretation": "MONOCHROME1"},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_boxes_of_public_data_sets_lie_on_their_pixels(tmp_path, name, elements, resize):
    """As published: at any depth, as PNG of 16 bits or DICOM, in another orientation."""
    size, box = (300, 200), Box(80, 135, 120, 210, "")
    pixels = np.random.default_rng(0).integers(1000, 2000, size, np.uint16)
    pixels[box.y0 : box.y1, box.x0 : box.x1] = 4095
    if "MONOCHROME1" in elements.values():
        pixels = 4095 - pixels
    image = "50a418190bc3fb1e" if name in ADAPTERS else "0001_1297860395_01_WRI-L1_M014"
    for path, text in _annotations(name, image, box, size).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    adapter = name if name in ADAPTERS else "grazpedwri"
    folder = tmp_path / ("images_part1" if adapter == "grazpedwri" else "train")
    folder.mkdir()
    if adapter == "grazpedwri":
        Image.fromarray(pixels * 16).save(folder / f"{image}.png")
    else:
        (folder / f"{image}.dicom").write_bytes(dicom_bytes(pixels, **elements))
    found = ADAPTERS[adapter](str(tmp_path))
    preprocessing = Preprocessing(96, resize=resize)
    mapped = image_boxes(found, 0, preprocessing)
    assert {box.label for box in mapped} == {
        "fracture" if folder.name[0] == "i" else "Cardiomegaly"
    }
    white = load_image(found.image_path[0], preprocessing) > 200
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    bright = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(mapped[0][:4]) - bright).max() <= 1


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
