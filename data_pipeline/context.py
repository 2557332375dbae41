"""Sex and view of a patient as inputs of a network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

_FEWEST = 10  # Images of a value: with fewer its effect cannot be learned.


def _plain(values: Iterable[str]) -> list[str]:
    """Sexes or views for comparison: without capitals and blanks."""
    return [str(value).strip().upper() for value in values]


def find_context(records: Records, kinds: Iterable[str]) -> tuple[str, ...]:
    """Names of the inputs, such as `("sex=F", "sex=M", "view=AP")`.

    Args:
      records: the training images.
      kinds: `"sex"` and `"view"`.

    Raises:
      DataError: no value of a kind is known for ten images or more.
    """
    names: list[str] = []
    for kind in kinds:
        counts = Counter(_plain(getattr(records, kind)))
        unknown = counts.pop("", 0)
        found = sorted(value for value, count in counts.items() if count >= _FEWEST)
        if not found:
            raise DataError(
                f"config.condition_on names {kind}, which is known for too few training images "
                f"({sum(counts.values()):,} of {len(records):,}); leave it out"
            )
        _log.info(
            "%s is an input of the heads: %s; unknown for %d images",
            kind,
            ", ".join(f"{value} ({counts[value]:,})" for value in found),
            unknown + sum(count for value, count in counts.items() if value not in found),
        )
        names += [f"{kind}={value}" for value in found]
    return tuple(names)


def context_matrix(
    names: tuple[str, ...], *, sex: Sequence[str] | np.ndarray, view: Sequence[str] | np.ndarray
) -> np.ndarray:
    """Inputs of N images, float32 `[N, C]`: 1 where an image has that value; all 0 = unknown.

    Args:
      names: see `find_context`.
      sex, view: of each image; empty = unknown.
    """
    known = {"sex": _plain(sex), "view": _plain(view)}
    matrix = np.zeros((len(sex), len(names)), np.float32)
    for i, name in enumerate(names):
        kind, _, value = name.partition("=")
        matrix[:, i] = [found == value for found in known[kind]]
    return matrix
