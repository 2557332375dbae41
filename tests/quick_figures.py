"""Reports without drawing, for tests of what else a run writes: figures take half of their time."""

import contextlib
from pathlib import Path

import pytest

from infantxray.reports import plots

_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@contextlib.contextmanager
def quick_figures():
    """Writes empty figures. Those of whole reports are drawn in `test_end_to_end.finetuned`."""

    def save(folder, name, draw, words=()):
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = [Path(folder) / f"{name}{end}" for end in (".svg", "_dark.svg", ".png")]
        for path in paths:
            path.write_text(_SVG)
        return str(paths[0]), str(paths[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        yield
