"""Tubes, leads and other objects that are not findings, and the side marker."""

from __future__ import annotations

import numpy as np

from data_pipeline.phantom.body import Body, Draw
from data_pipeline.phantom.canvas import Canvas
from data_pipeline.phantom.physics import Attenuation

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


def draw_devices(canvas: Canvas, body: Body, mu: Attenuation, draw: Draw) -> None:
    """Tubes and clips now and then, whatever the condition."""
    wall = body.wall
    tube = 0.5 * mu.aluminium
    if draw.chance(0.15):  # stomach tube, along the spine to the left
        down = body.dome_left
        tip = (draw.between(0.2, 0.45) * wall, down + draw.between(1.2, 2.2) * body.thoracic)
        course = [(0.02 * wall, down - 9 * body.thoracic), (0.05 * wall, down), tip]
        canvas.add(tube, canvas.rod(course, 0.9 + 0.008 * wall), "tube")
    if draw.chance(0.10):  # electrode with its lead
        x, y = (
            draw.choice((-1, 1)) * 0.6 * wall,
            body.dome_right - draw.between(0, 2) * body.thoracic,
        )
        canvas.add(tube, canvas.rod([(x, y), (1.4 * x, y - 2), (1.9 * x, y - 60)], 0.7), "tube")
        canvas.add(0.4 * mu.iron, canvas.ellipsoid(x, y, 3.5, 3.5, 0.5), "tube")
    if draw.chance(0.08 + 0.15 * (body.infancy > 0.9)):  # umbilical or other catheter
        side = draw.choice((-1, 1)) * 0.05 * wall
        course = [
            (0.0, 1.2 * body.lumbar),
            (side, body.crest + 0.7 * body.pelvis),
            (side, body.dome_left + draw.between(0, 1) * body.thoracic),
        ]
        canvas.add(tube, canvas.rod(course, 0.7 + 0.004 * wall), "tube")
    if draw.chance(0.06):  # surgical clips
        x, y = draw.between(-0.5, 0.5) * wall, draw.between(-2, 1.5) * body.lumbar
        for _ in range(3):
            x0, y0 = x + 0.06 * wall * draw.normal(), y + 0.06 * wall * draw.normal()
            clip = canvas.rod([(x0, y0), (x0 + 1.5 * draw.normal(), y0 + 4.0)], 0.5)
            canvas.add(mu.iron, clip, "clip")


def draw_marker(
    canvas: Canvas,
    field: tuple[float, float, float, float],
    mu: Attenuation,
    draw: Draw,
    height: float,
) -> None:
    """A leaden R or L, always on the side it names: placed by the radiographer, not by the organs.

    Args:
      canvas: its x runs to the patient's left, also with mirrored organs.
      field: collimation in mm: left, top, right, bottom.
      mu: attenuation.
      draw: random numbers.
      height: of the letter, mm.
    """
    letter = draw.choice("RL")
    x0, y0, x1, y1 = field
    inset = draw.between(0.8, 2.0) * height
    x = x0 + inset if letter == "R" else x1 - inset
    y = y0 + inset if draw.chance(0.6) else y1 - inset
    stroke = height / 7
    rows, cols = canvas.window(
        x - 2.5 * stroke, y - 3.5 * stroke, x + 2.5 * stroke, y + 3.5 * stroke
    )
    if rows.start == rows.stop or cols.start == cols.stop:
        return
    bitmap = np.array([[int(c) for c in line] for line in _LETTERS[letter]], np.float32)
    # Strokes may be thinner than a pixel: each pixel averages 4 x 4 points of the letter.
    inside = np.arange(4, dtype=np.float32) * np.float32(0.25) - np.float32(0.375)
    inside *= np.float32(canvas.pixel)
    row = (canvas.y[rows][:, None] + inside - np.float32(y)).ravel() / np.float32(stroke)
    col = (canvas.x[cols][:, None] + inside - np.float32(x)).ravel() / np.float32(stroke)
    row = np.clip(row + np.float32(4.5), 0, 8.99).astype(np.int32)
    col = np.clip(col + np.float32(3.5), 0, 6.99).astype(np.int32)
    lead = np.pad(bitmap, 1)[row][:, col]
    lead = lead.reshape(len(row) // 4, 4, len(col) // 4, 4)
    total = sum(lead[:, i, :, j] for i in range(4) for j in range(4))
    lead = total * np.float32(1 / 16)
    canvas.add(2.0 * mu.lead, ((rows, cols), lead), "marker")
