"""What is known of a patient beside the image, sex and view, as inputs of a network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Records

_log = logging.getLogger(__name__)

KINDS = ("sex", "view")
_FEWEST = 10  # Images of a value: with fewer its effect cannot be learned.


def _values(records: Records, kind: str) -> list[str]:
    """Sexes or views as they are compared: without regard to capitals and blanks."""
    return [str(value).strip().upper() for value in getattr(records, kind)]


def find_context(records: Records, kinds: Iterable[str]) -> tuple[str, ...]:
    """Names of the inputs, such as `("sex=F", "sex=M", "view=AP")`.

    Args:
      records: the training images.
      kinds: of `KINDS`.

    Raises:
      DataError: no value of a kind is known for ten images or more.
    """
    names: list[str] = []
    for kind in kinds:
        counts = Counter(_values(records, kind))
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


def context_matrix(records: Records, names: tuple[str, ...]) -> np.ndarray:
    """Inputs of each image, float32 `[N, C]`: 1 where it has that value; all 0 = unknown."""
    columns = {kind: np.array(_values(records, kind), dtype=object) for kind in KINDS}
    matrix = np.zeros((len(records), len(names)), np.float32)
    for i, name in enumerate(names):
        kind, _, value = name.partition("=")
        matrix[:, i] = columns[kind] == value
    return matrix
