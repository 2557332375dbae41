"""Adapters of public data sets: `ADAPTERS[name](place)` reads a layout as `Records`.

Each adapter is one file. It lists images without opening them where the layout allows.
"""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.adapters.aihub import read_aihub
from data_pipeline.adapters.chexpert import read_chexpert
from data_pipeline.adapters.folder import read_folder
from data_pipeline.adapters.grazpedwri import read_grazpedwri
from data_pipeline.adapters.kermany import read_kermany
from data_pipeline.adapters.mimic_cxr import read_mimic_cxr
from data_pipeline.adapters.nih import read_nih
from data_pipeline.adapters.padchest import read_padchest
from data_pipeline.adapters.rsna_bone_age import read_rsna_bone_age
from data_pipeline.adapters.vindr_cxr import read_vindr_cxr
from data_pipeline.adapters.vindr_pcxr import read_vindr_pcxr
from data_pipeline.manifest import Records, read_manifest


def _manifest(place: str) -> Records:
    return read_manifest(place)


def _phantom(place: str) -> Records:
    from data_pipeline.phantom import open_phantom

    return open_phantom(place)


ADAPTERS: dict[str, Callable[[str], Records]] = {
    "manifest": _manifest,
    "folder": read_folder,
    "phantom": _phantom,
    "aihub": read_aihub,
    "vindr_pcxr": read_vindr_pcxr,
    "nih": read_nih,
    "chexpert": read_chexpert,
    "mimic_cxr": read_mimic_cxr,
    "padchest": read_padchest,
    "vindr_cxr": read_vindr_cxr,
    "kermany": read_kermany,
    "rsna_bone_age": read_rsna_bone_age,
    "grazpedwri": read_grazpedwri,
}
