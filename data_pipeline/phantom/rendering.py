"""From an address to a picture and to its truth."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.phantom.address import parse_address
from data_pipeline.phantom.body import Body, Draw, draw_organs, draw_trunk, make_body
from data_pipeline.phantom.bowel import draw_bowel
from data_pipeline.phantom.canvas import Canvas
from data_pipeline.phantom.devices import draw_devices, draw_marker
from data_pipeline.phantom.findings import FINDING, draw_finding, plan
from data_pipeline.phantom.patients import (
    STREAM_FILM,
    STREAM_NOISE,
    STREAM_PATIENT,
    Film,
    film_at,
    stream,
)
from data_pipeline.phantom.physics import SITES, attenuation, expose
from data_pipeline.phantom.skeleton import draw_skeleton

_LEAST_SIZE = 16
# Conditions that organs show, which nothing else is drawn for.
_ORGANS = {
    "hepatomegaly": ("liver",),
    "splenomegaly": ("spleen",),
    "situs inversus totalis": ("liver", "spleen", "heart", "stomach gas"),
}


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a finding is, in pixels of the picture; x1 and y1 lie outside of it."""

    label: str
    x0: int
    y0: int
    x1: int
    y1: int


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is on an image.

    Attributes:
      boxes: one for each finding; none on a normal image.
      masks: boolean `[size, size]` by name: `body`, `lungs`, `heart`, `liver`, `spleen`,
        `left kidney`, `right kidney`, `bladder`, `stomach gas`, `bowel gas`, `stool`, `spine`,
        `ribs`, `sacrum`, `pelvis`, `femora`, `marker`, `tube`, `clip`, and `finding`, as far as
        they are on the image. Where there are several findings also `finding: <name>` of each.
    """

    boxes: tuple[Box, ...]
    masks: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Setup:
    """How the image was taken: geometry in mm, image coordinates."""

    film: Film
    body: Body
    side: float
    x: float
    y: float
    field: tuple[float, float, float, float]
    energy_kev: float
    brightness: float
    contrast: float


def _set_up(film: Film) -> tuple[_Setup, Draw, Draw]:
    patient = Draw(stream(film.address, STREAM_PATIENT, film.patient))
    draw = Draw(stream(film.address, STREAM_FILM, film.address.film))
    body = make_body(film, patient, draw)
    top = body.dome_right - draw.between(1.0, 2.2 + 1.8 * body.infancy) * body.thoracic
    bottom = body.crest + draw.between(1.5, 1.8) * body.pelvis
    width = 2.1 * body.size.half_width * max(1.0, body.hips)
    side = max(bottom - top, width) * draw.between(1.02, 1.12)
    x = 0.02 * side * draw.normal()
    y = (top + bottom) / 2 + 0.015 * side * draw.normal()
    # Collimation: sometimes close to the patient, sometimes wider than the image.
    across = min(width * draw.between(0.98, 1.25), side * 1.02) / 2
    down = side * draw.between(0.46, 0.52)
    shift = 0.01 * side * draw.normal()
    field = (
        max(x + shift - across, x - side / 2),
        max(y - down, y - side / 2),
        min(x + shift + across, x + side / 2),
        min(y + down, y + side / 2),
    )
    grown = min(body.size.half_depth / 100, 1.2)
    # About 62 kV for a newborn and 80 kV for an adult give these effective energies (approximate).
    energy = 34 + 13 * grown + draw.between(-1.5, 1.5)
    setup = _Setup(
        film=film,
        body=body,
        side=side,
        x=x,
        y=y,
        field=field,
        energy_kev=energy,
        brightness=draw.between(-350, 350),
        contrast=draw.between(0.85, 1.15),
    )
    return setup, patient, draw


def _draw(film: Film, size: int, *, with_masks: bool) -> tuple[_Setup, Canvas]:
    setup, patient, draw = _set_up(film)
    body, mu = setup.body, attenuation(setup.energy_kev)
    inverted = "situs inversus totalis" in film.findings
    # Mirrored organs are drawn the usual way round on a canvas that is then mirrored.
    centre = -setup.x if inverted else setup.x
    canvas = Canvas(size, setup.side, centre, setup.y, with_masks=with_masks)
    draw_trunk(canvas, body, mu, draw)
    draw_organs(canvas, body, mu, draw)
    changes, lesion = plan(body, draw)
    loops = draw_bowel(canvas, body, changes, mu, patient, draw)
    draw_skeleton(canvas, body, mu, draw)
    draw_finding(canvas, body, lesion, loops, mu, draw)
    draw_devices(canvas, body, mu, draw)
    np.maximum(canvas.depth, 0, out=canvas.depth)
    if inverted:
        canvas.mirror()
    height = setup.side * draw.between(0.028, 0.04)
    draw_marker(canvas, setup.field, mu, draw, height)
    if canvas.masks is not None:
        everything = (slice(None), slice(None))
        for label in film.findings:
            for name in _ORGANS.get(label, ()):
                if name in canvas.masks:
                    patch = (everything, canvas.masks[name])
                    canvas.mark(FINDING + label if film.also else "finding", patch)
        for label in film.findings if film.also else ():
            if FINDING + label in canvas.masks:
                canvas.mark("finding", (everything, canvas.masks[FINDING + label]))
    return setup, canvas


def _check(size: int) -> None:
    if size < _LEAST_SIZE:
        raise ValueError(f"A phantom film is at least {_LEAST_SIZE} pixels wide; got {size}.")


def render_raw(address: str, size: int) -> np.ndarray:
    """The image as a detector stores it: uint16 `[size, size]`, 12 bits, bright = dense."""
    _check(size)
    film = film_at(parse_address(address))
    setup, canvas = _draw(film, size, with_masks=False)
    x0, y0, x1, y1 = setup.field
    rows, cols = canvas.window(x0, y0, x1, y1)
    field = canvas.layer()
    field[rows, cols] = 1
    thickness = 2 * setup.body.size.half_depth
    return expose(
        canvas.depth,
        field,
        canvas.pixel,
        SITES[film.site],
        dose=film.dose,
        thickness=thickness,
        gridded=thickness > 120,
        brightness=setup.brightness,
        contrast=setup.contrast,
        rng=stream(film.address, STREAM_NOISE, film.address.film, size),
    )


def render(address: str, size: int) -> np.ndarray:
    """The image as it is displayed: uint8 `[size, size]`, bone white, gas black.

    The 12 bits are windowed linearly over their full range.
    """
    raw = render_raw(address, size).astype(np.uint32)
    return ((raw * 510 + 4095) // 8190).astype(np.uint8)


def truth(address: str, size: int) -> Truth:
    """Boxes of the findings and masks of the organs, for the image at this size.

    The box of an enlarged organ is that of the organ; in situs inversus it holds the organs that
    lie on the wrong side.
    """
    _check(size)
    film = film_at(parse_address(address))
    _, canvas = _draw(film, size, with_masks=True)
    masks = {name: mask for name, mask in (canvas.masks or {}).items() if mask.any()}
    if film.label == "normal":
        return Truth((), masks)
    of = {label: FINDING + label if film.also else "finding" for label in film.findings}
    boxes = [_box(label, masks[name]) for label, name in of.items() if name in masks]
    return Truth(tuple(boxes), masks)


def _box(label: str, mask: np.ndarray) -> Box:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(label, int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)


def pixel_spacing(address: str, size: int) -> float:
    """Side of a pixel at the detector, mm."""
    setup, _, _ = _set_up(film_at(parse_address(address)))
    return setup.side / size
