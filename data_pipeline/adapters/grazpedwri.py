"""GRAZPEDWRI-DX: wrists of children, 16-bit PNG."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from data_pipeline.adapters.place import find_file, image_index, keep_present, parse_place
from data_pipeline.adapters.source_tables import (
    OLDEST_CHILD_MONTHS,
    ages_in_months,
    number,
    read_table,
)
from data_pipeline.cells import SEXES
from data_pipeline.manifest import Box, Records

_log = logging.getLogger(__name__)
_PROJECTIONS = {"1": "AP", "2": "LATERAL"}
# Class names of the YOLO files, which number them in alphabetical order.
_OBJECTS = (
    *("boneanomaly", "bonelesion", "foreignbody", "fracture", "metal", "periostealreaction"),
    *("pronatorsign", "softtissue", "text"),
)


def read_grazpedwri(place: str) -> Records:
    """Reads `PATH`: `dataset.csv`, and the images at any depth.

    Labelled `fracture` or `no fracture` by `fracture_visible`, where an empty cell means no. Boxes
    come from `<filestem>.xml` (Pascal VOC) or `<filestem>.txt` (YOLO) at any depth.

    Raises:
      DataError: the table or every image is missing.
    """
    root, _ = parse_place("grazpedwri", place)
    table = read_table(
        "grazpedwri",
        find_file("grazpedwri", root, "dataset.csv", "*.csv"),
        ("filestem", "patient_id", "age", "?gender", "?projection", "fracture_visible"),
    )
    index = image_index(root, (".png", ".xml", ".txt"))
    found = [index.get(f"{stem}.png") for stem in table["filestem"]]
    records = Records.create(
        [at or "" for at in found],
        source=f"grazpedwri:{root}",
        patient_id=[f"graz-{patient}" for patient in table["patient_id"]],
        age_months=ages_in_months("grazpedwri", table["age"], 12, OLDEST_CHILD_MONTHS),
        sex=[SEXES.get(sex.lower(), "") for sex in table["gender"]],
        view=[_PROJECTIONS.get(view, view) for view in table["projection"]],
        label=[
            "fracture" if number(visible) == 1 else "no fracture"
            for visible in table["fracture_visible"]
        ],
        boxes=_read_boxes(index, table["filestem"]),
    )
    return records.take(keep_present("grazpedwri", found))


def _read_boxes(index: dict[str, str], stems: Sequence[str]) -> list[tuple[Box, ...]]:
    boxes, unreadable = [], []
    for stem in stems:
        image, voc, yolo = (index.get(f"{stem}.{suffix}") for suffix in ("png", "xml", "txt"))
        found: tuple[Box, ...] = ()
        try:
            if image and voc:
                found = _voc_boxes(Path(voc), image)
            elif image and yolo:
                found = _yolo_boxes(Path(yolo), image)
        except (OSError, ValueError, IndexError, ElementTree.ParseError):
            unreadable.append(voc or yolo)
        boxes.append(found)
    if unreadable:
        count = len(unreadable)
        _log.warning("grazpedwri: %d files of boxes cannot be read: %s …", count, unreadable[0])
    return boxes


def _voc_boxes(path: Path, image: str) -> tuple[Box, ...]:
    """Reads pixels of the image; those of another resolution, if the file states it, are scaled."""
    root = ElementTree.parse(path).getroot()
    stated = [float(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
    with Image.open(image) as opened:  # The header alone.
        scales = [n / of if of > 0 else 1.0 for n, of in zip(opened.size, stated, strict=True)]
    boxes = []
    for one in root.iter("object"):
        ends = (one.findtext(f"bndbox/{end}", "") for end in ("xmin", "ymin", "xmax", "ymax"))
        x0, y0, x1, y1 = (float(end) * scale for end, scale in zip(ends, scales * 2, strict=True))
        boxes.append(Box(x0, y0, x1, y1, one.findtext("name", "")))
    return tuple(boxes)


def _yolo_boxes(path: Path, image: str) -> tuple[Box, ...]:
    """Reads lines of `class x y width height`: centre and size as fractions of the image."""
    with Image.open(image) as opened:  # The header alone.
        width, height = opened.size
    boxes = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *shares = line.split()
        x, y, w, h = map(float, shares)
        ends = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        boxes.append(Box(*ends, _OBJECTS[int(name)]))
    return tuple(boxes)
