"""Greys for an image that says nothing, or nothing useful, of how it is to be displayed.

Works on how often each value occurs rather than on the image: there are at most 65,536 of them.
"""

from __future__ import annotations

import numpy as np

_SHOWN = (0.5, 99.5)
_PIECE = 2**18


def histogram(stored: np.ndarray, length: int) -> np.ndarray:
    """How often each value occurs. In pieces, because bincount makes int64 of what it is given."""
    flat = stored.ravel()
    counts = np.zeros(length, np.int64)
    for at in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[at : at + _PIECE], minlength=length)
    return counts


def percentiles(
    values: np.ndarray, counts: np.ndarray, wanted: tuple[float, float]
) -> tuple[float, float]:
    """Percentiles of an image from the counts of its values."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    ranks = np.asarray(wanted) / 100.0 * cumulative[-1]
    at = np.minimum(np.searchsorted(cumulative, ranks), len(values) - 1)
    low, high = values[order][at]
    return float(low), float(high)


def window_by_percentiles(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Greys 0 to 1 of every value, over what lies between the image's 0.5th and 99.5th percentile.

    Where both are one value, as on an almost blank image, over all of its values; black if it has
    only one.
    """
    low, high = percentiles(values, counts, _SHOWN)
    if low == high:
        present = values[counts > 0]
        low, high = float(present.min()), float(present.max())
    return np.clip((values - low) / max(high - low, 1e-9), 0.0, 1.0)
