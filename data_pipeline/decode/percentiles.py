"""Window by percentiles, for images without a usable window in the file.

It works on the histogram rather than on the image: there are at most 65,536 values.
"""

from __future__ import annotations

import numpy as np

_SHOWN = (0.5, 99.5)
_PIECE = 2**18


def histogram(stored: np.ndarray, length: int) -> np.ndarray:
    """Counts of each value. In pieces, because bincount converts its argument to int64."""
    flat = stored.ravel()
    counts = np.zeros(length, np.int64)
    for at in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[at : at + _PIECE], minlength=length)
    return counts


def percentiles(
    values: np.ndarray, counts: np.ndarray, wanted: tuple[float, float]
) -> tuple[float, float]:
    """Percentiles of an image, from its values and their counts."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    ranks = np.asarray(wanted) / 100.0 * cumulative[-1]
    at = np.minimum(np.searchsorted(cumulative, ranks), len(values) - 1)
    low, high = values[order][at]
    return float(low), float(high)


def window_by_percentiles(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Greys 0 to 1 of every value: black at the 0.5th percentile of the image, white at the 99.5th.

    If both are one value, as on an almost blank image, minimum and maximum take their place. An
    image of a single value becomes black.
    """
    low, high = percentiles(values, counts, _SHOWN)
    if low == high:
        present = values[counts > 0]
        low, high = float(present.min()), float(present.max())
    return np.clip((values - low) / max(high - low, 1e-9), 0.0, 1.0)
