"""Elementary functions from additions, multiplications and divisions alone.

The mathematics library and the vector units of a machine may round sine, exponential and
logarithm differently from those of another one; sums, products, quotients and square roots are
fixed by IEEE 754. Images must be the same bytes everywhere, so everything that reaches a pixel
goes through the functions below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PI = 3.141592653589793
_LN2 = 0.6931471805599453


def exp(x: float) -> float:
    """e**x for |x| < 700, to about 1e-13 relative."""
    y = x / 1024
    term = total = 1.0
    for k in range(1, 9):
        term *= y / k
        total += term
    for _ in range(10):
        total *= total
    return total


def log(x: float) -> float:
    """Natural logarithm of a positive number."""
    twos = 0
    while x > 1.5:
        x, twos = x / 2, twos + 1
    while x < 0.75:
        x, twos = x * 2, twos - 1
    t = (x - 1) / (x + 1)
    square, power, total = t * t, t, 0.0
    for k in range(1, 40, 2):
        total += power / k
        power *= square
    return 2 * total + twos * _LN2


# Taylor coefficients of the sine for x**3, x**5, ...; enough for a quarter turn.
_SINE = [-1 / 6]
for _k in range(2, 10):
    _SINE.append(-_SINE[-1] / (2 * _k * (2 * _k + 1)))


def sine(x: float) -> float:
    """Sine of an angle in radians, to about 1e-13."""
    turns = round(x / PI)
    x -= PI * turns
    square, total = x * x, 0.0
    for coefficient in reversed(_SINE):
        total = (total + coefficient) * square
    value = x + x * total
    return -value if turns % 2 else value


def cosine(x: float) -> float:
    """Cosine of an angle in radians."""
    return sine(x + PI / 2)


def square_root(x: float) -> float:
    return float(np.sqrt(x))  # correctly rounded by IEEE 754, unlike x**0.5


def cube_root(x: float) -> float:
    return exp(log(x) / 3)


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Straight lines between the points (`xs` rising); constant beyond both ends."""
    if x <= xs[0]:
        return float(ys[0])
    for i in range(1, len(xs)):
        if x <= xs[i]:
            weight = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return ys[i - 1] + weight * (ys[i] - ys[i - 1])
    return float(ys[-1])


_EXP_STEPS = 1024  # per unit
_EXP_END = 14
_LOG_BITS = 11
_LOG_LOW, _LOG_HIGH = -14, 4  # powers of two


def _exp_table() -> np.ndarray:
    x = -(np.arange(_EXP_STEPS * _EXP_END + 1) / _EXP_STEPS) / 1024
    term, total = np.ones_like(x), np.ones_like(x)
    for k in range(1, 9):
        term = term * (x / k)
        total = total + term
    for _ in range(10):
        total = total * total
    return total.astype(np.float32)


def _log_table() -> np.ndarray:
    mantissa = 1 + (np.arange(1 << _LOG_BITS) + 0.5) / (1 << _LOG_BITS)
    t = (mantissa - 1) / (mantissa + 1)
    square, power, total = t * t, t, np.zeros_like(t)
    for k in range(1, 40, 2):
        total = total + power / k
        power = power * square
    octaves = [2 * total + e * _LN2 for e in range(_LOG_LOW, _LOG_HIGH)]
    return np.concatenate(octaves).astype(np.float32)


_EXP = _exp_table()
_LOG = _log_table()
_LOG_FIRST = (127 + _LOG_LOW) << _LOG_BITS


def exp_of_minus(depth: np.ndarray) -> np.ndarray:
    """exp(-depth) of a float32 array, in steps of a thousandth; clipped to 0 <= depth <= 14."""
    scaled = depth * np.float32(_EXP_STEPS)
    scaled += np.float32(0.5)
    np.clip(scaled, 0, _EXP_STEPS * _EXP_END, out=scaled)
    return _EXP.take(scaled.astype(np.int32), mode="clip")


def log_of(signal: np.ndarray) -> np.ndarray:
    """Natural logarithm of a float32 array to 2.5e-4; clipped to 2**-14 <= signal < 16."""
    clipped = np.clip(signal, np.float32(2.0**_LOG_LOW), np.float32(2.0**_LOG_HIGH * 0.999))
    bits = clipped.view(np.int32) >> (23 - _LOG_BITS)
    bits -= _LOG_FIRST
    return np.asarray(_LOG.take(bits, mode="clip"))
