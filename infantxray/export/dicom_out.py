"""DICOM output: a Structured Report of the prediction and a secondary capture of the saliency."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from data_pipeline.errors import UserError

INSTALL = 'pip install "infantxray[dicom]"'


def check_installed() -> None:
    """Raises `UserError` where highdicom is missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise UserError(f"DICOM output needs highdicom: {INSTALL}") from None
