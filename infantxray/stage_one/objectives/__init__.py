"""Objectives of stage one, by name.

A new objective is a subclass of `Objective` in a file here, and an entry of `OBJECTIVES`.
"""

from __future__ import annotations

from infantxray.stage_one.objectives.base import Objective, ObjectiveSettings
from infantxray.stage_one.objectives.byol import BYOL
from infantxray.stage_one.objectives.denoise import Denoise
from infantxray.stage_one.objectives.l1 import L1
from infantxray.stage_one.objectives.masking import MaskedHOG, MaskedPixels
from infantxray.stage_one.objectives.simsiam import SimSiam

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (L1, Denoise, MaskedPixels, MaskedHOG, SimSiam, BYOL)
}


def panel_names(objective: str) -> tuple[str, ...]:
    """Names of the panels of `config.objective`, which may join several by +."""
    found = [OBJECTIVES[name] for name in objective.split("+") if name in OBJECTIVES]
    return tuple(panel for kind in found for panel in kind.panel_names)


__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings", "panel_names"]
