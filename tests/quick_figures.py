"""Reports without figures and saliency, for tests of what else a run writes.

They take most of the time of a small run. `test_end_to_end.finetuned` makes them.
"""

import contextlib
from pathlib import Path

import pytest

from infantxray.reports import plots, run_report

_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@contextlib.contextmanager
def quick_figures(*, whole=False):
    """Writes empty figures, and no saliency maps; with `whole`, draws both but saves no figure."""

    def save(folder, name, draw, words=()):
        if whole:
            draw()
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = [Path(folder) / f"{name}{end}" for end in (".svg", "_dark.svg", ".png")]
        for path in paths:
            path.write_text(_SVG)
        return str(paths[0]), str(paths[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", save)
        if not whole:
            patch.setattr(run_report, "localisation", lambda *args, **kwargs: None)
            for name in ("examples", "mistakes"):
                patch.setattr(run_report, name, lambda *args: [])
        yield
