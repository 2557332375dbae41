"""The conditions: each by its textbook sign on a plain image, from barely visible to obvious.

`plan` gives the changes of the bowel by a condition before it is drawn; `draw_finding` adds the
signs outside of the bowel. An enlarged liver or spleen is part of the body (body.py), and situs
inversus is a mirror (rendering.py). The descriptions of the signs follow general radiology
teaching; sizes are approximate.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.phantom.body import Body, Draw, Oval, diaphragm
from data_pipeline.phantom.bowel import BowelPlan, Loop
from data_pipeline.phantom.canvas import Canvas
from data_pipeline.phantom.exactmath import PI, cosine, sine
from data_pipeline.phantom.physics import Attenuation

FINDING = "finding: "  # Before a condition's name: its mask, where an image has several.


def plan(body: Body, draw: Draw) -> tuple[BowelPlan, Oval | None]:
    """How the image's condition rearranges the bowel, and where a lesion is, if it makes one.

    Of several conditions only the first, `film.label`, may do either.
    """
    label, severity = body.film.label, body.film.severity
    wall, crest, p = body.wall, body.crest, body.pelvis
    if label == "mass":
        # In the flank (kidney, adrenal), the middle (mesentery, cyst) or the pelvis (ovary).
        x, y = draw.choice(
            (
                (-0.42 * wall, -0.3 * body.lumbar),
                (0.42 * wall, -0.3 * body.lumbar),
                (draw.between(-0.25, 0.25) * wall, 0.8 * body.lumbar),
                (draw.between(-0.15, 0.15) * wall, crest + 0.65 * p),
            )
        )
        radius = (0.22 + 0.22 * severity) * wall
        oval = (x, y, radius * draw.between(0.9, 1.15), radius * draw.between(0.9, 1.15))
        return BowelPlan(pushes=[oval], solid=[oval]), oval
    if label == "intussusception":
        # Mostly below the liver or in the right flank; the right lower quadrant is emptied.
        below = body.liver[1] + 0.75 * body.liver[3]
        radius = (0.17 + 0.05 * severity) * wall
        x, y = draw.choice(
            (
                (-0.5 * wall, below + 1.1 * radius),
                (-0.2 * wall, below + 0.7 * radius),
                (-0.55 * wall, max(body.crest, below + 1.2 * radius)),
            )
        )
        oval = (x, y, radius * 1.1, radius)
        emptied = (-0.55 * wall, crest + 0.35 * p, 0.5 * wall, (0.5 + 0.3 * severity) * p)
        dilated = (int(3 * severity), 1.2)
        changes = BowelPlan(
            solid=[oval, emptied], pushes=[oval], dilated=dilated, distal_gas=0.8, stool=0.12
        )
        return changes, oval
    if label == "air-liquid shadow":
        number = int(draw.between(2.0, 4.0) + 3.5 * severity)
        calibre = 1.35 + 0.9 * severity
        distal = 0.7 - 0.5 * severity
        return BowelPlan(dilated=(number, calibre), distal_gas=distal, stool=0.08), None
    if label == "constipation":
        changes = BowelPlan(
            stool=0.6 + 0.38 * severity,
            calibre=1.1 + 0.45 * severity,
            rectum=1.3 + 0.6 * severity,
            distal_gas=0.8,
        )
        return changes, None
    return BowelPlan(), None


def draw_finding(
    canvas: Canvas, body: Body, lesion: Oval | None, loops: list[Loop], mu: Attenuation, draw: Draw
) -> None:
    """Draws the conditions into the image and into its mask `finding`.

    Where there are several, each has a mask of its name too.
    """
    for label in body.film.findings:
        _draw_one(canvas, body, label, lesion, loops, mu, draw)
        if canvas.masks is not None and body.film.also and "finding" in canvas.masks:
            # The sign of the first condition in the bowel is marked before it is drawn.
            canvas.masks[FINDING + label] = canvas.masks.pop("finding")


def _draw_one(
    canvas: Canvas,
    body: Body,
    label: str,
    lesion: Oval | None,
    loops: list[Loop],
    mu: Attenuation,
    draw: Draw,
) -> None:
    if label == "aeroperitoneum":
        _free_air(canvas, body, loops, mu, draw)
    elif label == "mass" and lesion:
        _mass(canvas, body, lesion, mu, draw)
    elif label == "intussusception" and lesion:
        _intussusception(canvas, body, lesion, mu, draw)
    elif label == "foreign bodies":
        _foreign_body(canvas, body, mu, draw)
    elif label == "calcification":
        _calcification(canvas, body, mu, draw)


def _free_air(canvas: Canvas, body: Body, loops: list[Loop], mu: Attenuation, draw: Draw) -> None:
    severity, wall, depth = body.film.severity, body.wall, body.size.half_depth
    if body.film.view == "supine":
        # Football sign: an oval lucency in front of everything; the falciform ligament and both
        # sides of bowel walls (Rigler) stand out in it.
        top = body.dome_right + 0.5 * body.thoracic
        bottom = body.crest + (0.2 + 0.5 * severity) * body.pelvis
        centre, half = (top + bottom) / 2, (bottom - top) / 2
        thickness = (0.05 + 0.28 * severity) * depth
        window, air = canvas.ellipsoid(
            0.0, centre, (0.55 + 0.25 * severity) * wall, half, thickness
        )
        np.minimum(air, np.float32(1.2 * thickness), out=air)  # flat: it lies under the wall
        canvas.add(-mu.soft, (window, air), "finding", least=0.2 * thickness)
        ligament = [
            (-0.07 * wall, top + 0.25 * half),
            (-0.12 * wall, top + 0.6 * half),
            (-0.05 * wall, top + 1.0 * half),
        ]
        canvas.add(mu.soft * 0.9, canvas.rod(ligament, 0.18 * thickness + 0.4))
        for loop in loops[: 3 + int(6 * severity)]:
            if loop.level is None:
                rim = canvas.ring(
                    loop.x, loop.y, loop.length, loop.radius, 0.07 * loop.radius + 0.3, loop.angle
                )
                canvas.add(mu.soft * (0.5 + 0.7 * severity), rim[:2])
        return
    if body.film.view == "decubitus":
        # Lying on the left side, air collects between the liver and the right flank.
        height = (0.018 + 0.075 * severity) * wall
        y = body.liver[1] + draw.between(0.0, 0.5) * body.liver[3]
        half = (0.45 + 0.35 * severity) * body.liver[3]
        bubble = canvas.ellipsoid(-wall + 1.3 * height, y, height, half, 0.5 * depth)
        canvas.add(-mu.soft, bubble, "finding")
        return
    # Upright: a crescent between diaphragm and liver, often on both sides.
    left_too = draw.chance(0.3 + 0.6 * severity)
    x0, x1 = (-0.9 * wall, 0.9 * wall if left_too else -0.02 * wall)
    deep = (0.12 + 0.55 * severity) * body.thoracic
    rows, cols = canvas.window(x0, body.dome_right, x1, body.dome_left + 2.2 * body.thoracic)
    xs, ys = canvas.x[cols], canvas.y[rows]
    right, left = diaphragm(canvas, body, cols)
    on_right = xs < np.float32(-0.02 * wall)
    roof = np.where(on_right, right, left) + np.float32(0.06 * body.thoracic + 0.8)
    apex = np.where(on_right, np.float32(body.dome_right), np.float32(body.dome_left))
    floor = apex + np.float32(deep) + (roof - apex) * np.float32(0.55)
    # How much of each pixel lies in the crescent, which may be thinner than a pixel.
    sharp, middle = np.float32(1 / canvas.pixel), np.float32(0.5)
    inside = np.clip((ys[:, None] - roof[None, :]) * sharp + middle, 0, 1)
    inside += np.clip((floor[None, :] - ys[:, None]) * sharp + middle, 0, 1)
    inside -= np.float32(1)
    np.maximum(inside, 0, out=inside)
    gap = np.clip((floor - roof) * np.float32(1 / (0.6 * deep)), 0, 1)
    gap *= np.abs(xs) > np.float32(0.08 * wall)
    inside *= gap[None, :]
    inside *= np.float32((0.35 + 0.25 * severity) * 2 * depth)
    canvas.add(-mu.soft, ((rows, cols), inside), "finding", least=0.05 * depth)


def _mass(canvas: Canvas, body: Body, lesion: Oval, mu: Attenuation, draw: Draw) -> None:
    x, y, a, b = lesion
    severity = body.film.severity
    thick = min(0.5 * (a + b), 0.8 * body.size.half_depth)
    solid = canvas.ellipsoid(x, y, a, b, thick, draw.between(-0.5, 0.5))
    denser = (mu.soft - mu.fat) * (body.size.visceral_fat + 0.08) + mu.soft * 0.04
    canvas.add(denser * (0.6 + 0.8 * severity), solid, "finding")


def _intussusception(canvas: Canvas, body: Body, lesion: Oval, mu: Attenuation, draw: Draw) -> None:
    x, y, a, b = lesion
    severity = body.film.severity
    thick = min(0.5 * (a + b), 0.7 * body.size.half_depth)
    angle = draw.between(-0.4, 0.4)
    solid = canvas.ellipsoid(x, y, a, b, thick, angle)
    canvas.add(mu.soft * (0.05 + 0.06 * severity), solid, "finding")
    contrast = 0.4 + 0.6 * severity
    if draw.chance(0.55):
        # Target sign: rings of mesenteric fat between the layers of bowel.
        for share in (0.72, 0.38):
            radius = 0.09 * b
            fat = canvas.ring(x, y, share * a, share * b, radius, angle)
            canvas.add(-contrast * 6 * (mu.soft - mu.fat), fat[:2])
    else:
        # Crescent sign: gas of the colon round the head of the intussusceptum.
        ring = canvas.ring(x, y, 0.95 * a, 0.95 * b, 0.17 * b, angle)
        window, rod, u, v = ring
        turn = draw.between(-0.6, 0.6)
        towards = u * np.float32(cosine(turn)) + v * np.float32(sine(turn))
        rod *= np.clip(towards * np.float32(2) - np.float32(0.5), 0, 1)
        canvas.add(-contrast * mu.soft, (window, rod), "finding")


def _in_gut(body: Body, draw: Draw) -> tuple[float, float]:
    """Somewhere along the gut: stomach, small bowel or rectum."""
    wall = body.wall
    return draw.choice(
        (
            (
                draw.between(0.1, 0.5) * wall,
                body.dome_left + draw.between(2.0, 3.2) * body.thoracic,
            ),
            (draw.between(-0.5, 0.5) * wall, draw.between(-0.5, 2.2) * body.lumbar),
            (draw.between(-0.5, 0.5) * wall, draw.between(0.0, 2.5) * body.lumbar),
            (draw.between(-0.1, 0.1) * wall, body.crest + 0.85 * body.pelvis),
        )
    )


def _foreign_body(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    """Coin, button battery, safety pin, magnets or beads, screw, or a plastic or glass toy."""
    severity = body.film.severity
    x, y = _in_gut(body, draw)
    angle = draw.between(-PI / 2, PI / 2)
    cos, sin = cosine(angle), sine(angle)

    def along(s: float, t: float = 0.0) -> tuple[float, float]:
        return x + s * cos - t * sin, y + s * sin + t * cos

    if severity < 0.3:
        # Hardly dense: a piece of glass, plastic or thin aluminium.
        half = draw.between(4.0, 8.0)
        piece = canvas.block(x, y, half, half * draw.between(0.3, 1.0), 1.5 + 5 * severity, angle)
        canvas.add(mu.aluminium - mu.soft, piece, "finding")
        return
    kind = draw.choice(("coin", "battery", "pin", "beads", "screw", "toy"))
    size = 0.75 + 0.35 * severity
    if kind == "coin":
        radius = draw.between(9.0, 12.5) * size
        flat = draw.choice((1.0, 0.75, 0.15))
        coin = canvas.ellipsoid(x, y, radius, radius * flat, radius, angle)
        np.minimum(coin[1], np.float32(1.8 / flat), out=coin[1])
        canvas.add(mu.iron, coin, "finding")
    elif kind == "battery":
        # The step between case and lid shows as a double rim.
        radius = draw.between(6.0, 10.5) * size
        for share, thickness in ((1.0, 1.2), (0.8, 1.8)):
            disc = canvas.ellipsoid(x, y, share * radius, share * radius, radius, angle)
            np.minimum(disc[1], np.float32(thickness), out=disc[1])
            canvas.add(0.35 * mu.iron, disc, "finding")
        rim = canvas.ring(x, y, 0.9 * radius, 0.9 * radius, 0.6)
        canvas.add(-0.3 * mu.iron, rim[:2])
    elif kind == "pin":
        long = draw.between(10.0, 16.0) * size
        shape = [
            along(-long, 1.5),
            along(long, 0),
            along(-long * 0.9, -long * draw.between(0.2, 0.8)),
        ]
        canvas.add(mu.iron, canvas.rod(shape, 0.5), "finding")
        canvas.add(mu.iron, canvas.ellipsoid(*along(-long, 1.5), 2.2, 1.6, 0.8, angle), "finding")
    elif kind == "beads":
        for i in range(2 + int(5 * severity)):
            spot = along(i * 5.2 * size, 3.0 * sine(1.1 * i))
            canvas.add(mu.iron, canvas.ellipsoid(*spot, 2.5 * size, 2.5 * size, 2.5), "finding")
    elif kind == "screw":
        long = draw.between(7.0, 12.0) * size
        canvas.add(mu.iron, canvas.rod([along(-long), along(long)], 1.2), "finding")
        head = canvas.rod([along(long, -3.0), along(long, 3.0)], 1.3)
        canvas.add(mu.iron, head, "finding")
    else:
        half = draw.between(6.0, 11.0) * size
        canvas.add(mu.aluminium, canvas.block(x, y, half, 0.55 * half, 5.0, angle), "finding")
        canvas.add(
            mu.aluminium,
            canvas.block(*along(0.2 * half, 0.7 * half), 0.4 * half, 0.6 * half, 5.0, angle),
            "finding",
        )
        axle = canvas.rod([along(-0.6 * half, -0.6 * half), along(0.6 * half, -0.6 * half)], 1.0)
        canvas.add(mu.iron, axle, "finding")


def _calcification(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    """Stippled in a lesion or scattered on the peritoneum, a ringed stone, or a solid one."""
    severity, wall = body.film.severity, body.wall
    calcium = 0.75 * mu.bone
    kind = draw.choice(("stippled", "scattered", "ringed", "solid"))
    x = draw.choice((-1, 1)) * draw.between(0.25, 0.6) * wall
    y = draw.between(-1.8, 2.2) * body.lumbar
    small = (0.014 + 0.014 * severity) * wall
    if kind in ("stippled", "scattered"):
        spread = (0.09 + 0.07 * severity) * wall * (1 if kind == "stippled" else 2.2)
        for _ in range(6 + int(10 * severity)):
            at = (x + spread * 0.7 * draw.normal(), y + spread * 0.7 * draw.normal())
            r = small * draw.between(0.5, 1.4)
            speck = canvas.ellipsoid(*at, r, r * draw.between(0.6, 1.2), r, draw.between(-1, 1))
            canvas.add(calcium, speck, "finding")
        return
    radius = (0.035 + 0.05 * severity) * wall
    angle = draw.between(-1.0, 1.0)
    if kind == "ringed":
        shell = canvas.ring(x, y, radius * 1.2, radius, 0.22 * radius, angle)
        canvas.add(calcium, shell[:2], "finding")
        core = canvas.ellipsoid(x, y, 0.4 * radius, 0.35 * radius, 0.3 * radius, angle)
        canvas.add(calcium, core, "finding")
    else:
        stone = canvas.ellipsoid(x, y, radius * 1.15, 0.8 * radius, 0.6 * radius, angle)
        canvas.add(calcium, stone, "finding")
