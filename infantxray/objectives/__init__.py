"""Stage one by the name of its objective."""

from __future__ import annotations

from infantxray.objectives.base import Objective
from infantxray.objectives.l1 import L1

OBJECTIVES: dict[str, type[Objective]] = {"l1": L1}

__all__ = ["OBJECTIVES", "Objective"]
