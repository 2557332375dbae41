"""Projecting simple solids along the beam onto a pixel grid.

Anatomical coordinates are in mm: x to the patient's left (to the right on an image, which is viewed
facing the patient), y towards the feet, origin at the third lumbar vertebra. The beam is parallel
along z, so a solid is known by its thickness along z at every pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from data_pipeline.phantom.exactmath import cosine, sine, square_root

Window = tuple[slice, slice]
Patch = tuple[Window, np.ndarray]  # thickness in mm, float32, in a window of the image


class Canvas:
    """The optical depth of an image while it is being drawn, and on request a mask of each organ.

    Attributes:
      depth: float32 `[size, size]`, line integral of the attenuation.
      pixel: mm.
      x, y: float32 `[size]`, mm, of the pixels' centres.
      masks: boolean `[size, size]` by name; None where nobody asked for them.
    """

    def __init__(self, size: int, field: float, x: float, y: float, *, with_masks: bool):
        """Args: the image's size in pixels, its side in mm, its centre in mm."""
        self.size = size
        self.pixel = field / size
        at = (np.arange(size) + 0.5) * self.pixel - field / 2
        self.x = (at + x).astype(np.float32)
        self.y = (at + y).astype(np.float32)
        self._x0, self._y0 = x - field / 2, y - field / 2
        self.depth = np.zeros((size, size), np.float32)
        self._centre = x
        self.masks: dict[str, np.ndarray] | None = {} if with_masks else None

    def layer(self) -> np.ndarray:
        return np.zeros((self.size, self.size), np.float32)

    def window(self, x0: float, y0: float, x1: float, y1: float) -> Window:
        """Rows and columns whose centres lie between the given mm; possibly none."""
        left = max(int((x0 - self._x0) / self.pixel + 0.5), 0)
        top = max(int((y0 - self._y0) / self.pixel + 0.5), 0)
        right = min(int((x1 - self._x0) / self.pixel + 0.5), self.size) if x1 > self._x0 else 0
        bottom = min(int((y1 - self._y0) / self.pixel + 0.5), self.size) if y1 > self._y0 else 0
        return slice(top, max(bottom, top)), slice(left, max(right, left))

    def add(self, attenuation: float, patch: Patch, name: str = "", least: float = 0.0) -> None:
        """Adds a solid. It belongs to the mask `name` where it is thicker than `least` mm."""
        window, thickness = patch
        self.depth[window] += thickness * np.float32(attenuation)
        self.mark(name, patch, least)

    def mark(self, name: str, patch: Patch, least: float = 0.0) -> None:
        """Adds to a mask without drawing."""
        if self.masks is not None and name:
            window, thickness = patch
            mask = self.masks.setdefault(name, np.zeros((self.size, self.size), bool))
            mask[window] |= thickness > least

    def mirror(self) -> None:
        """Turns the image over about x = 0: what was drawn before changes sides."""
        self.depth = np.ascontiguousarray(self.depth[:, ::-1])
        self.x = -self.x[::-1]
        self._x0 -= 2 * self._centre
        self._centre = -self._centre
        if self.masks is not None:
            self.masks = {name: mask[:, ::-1].copy() for name, mask in self.masks.items()}

    def _thin(self, radius: float) -> tuple[float, float]:
        """A radius that the grid can show, and what keeps the solid's mass then."""
        least = 0.6 * self.pixel
        return (radius, 1.0) if radius >= least else (least, radius / least)

    def ellipsoid(
        self,
        x: float,
        y: float,
        a: float,
        b: float,
        c: float,
        angle: float = 0.0,
        *,
        below: float | None = None,
        left_of: float | None = None,
        right_of: float | None = None,
    ) -> Patch:
        """An ellipsoid with semi-axes `a` (x), `b` (y), `c` (depth), turned by `angle` radians.

        With `below`, only the part with y < below, with `left_of` that with x < left_of, with
        `right_of` that with x > right_of: gas over a level of fluid.
        """
        a, scale_a = self._thin(a)
        b, scale_b = self._thin(b)
        c *= scale_a * scale_b
        if angle:
            cos, sin = cosine(angle), sine(angle)
            xx = cos * cos / (a * a) + sin * sin / (b * b)
            yy = sin * sin / (a * a) + cos * cos / (b * b)
            xy = 2 * sin * cos * (1 / (a * a) - 1 / (b * b))
            half_x = square_root(a * a * cos * cos + b * b * sin * sin)
            half_y = square_root(a * a * sin * sin + b * b * cos * cos)
        else:
            xx, yy, xy, half_x, half_y = 1 / (a * a), 1 / (b * b), 0.0, a, b
        x1, y1 = x + half_x, y + half_y
        if below is not None:
            y1 = min(y1, below)
        x0 = x - half_x
        if left_of is not None:
            x1 = min(x1, left_of)
        if right_of is not None:
            x0 = max(x0, right_of)
        window = self.window(x0, y - half_y, x1, y1)
        dx = self.x[window[1]] - np.float32(x)
        dy = self.y[window[0]] - np.float32(y)
        rest = (np.float32(1) - np.float32(xx) * dx * dx)[None, :] - (np.float32(yy) * dy * dy)[
            :, None
        ]
        if xy:
            rest -= (np.float32(xy) * dy)[:, None] * dx[None, :]
        np.maximum(rest, 0, out=rest)
        np.sqrt(rest, out=rest)
        rest *= np.float32(2 * c)
        return window, rest

    def block(self, x: float, y: float, a: float, b: float, c: float, angle: float = 0.0) -> Patch:
        """Like an ellipsoid, but boxy: fourth powers instead of squares."""
        a, scale_a = self._thin(a)
        b, scale_b = self._thin(b)
        c *= scale_a * scale_b
        cos, sin = cosine(angle), sine(angle)
        half_x = abs(a * cos) + abs(b * sin)
        half_y = abs(a * sin) + abs(b * cos)
        window = self.window(x - half_x, y - half_y, x + half_x, y + half_y)
        dx = (self.x[window[1]] - np.float32(x))[None, :]
        dy = (self.y[window[0]] - np.float32(y))[:, None]
        u = np.float32(cos / a) * dx + np.float32(sin / a) * dy
        v = np.float32(cos / b) * dy - np.float32(sin / b) * dx
        u *= u
        u *= u
        v *= v
        v *= v
        rest = np.float32(1) - u
        rest -= v
        np.maximum(rest, 0, out=rest)
        np.sqrt(rest, out=rest)
        rest *= np.float32(2 * c)
        return window, rest

    def rod(self, points: Sequence[tuple[float, float]], radius: float) -> Patch:
        """A round rod along straight pieces between the points."""
        radius, scale = self._thin(radius)
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        window = self.window(min(xs) - radius, min(ys) - radius, max(xs) + radius, max(ys) + radius)
        x, y = self.x[window[1]][None, :], self.y[window[0]][:, None]
        nearest = np.full((len(y), x.shape[1]), np.inf, np.float32)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            ex, ey = x1 - x0, y1 - y0
            length = max(ex * ex + ey * ey, 1e-6)
            dx, dy = x - np.float32(x0), y - np.float32(y0)
            along = dx * np.float32(ex / length) + dy * np.float32(ey / length)
            np.clip(along, 0, 1, out=along)
            dx = dx - along * np.float32(ex)
            dy = dy - along * np.float32(ey)
            dx *= dx
            dy *= dy
            dx += dy
            np.minimum(nearest, dx, out=nearest)
        rest = np.float32(radius * radius) - nearest
        np.maximum(rest, 0, out=rest)
        np.sqrt(rest, out=rest)
        rest *= np.float32(2 * scale)
        return window, rest

    def ring(
        self, x: float, y: float, a: float, b: float, radius: float, angle: float = 0.0
    ) -> tuple[Window, np.ndarray, np.ndarray, np.ndarray]:
        """A round rod bent to an ellipse with semi-axes `a` and `b`.

        Returns the window, the thickness, and the coordinates u, v in units of the semi-axes, by
        which callers cut the ring open.
        """
        radius, scale = self._thin(radius)
        cos, sin = cosine(angle), sine(angle)
        half_x = square_root(a * a * cos * cos + b * b * sin * sin) + radius
        half_y = square_root(a * a * sin * sin + b * b * cos * cos) + radius
        window = self.window(x - half_x, y - half_y, x + half_x, y + half_y)
        dx = (self.x[window[1]] - np.float32(x))[None, :]
        dy = (self.y[window[0]] - np.float32(y))[:, None]
        u = np.float32(cos / a) * dx + np.float32(sin / a) * dy
        v = np.float32(cos / b) * dy - np.float32(sin / b) * dx
        uu, vv = u * u, v * v
        # First-order distance from the ellipse: value over the length of the gradient.
        value = uu + vv
        slope = np.float32(4 / (a * a)) * uu
        slope += np.float32(4 / (b * b)) * vv
        slope += np.float32(1e-9)
        value -= np.float32(1)
        value *= value
        value /= slope
        rest = np.float32(radius * radius) - value
        np.maximum(rest, 0, out=rest)
        np.sqrt(rest, out=rest)
        rest *= np.float32(2 * scale)
        return window, rest, u, v


def texture(
    rng: np.random.Generator, canvas: Canvas, cell: float, window: Window | None = None
) -> np.ndarray:
    """Smooth random numbers in 0..1, float32, with cells of the given mm, fixed to the anatomy.

    The same stream gives the same texture at every size of the image. It repeats after 64 cells.
    """
    rows, cols = window or (slice(None), slice(None))
    grid = rng.integers(0, 256, size=(64, 64), dtype=np.uint8).astype(np.float32)
    grid *= np.float32(1 / 255)

    def split(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = at * np.float32(1 / cell) + np.float32(4096)
        whole = at.astype(np.int32)
        part = at - whole.astype(np.float32)
        return whole & 63, (whole + 1) & 63, part * part * (np.float32(3) - part * np.float32(2))

    x0, x1, wx = split(canvas.x[cols])
    y0, y1, wy = split(canvas.y[rows])
    # Interpolate along x on the 64 rows of the grid, then along y.
    across = grid[:, x0]
    across += (grid[:, x1] - across) * wx[None, :]
    out = across[y0]
    out += (across[y1] - out) * wy[:, None]
    return np.asarray(out)
