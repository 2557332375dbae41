"""Stomach, small bowel and colon: where gas, fluid and stool are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipeline.phantom.body import Body, Draw, Oval
from data_pipeline.phantom.canvas import Canvas, Patch, texture
from data_pipeline.phantom.exactmath import PI, square_root
from data_pipeline.phantom.physics import Attenuation


@dataclasses.dataclass
class Loop:
    """A gas-filled piece of bowel.

    Attributes:
      x, y: centre, mm.
      radius: half the calibre, mm.
      length: half the length along `angle`, mm.
      angle: radians.
      level: height of the fluid above the centre in radii; None without fluid.
    """

    x: float
    y: float
    radius: float
    length: float
    angle: float
    level: float | None = None


@dataclasses.dataclass
class BowelPlan:
    """What a condition changes about the bowel; the defaults are normal.

    Attributes:
      solid: ovals that bowel cannot occupy besides the organs.
      pushes: of those, the ones that push loops aside rather than leave them out.
      dilated: loops with gas over fluid, and their calibre relative to normal.
      distal_gas: share of the usual gas in the rest of the small bowel.
      stool: share of the colon that holds stool; None draws a usual one.
      calibre: of the colon relative to normal.
      rectum: calibre of the rectum relative to the colon's.
    """

    solid: list[Oval] = dataclasses.field(default_factory=list)
    pushes: list[Oval] = dataclasses.field(default_factory=list)
    dilated: tuple[int, float] = (0, 1.0)
    distal_gas: float = 1.0
    stool: float | None = None
    calibre: float = 1.0
    rectum: float = 1.1


def _inside(x: float, y: float, oval: Oval, margin: float) -> bool:
    u, v = (x - oval[0]) / (oval[2] + margin), (y - oval[1]) / (oval[3] + margin)
    return u * u + v * v < 1


def _push(x: float, y: float, oval: Oval, margin: float) -> tuple[float, float]:
    """Moves a point radially out of an oval, and its surroundings a little."""
    u, v = (x - oval[0]) / (oval[2] + margin), (y - oval[1]) / (oval[3] + margin)
    far = square_root(max(u * u + v * v, 1e-4))
    if far >= 1.6:
        return x, y
    factor = (1.0 + 0.375 * far) / far  # the centre goes to the rim, 1.6 stays
    return oval[0] + (x - oval[0]) * factor, oval[1] + (y - oval[1]) * factor


def _half_cavity(body: Body, y: float) -> float:
    """Half width of the peritoneal cavity: the abdomen's above the iliac crests, then narrower."""
    deep = min(max((y - body.crest) / body.pelvis, 0.0), 1.0)
    return body.wall * (1 - deep) + 0.5 * body.pelvis * deep


def _gas(canvas: Canvas, body: Body, loop: Loop) -> Patch:
    """Thickness of one loop's gas: over a level of fluid where it has one."""
    depth = min(loop.radius, 0.75 * body.size.half_depth)
    limits: dict[str, float] = {}
    if loop.level is not None:
        if body.film.view == "decubitus":
            # Lying on the left side, gas rises to the patient's right. Mirrored organs are drawn
            # before they are mirrored, so theirs rises the other way here.
            if "situs inversus totalis" in body.film.findings:
                limits["right_of"] = loop.x - loop.level * loop.radius
            else:
                limits["left_of"] = loop.x + loop.level * loop.radius
        else:
            limits["below"] = loop.y + loop.level * loop.radius
    return canvas.ellipsoid(loop.x, loop.y, loop.length, loop.radius, depth, loop.angle, **limits)


def _place_loops(body: Body, plan: BowelPlan, draw: Draw) -> list[Loop]:
    """Gas-filled loops of small bowel among the organs."""
    wall, infancy = body.wall, body.infancy
    calibre = (0.085 + 0.03 * infancy) * wall  # half of it; below the width of a vertebra
    wanted = 2 + draw.between(0.2, 1.0) * (5 + 24 * infancy) * plan.distal_gas
    organs = [body.liver, body.left_lobe, body.spleen, *plan.solid]
    top, bottom = body.vertebra(12.6), body.hip + 0.02 * body.pelvis
    loops: list[Loop] = []
    number, times = plan.dilated
    upright = body.film.view != "supine"
    for i in range(number):
        radius = calibre * times * draw.between(0.85, 1.15)
        length = radius * draw.between(1.2, 1.9)
        for _ in range(12):
            x = draw.between(-0.55, 0.55) * wall
            y = top + (bottom - top) * (0.18 + 0.72 * (i + draw.between(0, 1)) / number)
            if not any(_inside(x, y, o, 0.2 * radius) for o in organs):
                break
        if body.film.view == "decubitus":
            radius, length = length, radius
        loops.append(Loop(x, y, radius, length, 0.0, draw.between(-0.45, 0.35)))
    for _ in range(110):
        if len(loops) >= number + wanted:
            break
        radius = calibre * draw.between(0.6, 1.25)
        length = radius * draw.between(1.0, 2.3)
        angle = draw.between(-PI / 2, PI / 2)
        x = draw.between(-0.8, 0.8) * wall
        y = draw.between(top, bottom)
        floats = upright and draw.chance(0.12)
        for oval in plan.pushes:
            x, y = _push(x, y, oval, radius)
        if abs(x) > _half_cavity(body, y) - radius or y > bottom:
            continue
        if any(_inside(x, y, o, 0.6 * radius) for o in organs):
            continue
        if any(
            (x - o.x) * (x - o.x) + (y - o.y) * (y - o.y)
            < 0.5 * (radius + o.radius) * (radius + o.radius)
            for o in loops
        ):
            continue
        # A normal bowel may hold a short level or two when upright.
        level = draw.between(-0.2, 0.5) if floats else None
        loops.append(Loop(x, y, radius, length, 0.0 if floats else angle, level))
    return loops


def _path(points: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Points at equal distances along straight pieces."""
    out = []
    rest = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = square_root((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        at = rest
        while at < length:
            out.append((x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length))
            at += step
        rest = at - length
    return out


def colon_path(body: Body, patient: Draw, calibre: float) -> list[tuple[float, float]]:
    """Corners of the colon from caecum to rectum, round the enlarged organs."""
    wall, lumbar, p = body.wall, body.lumbar, body.pelvis

    def jitter(size: float) -> float:
        return size * patient.normal()

    side = wall - 1.15 * calibre
    # The flexures lie below liver and spleen, at least as low as usual.
    liver_tip = body.liver[1] + 0.72 * body.liver[3] + calibre
    spleen_tip = body.spleen[1] + 0.8 * body.spleen[3] + calibre * 0.8
    lowest = body.crest + 0.05 * p
    hepatic = min(max(-1.4 * lumbar, liver_tip), lowest)
    splenic = min(max(body.dome_left + 1.9 * body.thoracic, spleen_tip), lowest)
    caecum = max(body.crest + 0.42 * p, hepatic + 2 * calibre)
    sag = max(hepatic, splenic) + (0.5 + 0.5 * abs(patient.normal())) * lumbar
    loop = 0.2 + 0.35 * body.infancy * patient.rng.random()
    return [
        (-0.62 * p + jitter(0.04 * p), caecum),
        (-side, caecum - 0.5 * lumbar),
        (-side, hepatic + calibre),
        (-0.75 * side, hepatic),
        (-0.1 * wall, sag),
        (0.45 * wall, 0.5 * (sag + splenic)),
        (side - calibre * 0.6, splenic),
        (side, splenic + 1.6 * calibre),
        (side + jitter(0.02 * wall), max(body.crest, splenic + 3 * calibre)),
        (0.66 * p, body.crest + 0.62 * p),
        (0.3 * p, body.crest + (0.85 - loop) * p),
        (-0.15 * p + jitter(0.08 * p), body.crest + (0.75 - loop) * p),
        (0.0, body.crest + 0.9 * p),
        (0.0, body.crest + 1.22 * p),
    ]


def draw_bowel(
    canvas: Canvas, body: Body, plan: BowelPlan, mu: Attenuation, patient: Draw, draw: Draw
) -> list[Loop]:
    """Draws stomach, small bowel and colon; returns the loops of small bowel.

    Overlapping pieces of one segment count once, segments behind each other add up, and gas never
    fills more than most of the trunk's depth.
    """
    _stomach(canvas, body, mu, draw)
    loops = _place_loops(body, plan, draw)
    layers = [canvas.layer(), canvas.layer()]
    number = plan.dilated[0]
    for i, loop in enumerate(loops):
        window, thickness = _gas(canvas, body, loop)
        part = layers[i % 2][window]
        np.maximum(part, thickness, out=part)
        if i < number and body.film.label == "air-liquid shadow":
            canvas.mark("finding", (window, thickness))
    gas = layers[0]
    gas += layers[1]
    stool = _colon(canvas, body, plan, patient, draw, gas)
    np.minimum(gas, np.float32(1.3 * body.size.half_depth), out=gas)
    everything = (slice(None), slice(None))
    canvas.add(-mu.soft, (everything, gas), "bowel gas")
    if stool is not None:
        (rows, cols), thickness = stool
        coarse = texture(draw.rng, canvas, 0.055 * body.wall, (rows, cols))
        fine = texture(draw.rng, canvas, 0.028 * body.wall, (rows, cols))
        bubbles = coarse + fine - np.float32(0.95)
        np.clip(bubbles, 0, 0.5, out=bubbles)
        bubbles *= np.float32(1.5)
        bubbles -= np.float32(0.06)  # the rest is a little denser than its surroundings
        bubbles *= thickness
        canvas.depth[rows, cols] -= bubbles * np.float32(mu.soft)
        canvas.mark("stool", ((rows, cols), thickness))
        if body.film.label == "constipation":
            canvas.mark("finding", ((rows, cols), thickness))
    return loops


def _stomach(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    wall = body.wall
    spleen_inside = body.spleen[0] - body.spleen[2]
    a = draw.between(0.16, 0.3) * wall
    b = draw.between(0.6, 1.0) * a
    x = min(0.45 * wall, spleen_inside - 0.25 * a)
    y = body.dome_left + 0.55 * body.thoracic + b
    depth = min(b, 0.6 * body.size.half_depth)
    if body.film.view == "upright":
        level = y + draw.between(-0.1, 0.5) * b
        bubble = canvas.ellipsoid(x, y, a, b, depth, below=level)
        canvas.add(-mu.soft, bubble, "stomach gas")
    elif body.film.view == "decubitus":
        # Gas rises to the antrum; in a mirrored stomach to the fundus.
        antrum = (x - 0.5 * wall, y + 0.7 * body.lumbar)
        if "situs inversus totalis" in body.film.findings:
            bubble = canvas.ellipsoid(x, y, a, b, depth, right_of=x - 0.2 * a)
        else:
            bubble = canvas.ellipsoid(*antrum, a, 0.8 * b, depth, left_of=antrum[0] + 0.2 * a)
        canvas.add(-mu.soft, bubble, "stomach gas")
    else:
        # Supine, gas lies in front: in the body and antrum, across the spine.
        body_of_it = canvas.ellipsoid(x - 0.2 * wall, y + 0.5 * b, 1.2 * a, 0.7 * b, depth, 0.5)
        canvas.add(-0.8 * mu.soft, body_of_it, "stomach gas")
        if draw.chance(0.6):
            fundus = canvas.ellipsoid(x, y - 0.2 * b, 0.7 * a, 0.7 * b, 0.5 * depth)
            canvas.add(-0.6 * mu.soft, fundus, "stomach gas")


def _colon(
    canvas: Canvas,
    body: Body,
    plan: BowelPlan,
    patient: Draw,
    draw: Draw,
    gas: np.ndarray,
) -> Patch | None:
    """Adds the colon's gas to `gas`; returns where stool is and how thick, or None."""
    wall = body.wall
    usual = (0.115 + 0.01 * body.infancy) * wall
    calibre = usual * plan.calibre
    places = _path(colon_path(body, patient, calibre), 0.95 * calibre)
    share = draw.between(0.05, 0.4) if plan.stool is None else plan.stool
    layer, held = canvas.layer(), None
    last = len(places) - 1
    state = "gas"
    low_x, low_y, high_x, high_y = 1e9, 1e9, -1e9, -1e9
    for i, (x, y) in enumerate(places):
        # What a haustrum holds mostly continues in the next one.
        if draw.chance(0.3) or i == 0:
            gas_share = (1 - share) * (0.35 + 0.25 * body.infancy)
            roll = draw.rng.random()
            state = "stool" if roll < share else "gas" if roll < share + gas_share else "empty"
        radius = calibre * draw.between(0.8, 1.15) * (1.1 if i < 4 else 0.95)
        if i >= last - 2:
            radius = calibre * plan.rectum * (1.0 if i < last else 0.8)
            if plan.rectum > 1.2:
                state = "stool"
        x += draw.between(-0.1, 0.1) * calibre
        for oval in plan.pushes:
            x, y = _push(x, y, oval, 0.8 * radius)
        reach = _half_cavity(body, y) - 0.5 * radius
        x = min(max(x, -reach), reach)
        angle = draw.between(-0.4, 0.4)
        if state == "empty":
            continue
        if state == "stool":
            patch = canvas.ellipsoid(x, y, radius, radius, min(radius, 0.8 * body.size.half_depth))
            held = canvas.layer() if held is None else held
            part = held[patch[0]]
            np.maximum(part, patch[1], out=part)
            low_x, low_y = min(low_x, x - radius), min(low_y, y - radius)
            high_x, high_y = max(high_x, x + radius), max(high_y, y + radius)
        else:
            floats = body.film.view != "supine" and draw.chance(0.1)
            level = 0.2 if floats else None
            loop = Loop(x, y, radius * 0.95, radius * 0.85, 0.0 if floats else angle, level)
            window, thickness = _gas(canvas, body, loop)
            part = layer[window]
            np.maximum(part, thickness, out=part)
    gas += layer
    if held is None:
        return None
    window = canvas.window(low_x, low_y, high_x, high_y)
    return window, held[window]
