"""Objectives of stage one, by name.

A new objective is a subclass of `Objective` in a file here, and an entry of `OBJECTIVES`.
"""

from __future__ import annotations

from infantxray.stage_one.objectives.base import Objective, ObjectiveSettings
from infantxray.stage_one.objectives.denoise import Denoise
from infantxray.stage_one.objectives.l1 import L1
from infantxray.stage_one.objectives.masking import MaskedHOG, MaskedPixels
from infantxray.stage_one.objectives.simsiam import SimSiam

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (L1, Denoise, MaskedPixels, MaskedHOG, SimSiam)
}

__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings"]
