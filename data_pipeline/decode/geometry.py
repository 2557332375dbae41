"""Display shutter (PS3.3 C.7.6.11) and patient orientation (PS3.3 C.7.6.1.1.1) of DICOM images."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.decode.dicom_file import DicomFile

_SHAPE = 0x00181600
_EDGES = _LEFT, _RIGHT, _UPPER, _LOWER = 0x00181602, 0x00181604, 0x00181606, 0x00181608
_CENTER, _RADIUS, _VERTICES = 0x00181610, 0x00181612, 0x00181620
SHUTTER_TAGS = frozenset({_SHAPE, *_EDGES, _CENTER, _RADIUS, _VERTICES})
# A shutter that leaves less than this share of the image is a mistake.
_MIN_SHOWN = 0.01

_DIRECTIONS = re.compile(r"([LRAPHF])[LRAPHF]{0,2}\\([LRAPHF])[LRAPHF]{0,2}")
_OPPOSITE = dict(zip("LRAPHF", "RLPAFH", strict=True))
_DECUBITUS = ("LLD", "RLD")
_EXTREMITY = re.compile(
    r"HAND|FINGER|THUMB|WRIST|FOREARM|ULNA|RADIUS|ELBOW|HUMERUS|ARM|"
    r"FOOT|FEET|TOE|HEEL|CALCANEUS|ANKLE|TIBIA|FIBULA|LEG|KNEE|PATELLA|FEMUR|THIGH|EXTREMITY"
)


def shutter(
    dicom: DicomFile, shape: tuple[int, int], size: tuple[int, int], notes: list[str]
) -> np.ndarray | None:
    """Boolean `[H, W]`: the pixel lies inside the display shutter. None without a shutter.

    Args:
      dicom: the parsed file.
      shape: height and width of the decoded image.
      size: rows and columns of the stored image, which the shutter refers to.
      notes: gets a note if there is a shutter.
    """
    edges = [(dicom.decimals(tag) or [np.nan])[0] for tag in _EDGES]
    shapes = set(dicom.text(_SHAPE).upper().replace(" ", "").split("\\")) - {""}
    if shapes - {"RECTANGULAR", "CIRCULAR", "POLYGONAL"} or (
        not shapes and np.isfinite(edges).any()
    ):
        notes.append("display shutter ignored: not a rectangle, circle or polygon")
    # Coordinates begin at 1, in the middle of the first pixel.
    y, x = ((np.arange(n) + 0.5) * (of / n) + 0.5 for n, of in zip(shape, size, strict=True))
    inside = np.ones(shape, bool)
    if "RECTANGULAR" in shapes:
        inside &= ((y >= edges[2]) & (y <= edges[3]))[:, None]
        inside &= ((x >= edges[0]) & (x <= edges[1]))[None, :]
    if "CIRCULAR" in shapes:
        circle = [*dicom.decimals(_CENTER), *dicom.decimals(_RADIUS)]
        row, column, radius = circle if len(circle) == 3 else [np.nan] * 3
        half = np.sqrt(np.clip(radius**2 - (y - row) ** 2, 0.0, None))
        inside &= (np.abs(y - row) <= radius)[:, None]
        inside &= np.abs(x - column)[None, :] <= half[:, None]
    if "POLYGONAL" in shapes:
        numbers = np.array(dicom.decimals(_VERTICES))
        points = numbers[: len(numbers) // 2 * 2].reshape(-1, 2)
        points = (points.clip(-1e5, 1e5) - 0.5) * (np.array(shape) / np.array(size)) - 0.5
        drawn = Image.new("L", shape[::-1])
        if len(points) >= 3:
            ImageDraw.Draw(drawn).polygon([(column, row) for row, column in points], fill=1)
        inside &= np.asarray(drawn, bool)
    share = inside.mean()
    if share == 1.0:
        return None
    if share < _MIN_SHOWN:
        notes.append("display shutter ignored: it hides the whole image, or lacks its position")
        return None
    notes.append("display shutter: the image is black outside of it")
    return inside


def standard_view(
    pixels: np.ndarray, orientation: str, view: str, body_part: str, notes: list[str]
) -> np.ndarray:
    r"""Turns and mirrors an image `[H, W]` to the standard view, by its Patient Orientation.

    The element gives the directions in the patient in which rows and columns run: to the Left,
    Right, Anterior, Posterior, Head or Feet. In the standard view columns run to the feet. Rows of
    a frontal image run to the patient's left (`L\F`), as if the patient faced the viewer: situs
    inversus looks like a mirrored image. An image without the element, or in the standard view, is
    returned as it is.

    * A lateral image is turned until its columns run to the feet, and never mirrored. `A\F` and
      `P\F` are both customary.
    * A decubitus image (View Position LLD or RLD) is mirrored if necessary, and never turned: it is
      read with gravity pointing down.
    * An extremity is left as it is: hands and feet are shown with fingers and toes upwards, and
      what left and right mean in such an image depends on its writer.
    * Other planes (an axial view of the skull) are left as they are.

    Args:
      pixels: the image as stored.
      orientation: Patient Orientation, such as `"R\\F"`.
      view: View Position.
      body_part: Body Part Examined.
      notes: gets a note if the image is not stored in the standard view.
    """
    match = _DIRECTIONS.fullmatch(orientation)
    if not match:
        return pixels
    row, column = match.groups()
    # Counter-clockwise quarter turns after which columns run to the feet.
    directions = (column == "F", row == "H", column == "H", row == "F")
    if not any(directions):
        return pixels
    turns = directions.index(True)
    row_then = (row, column, _OPPOSITE[row], _OPPOSITE[column])[turns]
    mirrored = row_then == "R"
    if view in _DECUBITUS:
        turns = 0
    if row_then in "HF" or not (turns or mirrored):
        return pixels
    if _EXTREMITY.search(body_part):
        notes.append(f"patient orientation {orientation} of an extremity; left as it is stored")
        return pixels
    done = [f"turned by {(0, 90, 180, 270)[turns]} degrees"] * bool(turns) + ["mirrored"] * mirrored
    notes.append(f"patient orientation {orientation}; {' and '.join(done)} to the standard view")
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
