"""Stage one by the name of its objective."""

from __future__ import annotations

from infantxray.objectives.base import Objective
from infantxray.objectives.denoise import Denoise
from infantxray.objectives.l1 import L1
from infantxray.objectives.masking import MaskedHOG, MaskedPixels
from infantxray.objectives.simsiam import SimSiam

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (L1, Denoise, MaskedPixels, MaskedHOG, SimSiam)
}

__all__ = ["OBJECTIVES", "Objective"]
