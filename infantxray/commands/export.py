"""`export`: a stage-two model as a folder of ONNX, StableHLO, weights, model card and page."""

from __future__ import annotations

import logging
import os

from infantxray.export.folder import write_export
from infantxray.runs import runtime
from infantxray.stage_two.answers import load_members

_log = logging.getLogger(__name__)


def run(config, folder: str) -> None:
    """Exports `config.checkpoint` into `folder`."""
    runtime.setup()
    (member,) = load_members([config.checkpoint], calibrate=config.calibrate)
    differences = write_export(
        folder, member, name=config.name, licence=config.licence, page=config.page
    )
    _log.info(
        "ONNX and StableHLO agree with the checkpoint within %.1g (relative)",
        max(differences.values()),
    )
    megabytes = sum(e.stat().st_size for e in os.scandir(folder) if e.is_file()) / 1e6
    _log.info("%s: %.0f MB; see README.md there", folder, megabytes)
    if os.path.exists(os.path.join(folder, "reader.html")):
        _log.info(
            "the page: cd %s && python -m http.server 8000, then http://localhost:8000/reader.html",
            folder,
        )
