"""From an address to a picture and to its truth. First form: ellipsoids and simple physics."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.phantom.address import parse_address
from data_pipeline.phantom.patients import STREAM_FILM, STREAM_NOISE, film_at, stream

_MU = {"soft": 0.022, "bone": 0.045, "calcium": 0.08, "metal": 0.8, "gas": -0.022, "organ": 0.0025}


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
    """What is on a film: boxes of its findings and boolean masks `[size, size]` by organ."""

    boxes: tuple[Box, ...]
    masks: dict[str, np.ndarray]


@dataclasses.dataclass
class _Shape:
    name: str
    mu: float
    x: float
    y: float
    a: float
    b: float
    c: float
    power: int = 2
    level: float = 9.0  # gas only above this height in units of b
    finding: bool = False


def _scene(film) -> tuple[float, list[_Shape]]:
    rng = stream(film.address, STREAM_FILM, film.address.film)
    r = lambda low, high: low + (high - low) * rng.random()  # noqa: E731
    age = min(film.age_months / 216, 1.0)
    s = 100 + 80 * age**0.5 + r(-8, 8)  # half width of the trunk, mm
    infant = 1 - age**0.5
    shapes = [_Shape("trunk", _MU["soft"], 0, 0, s, 2.2 * s, 0.6 * s, 4)]
    add = lambda *a, **k: shapes.append(_Shape(*a, **k))  # noqa: E731
    mu, sev, label = _MU, film.severity, film.label
    for side in (-1, 1):
        add("lung", -0.014, side * 0.5 * s, -1.45 * s, 0.4 * s, 0.6 * s, 0.5 * s, 4)
        for k in range(5):
            y = (-1.35 + 0.2 * k) * s
            add("rib", mu["bone"] / 2, side * 0.55 * s, y, 0.38 * s, 0.035 * s, 0.04 * s)
        b = (0.35 - 0.1 * infant) * s
        add("pelvis", mu["bone"] / 2, side * 0.5 * s, 1.15 * s, 0.3 * s, b, 0.1 * s)
    for k in range(14):
        y = (-1.6 + 0.21 * k) * s
        b = (0.085 - 0.02 * infant) * s
        add("spine", mu["bone"], 0, y, 0.14 * s, b, 0.12 * s, 4)
    hepato = 1.2 + 0.4 * sev if label == "hepatomegaly" else 1.0
    spleno = 1.5 + 0.8 * sev if label == "splenomegaly" else 1.0
    y = (-0.75 + 0.3 * (hepato - 1)) * s
    liver = (-0.42 * s, y, 0.5 * s * hepato, 0.42 * s * hepato, 0.5 * s)
    add("liver", mu["organ"] * 2, *liver, finding=hepato > 1)
    spleen = (0.68 * s, -0.75 * s, 0.18 * s * spleno, 0.28 * s * spleno, 0.3 * s)
    add("spleen", mu["organ"] * 2, *spleen, finding=spleno > 1)
    add("stomach", mu["gas"], 0.4 * s, -0.65 * s, 0.22 * s, 0.13 * s, 0.2 * s)
    avoid = None
    if label == "mass":
        avoid = (r(-0.4, 0.4) * s, r(-0.1, 0.5) * s, (0.2 + 0.2 * sev) * s)
        add("mass", mu["organ"] * 3, *avoid, avoid[2], avoid[2], finding=True)
    if label == "intussusception":
        avoid = (-0.5 * s, r(0.2, 0.5) * s, (0.2 + 0.05 * sev) * s)
        for k, f in enumerate((1, 0.75, 0.4)):
            m = mu["organ"] * 3 * (1, -2, 2)[k]
            add("mass", m, *avoid[:2], *(3 * [avoid[2] * f]), finding=k == 0)
    dilated = label == "air-liquid shadow"
    stool = label == "constipation"
    for k in range(26):
        x, y = r(-0.72, 0.72) * s, r(-0.35, 1.2) * s
        a = r(0.07, 0.14) * s
        if avoid and (x - avoid[0]) ** 2 + (y - avoid[1]) ** 2 < (avoid[2] + a) ** 2:
            continue
        if dilated and k < 6:
            a = (0.15 + 0.08 * sev) * s
            add("bowel", mu["gas"], x, y, a * 1.3, a, a, level=0.0, finding=True)
        elif not dilated or k > 20:
            add("bowel", mu["gas"], x, y, a * r(0.8, 1.6), a, a)
    if stool:
        for _ in range(int(60 + 60 * sev)):
            t = r(0, 3)
            edge = r(-0.1, 0.1) * s
            if t < 1:
                x, y = -0.68 * s + edge, (1.0 - 1.2 * t) * s
            elif t < 2:
                x, y = (-0.68 + 1.36 * (t - 1)) * s, -0.2 * s + edge
            else:
                x, y = 0.68 * s + edge, (-0.2 + 1.3 * (t - 2)) * s
            a = r(0.03, 0.06) * s
            m = mu["gas"] if rng.random() < 0.5 else mu["organ"] * 2
            add("stool", m, x, y, a, a, a, finding=True)
    if label == "aeroperitoneum":
        if film.view == "supine":
            free = (0.0, 0.1 * s, 0.6 * s, 0.9 * s, (0.1 + 0.15 * sev) * s)
            add("free air", mu["gas"], *free, finding=True)
        else:
            free = (-0.45 * s, -1.12 * s, 0.35 * s, (0.05 + 0.06 * sev) * s, 0.3 * s)
            add("free air", mu["gas"], *free, finding=True)
    if label == "foreign bodies":
        m = r(0.05, 0.1) * s
        x, y = r(-0.5, 0.5) * s, r(-0.5, 0.9) * s
        if rng.random() < 0.5:
            add("foreign body", mu["metal"], x, y, m, m, 3, 4, finding=True)
        else:
            add("foreign body", mu["metal"], x, y, 2 * m, 1.5, 1.5, 4, finding=True)
    if label == "calcification":
        x, y = r(-0.5, 0.5) * s, r(-0.3, 0.6) * s
        for _ in range(5):
            a = (0.02 + 0.03 * sev) * s
            at = (x + r(-0.1, 0.1) * s, y + r(-0.1, 0.1) * s)
            add("calcification", mu["calcium"], *at, a, a, a, finding=True)
    if label == "situs inversus totalis":
        for shape in shapes:
            shape.x = -shape.x
    add("marker", mu["metal"], -0.9 * s, -1.15 * s, 4, 6, 3, 4)
    return 2.5 * s / 1.0, shapes


def _thickness(shape: _Shape, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    rest = 1 - u**shape.power - v**shape.power
    return 2 * shape.c * np.sqrt(np.maximum(rest, 0)) * (v < shape.level)


def _project(address: str, size: int):
    film = film_at(parse_address(address))
    field, shapes = _scene(film)
    at = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * field
    for shape in shapes:
        u = ((at - shape.x) / shape.a)[None, :]
        v = ((at - shape.y) / shape.b)[:, None]
        cols, rows = np.flatnonzero(np.abs(u[0]) < 1), np.flatnonzero(np.abs(v[:, 0]) < 1)
        if len(cols) and len(rows):
            window = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
            yield film, shape, window, _thickness(shape, u[:, window[1]], v[window[0]])


def render_raw(address: str, size: int) -> np.ndarray:
    """The film as a detector gives it: uint16 `[size, size]`, 12 bits, bright = dense."""
    depth = np.zeros((size, size), np.float32)
    for film, shape, window, thickness in _project(address, size):  # noqa: B007
        depth[window] += np.float32(shape.mu) * thickness
    rng = stream(film.address, STREAM_NOISE, film.address.film, size)
    photons = 2000 * film.dose
    signal = np.exp(-np.maximum(depth, 0)) + np.float32(0.02)
    noise = rng.random((4, size, size), dtype=np.float32).sum(0) - 2
    signal = signal + noise * np.sqrt(signal * 3 / photons)
    value = -np.log(np.maximum(signal, 1e-3))
    return np.clip(value / 5 * 4095, 0, 4095).astype(np.uint16)


def render(address: str, size: int) -> np.ndarray:
    """The film as it is displayed: uint8 `[size, size]`, bone white, gas black."""
    raw = render_raw(address, size).astype(np.float32)
    return np.clip(raw * (255 / 4095), 0, 255).astype(np.uint8)


def truth(address: str, size: int) -> Truth:
    """Boxes of the findings and masks of the organs, for the film at this size."""
    masks: dict[str, np.ndarray] = {}
    boxes = []
    found = np.zeros((size, size), bool)
    for film, shape, window, thickness in _project(address, size):  # noqa: B007
        mask = masks.setdefault(shape.name, np.zeros((size, size), bool))
        mask[window] |= thickness > 0
        if shape.finding:
            found[window] |= thickness > 0
    if found.any():
        rows, cols = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
        boxes.append(Box(film.label, *box))
    return Truth(tuple(boxes), masks)
