"""What the Python API takes as images, and how it refuses the rest."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.image_inputs import are_arrays, listed

GREY = np.zeros((5, 6), np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        "a.png",
        Path("a.png"),
        ["a.png"],
        (path for path in ["a.png"]),
        np.array(["a.png"]),
        np.array(["a.png"], dtype=object),
    ],
)
def test_files(images):
    items = listed(images)
    assert items == ["a.png"]
    assert not are_arrays(items)


def test_the_home_folder_is_known():
    assert listed("~/a.png") == [os.path.expanduser("~/a.png")]


@pytest.mark.parametrize(
    ("images", "count"),
    [(GREY, 1), (GREY[None], 1), (np.stack([GREY] * 7), 7), ([GREY, GREY.T], 2)],
)
def test_arrays(images, count):
    items = listed(images)
    assert len(items) == count
    assert {item.shape for item in items} <= {(5, 6), (6, 5)}
    assert are_arrays(items)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 6, 3), np.uint8), r"got uint8 \[5, 6, 3\], which seems to have channels"),
        (np.zeros((5, 6, 1), np.uint8), "which seems to have channels"),
        (np.zeros((2, 5, 6, 1), np.uint8), "which seems to have channels"),
        (GREY.astype(np.uint16), r"got uint16 \[1, 5, 6\]"),
        ([GREY, GREY.astype(float)], r"got float64 \[1, 5, 6\]"),
        (np.zeros((2, 0, 6), np.uint8), r"got uint8 \[2, 0, 6\]"),
        (np.zeros(5, np.uint8), r"got uint8 \[5\]"),
        (np.zeros((0, 5, 6), np.uint8), "no images were given"),
        ([], "no images were given"),
        (Image.fromarray(GREY), "expected files, or uint8 arrays .*; got Image"),
        ([Image.fromarray(GREY)], "got Image in list"),
        (["a.png", GREY], "got ndarray in list"),
        (None, "got NoneType"),
    ],
)
def test_what_is_neither_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        listed(images)
