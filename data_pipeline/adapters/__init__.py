"""Data sets by name: `ADAPTERS[name](place)` reads a public layout as `Records`.

Each adapter is one file; it lists what is there without opening an image where the layout allows.
"""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.adapters.folder import read_folder
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
}
