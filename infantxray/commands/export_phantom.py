"""`export_phantom`: write phantom images as files, with a manifest that reads back the same."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest_writing import write_manifest
from data_pipeline.phantom import Box, truth
from data_pipeline.phantom.export import FORMATS, file_name, write_image
from data_pipeline.sources import open_sources

_log = logging.getLogger(__name__)


def run(config: Any, workdir: str) -> None:
    """Exports the images of `config.data.train`, all splits, into `workdir`.

    Raises:
      UserError: the format is unknown.
      DataError: the data is not a phantom.
    """
    form, size = config.format, config.data.image_size
    if form not in FORMATS:
        raise UserError(f"config.format is {form!r}; it must be one of {', '.join(FORMATS)}")
    records = open_sources(config.data.train)
    addresses = list(records.image_path)
    if not all(address.startswith("phantom:") for address in addresses):
        raise DataError(
            f"config.data.train is {config.data.train!r}; only phantom images can be exported, "
            "such as phantom:infant"
        )
    folder = Path(workdir) / "images"
    folder.mkdir(parents=True, exist_ok=True)

    def export(i: int) -> tuple[Box, ...]:
        write_image(
            folder,
            addresses[i],
            size,
            form,
            patient_id=records.patient_id[i],
            age_months=float(records.age_months[i]),
            sex=records.sex[i],
        )
        return truth(addresses[i], size).boxes

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = range(len(addresses))
        boxes = list(tqdm(pool.map(export, images), total=len(images), unit="image", desc="export"))
    names = [str((folder / file_name(address, form)).absolute()) for address in addresses]
    manifest = Path(workdir) / "manifest.csv"
    fields = ["x0", "y0", "x1", "y1"] + ["label"] * any(len(found) > 1 for found in boxes)
    extra = {
        f"box_{field}": ["|".join(str(getattr(box, field)) for box in found) for found in boxes]
        for field in fields
    }
    write_manifest(
        manifest,
        records.replace(image_path=np.asarray(names, dtype=object)),
        extra={**extra, "phantom_address": addresses},
    )
    _log.info("%s images: --config.data.train=manifest:%s", f"{len(images):,}", manifest)
