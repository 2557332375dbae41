"""The skeleton of a trunk: spine, ribs, sacrum, pelvis and femora."""

from __future__ import annotations

import numpy as np

from data_pipeline.phantom.body import Body, Draw
from data_pipeline.phantom.canvas import Canvas
from data_pipeline.phantom.physics import Attenuation


def draw_skeleton(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    """Spine, ribs, sacrum, pelvis and femora, with the cartilage of the patient's age left out."""
    mineral = 1.6 * body.size.mineral * (mu.bone - mu.soft)
    _spine(canvas, body, mineral)
    _ribs(canvas, body, mineral, draw)
    _pelvis(canvas, body, mineral)


def _spine(canvas: Canvas, body: Body, mineral: float) -> None:
    size, lumbar = body.size, body.lumbar
    half = size.vertebra_width / 2
    reach = half * 2.6
    rows, cols = canvas.window(-reach, -1e9, reach, 2.5 * lumbar)
    y = canvas.y[rows]
    # Number of the vertebra, by the height: whole numbers at their centres.
    level = np.where(
        y > np.float32(-2.5 * lumbar),
        y * np.float32(1 / lumbar) + np.float32(15),
        (y - np.float32(body.vertebra(12))) * np.float32(1 / body.thoracic) + np.float32(12),
    )
    nearest = np.floor(level + np.float32(0.5))
    v = (level - nearest) * np.float32(2)  # -1 to 1 from disc to disc
    narrow = np.float32(1) - np.float32(0.04) * (np.float32(17) - nearest)
    lean = y * np.float32(1 / (5 * lumbar))
    centre = np.float32(body.lean) * y + np.float32(body.bend) * (np.float32(1) - lean * lean)
    x = (canvas.x[cols][None, :] - centre[:, None]) / (half * narrow)[:, None]
    bone = np.float32(min(size.ossified + 0.06 * size.wear, 0.93))
    vv = v * v * np.float32(1 / (bone * bone))
    uu = x * x
    # From the oval of the newborn to the adult's box; old bodies flare into osteophytes.
    square = np.float32(size.square)
    up = vv + (vv * vv - vv) * square
    flare = np.float32(1) / (np.float32(1) + np.float32(0.35 * size.wear) * vv)
    uu_body = uu * (flare * flare)[:, None]
    across = uu_body + (uu_body * uu_body - uu_body) * square
    rest = np.float32(1) - across
    rest -= up[:, None]
    np.maximum(rest, 0, out=rest)
    np.sqrt(rest, out=rest)
    thickness = rest * np.float32(1.5 * half)
    # Endplates and edges are compact bone: brighter rims.
    rim = (rest > 0) & (rest < np.float32(0.45))
    canvas.add(0.24 * mineral, ((rows, cols), thickness), "spine")
    canvas.add(0.16 * mineral, ((rows, cols), rim * np.float32(0.6 * half)))
    # Pedicles: two small ovals in the upper half of each body.
    pu = (np.abs(x) - np.float32(0.68)) * np.float32(1 / 0.2)
    pv = (v + np.float32(0.22)) * np.float32(1 / 0.3)
    rest = np.float32(1) - pu * pu
    rest -= (pv * pv)[:, None]
    np.maximum(rest, 0, out=rest)
    canvas.add(0.4 * mineral, ((rows, cols), rest * np.float32(0.5 * half)))
    # Arches: two halves with a gap at birth, one spinous process later.
    apart = 0.22 * (1 - size.arches)
    su = (np.abs(x) - np.float32(apart)) * np.float32(1 / (0.13 + 0.1 * (1 - size.arches)))
    sv = (v - np.float32(0.42)) * np.float32(1 / 0.42)
    rest = np.float32(1) - su * su
    rest -= (sv * sv)[:, None]
    np.maximum(rest, 0, out=rest)
    canvas.add(0.35 * mineral, ((rows, cols), rest * np.float32(0.55 * half)))
    # Transverse processes of the lumbar vertebrae.
    tu = (np.abs(x) - np.float32(1.45)) * np.float32(1 / 0.6)
    tv = (v + np.float32(0.05)) * np.float32(1 / 0.2)
    rest = np.float32(1) - tu * tu
    rest -= np.where(level > np.float32(12.5), tv * tv, np.float32(9))[:, None]
    np.maximum(rest, 0, out=rest)
    canvas.add(0.3 * mineral, ((rows, cols), rest * np.float32(0.22 * half)))


def _ribs(canvas: Canvas, body: Body, mineral: float, draw: Draw) -> None:
    size, wall = body.size, body.wall
    radius = 0.135 * body.thoracic + 0.5
    for level in (6, 7, 8, 9, 10, 11, 12):
        span = (0.93, 0.95, 0.95, 0.92, 0.88, 0.78, 0.5)[level - 6] * wall
        top = body.vertebra(level) - 0.2 * body.thoracic
        drop = (size.rib_slope * span * (1.25 if level > 10 else 1.0)) * draw.between(0.9, 1.1)
        bow = (0.85 + 0.3 * body.infancy if level < 11 else 0.5) * body.thoracic
        for side in (-1, 1):
            inner = -0.1 * span  # the ring closes behind the spine, out of sight
            half = (span - inner) / 2
            angle = side * drop / span * 0.9
            centre = side * (inner + half)
            x = centre + body.lean * top
            y = top + 0.5 * drop + 0.55 * bow
            patch_window, rod, u, v = canvas.ring(x, y, half, bow, radius, angle)
            # The upper half is the rib behind; in front, only the lateral part is bone, and the
            # two lowest ribs end at the flank.
            u = u if side > 0 else -u
            front = -0.15 if level < 11 else 0.75
            rod *= ((v < np.float32(0.12)) & (u > np.float32(-0.82))) | (u > np.float32(front))
            canvas.add(0.42 * mineral, (patch_window, rod), "ribs", least=0.5 * radius)
            if size.wear > 0.25 and level in (8, 9, 10) and draw.chance(size.wear):
                # Calcified rib cartilage of the old.
                spot = (side * 0.5 * wall, y + bow + draw.between(-0.3, 0.5) * body.thoracic)
                calcified = canvas.ellipsoid(*spot, 0.12 * wall, radius, 0.5 * radius, angle)
                canvas.add(0.5 * mineral, calcified)


def _pelvis(canvas: Canvas, body: Body, mineral: float) -> None:
    size, p, crest = body.size, body.pelvis, body.crest
    # Sacrum: a wedge of fused segments (separate in infants) with its wings.
    top = 2.5 * body.lumbar
    long = body.crest + 1.0 * p - top
    for k in range(4):
        y = top + (k + 0.45) * 0.25 * long
        half = size.vertebra_width * (0.55 - 0.09 * k)
        height = 0.125 * long * (0.72 + 0.22 * size.square)
        body_of_it = canvas.block(body.lean * y, y, half, height, 0.3 * size.vertebra_width)
        canvas.add(0.22 * mineral, body_of_it, "sacrum")
    for side in (-1, 1):
        shift = body.lean * crest
        wing = canvas.ellipsoid(
            side * 0.3 * p + shift, top + 0.22 * long, 0.2 * p, 0.2 * p, 0.12 * p, side * 0.5
        )
        canvas.add(0.2 * mineral, wing, "sacrum")
        # Ilium: a fan with a dense rim, and the stout part above the hip joint.
        fan = canvas.block(
            side * 0.63 * p + shift, crest + 0.42 * p, 0.28 * p, 0.44 * p, 0.05 * p, side * 0.42
        )
        canvas.add(0.42 * mineral, fan, "pelvis")
        window, rim, u, v = canvas.ring(
            side * 0.65 * p + shift, crest + 0.44 * p, 0.3 * p, 0.43 * p, 0.022 * p, side * 0.42
        )
        rim *= v < np.float32(0.55)
        canvas.add(0.5 * mineral, (window, rim), "pelvis")
        stout = canvas.block(
            side * 0.5 * p + shift, crest + 0.76 * p, 0.12 * p, 0.17 * p, 0.07 * p, side * -0.6
        )
        canvas.add(0.32 * mineral, stout, "pelvis")
        # Pubis and ischium around the obturator foramen; cartilage where they will join.
        centre = (side * 0.31 * p + shift, crest + 1.22 * p)
        window, rod, u, v = canvas.ring(*centre, 0.19 * p, 0.24 * p, 0.058 * p, side * -0.35)
        u = u if side > 0 else -u
        # The rami towards the midline are thin, the ischium is stout.
        rod *= np.float32(0.8) + np.float32(0.3) * np.clip(u, -1, 1)
        open_below = 0.35 * (1 - size.ischiopubic)
        open_above = 0.3 * (1 - size.acetabulum)
        inferior = (v > 0) & (np.abs(u + np.float32(0.5)) < np.float32(open_below))
        lateral = (u > np.float32(0.45)) & (np.abs(v + np.float32(0.55)) < np.float32(open_above))
        rod *= ~(inferior | lateral)
        canvas.add(0.42 * mineral, (window, rod), "pelvis", least=0.02 * p)
        # Femur: shaft, neck, and what has ossified of head and trochanter.
        hip = (side * 0.6 * p + shift, crest + 1.02 * p)
        grown = size.trochanter
        knee = (side * (0.78 + 0.05 * (1 - grown)) * p + shift, crest + 2.6 * p)
        bend = (side * (0.79 + 0.06 * grown) * p + shift, crest + (1.28 - 0.03 * grown) * p)
        neck = (
            hip[0] + 0.35 * (bend[0] - hip[0]),
            hip[1] + (0.6 - 0.3 * grown) * (bend[1] - hip[1]),
        )
        shaft = canvas.rod([neck, bend, knee], 0.085 * p)
        canvas.add(0.34 * mineral, shaft, "femora")
        # Growth plate: a broad dense end while the head is cartilage.
        if size.trochanter < 1:
            end = canvas.ellipsoid(*neck, 0.12 * p, 0.05 * p, 0.07 * p, side * 0.6)
            canvas.add(0.4 * mineral, end, "femora")
        if size.femoral_head:
            r = size.femoral_head
            flat = 0.65 + 0.35 * min(r / 20, 1.0)
            head = canvas.ellipsoid(*hip, r, r * flat, r * 0.9, side * 0.4)
            canvas.add(0.3 * mineral, head, "femora")
        if grown:
            tip = (bend[0] + side * 0.05 * p, bend[1] - 0.1 * p)
            r = 0.1 * p * grown
            canvas.add(0.28 * mineral, canvas.ellipsoid(*tip, r, 1.2 * r, r), "femora")
