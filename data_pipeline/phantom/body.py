"""The trunk: skin, fat, lungs, heart, solid organs and skeleton of one patient on one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data_pipeline.phantom.canvas import Canvas, texture
from data_pipeline.phantom.growth import ORGAN_SD, STATURE_SD, Growth, growth
from data_pipeline.phantom.patients import Film
from data_pipeline.phantom.physics import Attenuation

T = TypeVar("T")
Oval = tuple[float, float, float, float]  # x, y, semi-axes a, b, mm


class Draw:
    """Random numbers by the shapes that anatomy needs. Scalar arithmetic only, so portable."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def normal(self) -> float:
        """Nearly normal: sum of six uniform numbers, so never beyond 4.3."""
        return float(sum(self.rng.random(6).tolist()) - 3) * 1.4142135623730951

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]


@dataclasses.dataclass(frozen=True)
class Body:
    """One patient at one visit; all lengths in mm, in anatomical coordinates.

    Attributes:
      film: the patient and visit.
      size: tables read for this patient.
      lumbar, thoracic: distance between vertebrae (short for `size.lumbar`, `size.thoracic`).
      wall: half width of the abdominal cavity at the umbilicus.
      dome_right, dome_left: height of the two halves of the diaphragm.
      crest: height of the iliac crests.
      pelvis: half the bi-iliac breadth.
      hip: height of the hip joints.
      liver, left_lobe, spleen: ovals on the image.
      lean: sideways shift per mm of height.
      bend: of the spine, mm.
      waist, chest, hips: width there relative to the umbilicus.
    """

    film: Film
    size: Growth
    lumbar: float
    thoracic: float
    wall: float
    dome_right: float
    dome_left: float
    crest: float
    pelvis: float
    hip: float
    liver: Oval
    left_lobe: Oval
    spleen: Oval
    lean: float
    bend: float
    chest: float
    hips: float

    @property
    def infancy(self) -> float:
        """1 at birth, 0 from four years on."""
        return max(0.0, 1 - self.film.age_months / 48)

    def vertebra(self, thoracic_level: float) -> float:
        """Height of the centre of a vertebra: 12 is T12, 13 is L1, 17 is L5."""
        if thoracic_level >= 13:
            return (thoracic_level - 15) * self.lumbar
        last = -2 * self.lumbar - 0.5 * (self.lumbar + self.thoracic)
        return last + (thoracic_level - 12) * self.thoracic


def make_body(film: Film, patient: Draw, visit: Draw) -> Body:
    """Draws a patient: `patient` is the same stream at every visit, `visit` is the image's own."""
    size = growth(
        film.age_months,
        film.sex,
        stature=1 + STATURE_SD * patient.normal(),
        girth=max(1 + (0.06 if film.age_months < 216 else 0.1) * patient.normal(), 0.8),
        tempo=max(1 + 0.1 * patient.normal(), 0.6),
        organs=max(1 + ORGAN_SD / 2 * patient.normal(), 0.8),
    )
    lumbar, thoracic = size.lumbar, size.thoracic
    infancy = max(0.0, 1 - film.age_months / 48)
    first = -2 * lumbar - 0.5 * (lumbar + thoracic)  # T12
    breath = visit.between(-0.5, 0.5) + (0.3 if film.view == "upright" else 0.0)
    dome_right = first - (2.9 - 0.3 * infancy - breath) * thoracic
    dome_left = dome_right + patient.between(0.3, 0.9) * thoracic
    wall = size.half_width - size.fat
    enlarged_liver = enlarged_spleen = 1.0
    if "hepatomegaly" in film.enlarged:
        enlarged_liver = 1.22 + 0.5 * film.severity
    if "splenomegaly" in film.enlarged:
        enlarged_spleen = 1.5 + 1.0 * film.severity
    a, b = size.liver[0] * (0.4 + 0.6 * enlarged_liver), size.liver[1] * enlarged_liver
    liver = (-wall * 0.97 + a, dome_right + 0.06 * thoracic + b, a, b)
    lobe = 0.45 + 0.12 * infancy
    left_lobe = (
        -wall * 0.08 * (1 - infancy),
        dome_right + 0.35 * thoracic + lobe * b * 0.8,
        wall * (0.34 + 0.16 * infancy) * (0.5 + 0.5 * enlarged_liver),
        lobe * b * 0.8,
    )
    a, b = size.spleen[0] * enlarged_spleen, size.spleen[1] * enlarged_spleen
    spleen = (wall * 0.95 - a * 1.05, dome_left + 0.5 * thoracic + b * 0.92, a, b)
    crest = 0.75 * lumbar
    adult_woman = film.sex == "F" and film.age_months > 156
    return Body(
        film=film,
        size=size,
        lumbar=lumbar,
        thoracic=thoracic,
        wall=wall,
        dome_right=dome_right,
        dome_left=dome_left,
        crest=crest,
        pelvis=size.half_pelvis,
        hip=crest + 0.98 * size.half_pelvis,
        liver=liver,
        left_lobe=left_lobe,
        spleen=spleen,
        lean=0.015 * visit.normal(),
        bend=0.15 * lumbar * patient.normal() * (1 - 0.6 * infancy),
        chest=0.96 - 0.03 * infancy + 0.03 * patient.normal(),
        hips=(1.1 if adult_woman else 0.99 - 0.1 * infancy) + 0.02 * patient.normal(),
    )


def _smoothstep(at: np.ndarray, start: float, end: float) -> np.ndarray:
    t = np.clip((at - np.float32(start)) * np.float32(1 / (end - start)), 0, 1)
    return np.asarray(t * t * (np.float32(3) - np.float32(2) * t))


def _outline(canvas: Canvas, body: Body, inset: float) -> np.ndarray:
    """Thickness of the trunk and thighs, `inset` mm below the skin."""
    size, y = body.size, canvas.y
    perineum = body.crest + 1.5 * body.pelvis
    width = size.half_width * (
        np.float32(body.chest)
        + np.float32(1 - body.chest) * _smoothstep(y, body.vertebra(10), -0.3 * body.lumbar)
        + np.float32(body.hips - 1) * _smoothstep(y, 0, body.hip)
    ) - np.float32(inset)
    depth = size.half_depth * (
        np.float32(1) - np.float32(0.14) * _smoothstep(y, body.crest, body.hip)
    ) - np.float32(0.8 * inset)
    x = canvas.x[None, :] - (np.float32(body.lean) * y)[:, None]
    np.abs(x, out=x)
    u = x / width[:, None]
    cube = u * u
    cube *= u
    thickness = np.sqrt(np.maximum(np.float32(1) - cube, 0))
    thickness *= (2 * depth)[:, None]
    rows, _ = canvas.window(0, perineum - 0.35 * body.pelvis, 0, 1e9)
    if rows.start < rows.stop:  # below the perineum the trunk divides into two thighs
        gap = np.maximum((y[rows] - np.float32(perineum)) * np.float32(0.3), 0) + np.float32(inset)
        half = np.maximum((width[rows] - gap) / 2, np.float32(1))
        v = (x[rows] - (gap + half)[:, None]) / half[:, None]
        v *= v
        thigh = np.sqrt(np.maximum(np.float32(1) - v, 0))
        thigh *= np.minimum(1.6 * depth[rows], 2 * half)[:, None]
        apart = _smoothstep(y[rows], perineum - 0.35 * body.pelvis, perineum + 0.1 * body.pelvis)
        thickness[rows] += (thigh - thickness[rows]) * apart[:, None]
    return thickness


def diaphragm(canvas: Canvas, body: Body, cols: slice) -> tuple[np.ndarray, np.ndarray]:
    """Height of the right and of the left half at the given columns, mm, float32."""
    x, wall = canvas.x[cols], body.wall
    fall = body.thoracic * (1.5 + 0.9 * (1 - body.infancy))
    right = (x + np.float32(0.46 * wall)) * np.float32(1 / (0.5 * wall))
    left = (x - np.float32(0.5 * wall)) * np.float32(1 / (0.48 * wall))
    return (
        np.float32(body.dome_right) + np.float32(fall) * right * right,
        np.float32(body.dome_left) + np.float32(fall) * left * left,
    )


def draw_trunk(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> np.ndarray:
    """Skin, fat, muscle, lungs and heart. Returns the thickness inside of the fat, mm."""
    size, wall = body.size, body.wall
    everything = (slice(None), slice(None))
    outer = _outline(canvas, body, 0.0)
    inner = _outline(canvas, body, size.fat)
    canvas.add(mu.fat, (everything, outer), "body")
    # Between the organs lies some fat; the organs themselves are drawn denser than this mixture.
    tissue = mu.soft - size.visceral_fat * (mu.soft - mu.fat)
    # Fat planes and muscle, which nobody could draw one by one, as texture of three sizes.
    planes = texture(draw.rng, canvas, 0.45 * wall)
    planes += np.float32(0.6) * texture(draw.rng, canvas, 0.16 * wall)
    planes += np.float32(0.35) * texture(draw.rng, canvas, 0.055 * wall)
    planes *= np.float32(0.10)
    planes += np.float32(1 - 0.0975)
    canvas.add(tissue - mu.fat, (everything, inner))
    canvas.add(mu.fat, (everything, inner * (planes - np.float32(1))))

    depths = body.thoracic * 3.2
    rows, cols = canvas.window(-wall, -1e9, wall, body.dome_left + depths)
    if rows.start == rows.stop:
        return inner
    x, y = canvas.x[cols], canvas.y[rows]
    right, left = diaphragm(canvas, body, cols)
    dome = np.where(x < 0, right, left)
    soft = np.float32(1 / (0.12 * body.thoracic + canvas.pixel))
    air = np.clip((dome[None, :] - y[:, None]) * soft + np.float32(0.5), 0, 1)
    beside = np.abs(x) * np.float32(1 / wall)
    air *= (
        np.clip((np.float32(0.93) - beside) * np.float32(14), 0, 1)
        * np.clip((beside - np.float32(0.10)) * np.float32(10), 0, 1)
    )[None, :]
    # The heart lies on the left half of the diaphragm; it is larger beside an infant's lungs.
    big = 1 + 0.12 * body.infancy
    u = (x - np.float32(0.16 * wall)) * np.float32(1 / (0.42 * wall * big))
    v = (y - np.float32(body.dome_left - 0.4 * wall * big)) * np.float32(1 / (0.5 * wall * big))
    # Tilted: its apex points down and to the left.
    heart = np.float32(1) - (u * u)[None, :] - (v * v)[:, None]
    heart += (np.float32(0.5) * v)[:, None] * u[None, :]
    np.maximum(heart, 0, out=heart)
    canvas.mark("heart", ((rows, cols), heart * air), least=0.05)
    air *= np.float32(1) - np.float32(0.75) * np.minimum(heart * np.float32(3), 1)
    lung = inner[rows, cols] * air
    lung *= np.float32(0.72) + np.float32(0.1) * texture(
        draw.rng, canvas, 0.6 * body.thoracic, (rows, cols)
    )
    canvas.add(mu.lung - mu.soft, ((rows, cols), lung), "lungs", least=0.25 * size.half_depth)
    return inner


def draw_organs(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    """Liver, spleen, kidneys, psoas muscles and bladder, denser than the fat between them."""
    size = body.size
    denser = (mu.soft - mu.fat) * (size.visceral_fat + 0.06)
    depth = size.half_depth
    x, y, a, b = body.liver
    edge = 0.12 if "hepatomegaly" not in body.film.enlarged else 0.05
    canvas.add(
        denser, canvas.ellipsoid(x, y, a, b, min(size.liver[2], 0.85 * depth), edge), "liver"
    )
    x, y, a, b = body.left_lobe
    canvas.add(denser, canvas.ellipsoid(x, y, a, b, 0.45 * depth, -0.12), "liver")
    x, y, a, b = body.spleen
    grown = b / size.spleen[1]
    thick = min(size.spleen[2] * grown, 0.8 * depth)
    canvas.add(denser * 1.15, canvas.ellipsoid(x, y, a, b, thick, 0.12), "spleen")
    ka, kb, kc = size.kidney
    beside = 0.5 * size.vertebra_width + 0.62 * ka + 0.06 * body.wall
    for side, height, name in ((-1, -0.75, "right kidney"), (1, -1.25, "left kidney")):
        at = side * (beside + 0.25 * ka), (height + 0.2 * draw.normal()) * body.lumbar
        canvas.add(denser, canvas.ellipsoid(*at, ka, kb, kc, -side * 0.22), name)
        psoas = side * (0.5 * size.vertebra_width + 0.09 * body.wall)
        muscle = canvas.ellipsoid(
            psoas, 1.1 * body.lumbar, 0.11 * body.wall, 2.9 * body.lumbar, 0.22 * depth, side * -0.1
        )
        canvas.add(denser, muscle)
    full = draw.between(0.3, 1.0)
    at = (0.0, body.crest + (1.12 - 0.22 * full) * body.pelvis)
    radius = (0.2 + 0.18 * full) * body.pelvis
    bladder = canvas.ellipsoid(*at, radius * 1.1, radius, radius)
    canvas.add(denser * 1.3, bladder, "bladder")
