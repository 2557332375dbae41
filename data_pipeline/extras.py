"""The optional packages, and the command that installs them.

The commands name the packages, because `pip install "infantxray[onnx]"` only works where infantxray
itself is installed, and `pip install -r requirements.txt` does not do that.
"""

from __future__ import annotations

import shlex

# The extras of pyproject.toml.
EXTRAS = {
    "dicom": ("highdicom==0.28.2",),
    "gcs": ("gcsfs>=2024.6",),
    "onnx": ("jax2onnx==0.13.0", "onnxruntime>=1.24"),
    "pandas": ("pandas>=2.2",),
    "ray": ("ray==2.60.0",),
    "s3": ("s3fs>=2024.6",),
    "torch": ("torch>=2.6",),
}


def install_line(extra: str) -> str:
    """The command that installs an extra, for a message: `pip install ray==2.60.0`."""
    return shlex.join(["pip", "install", *EXTRAS[extra]])
