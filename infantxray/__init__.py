"""infantxray: representation learning on X-rays, then diagnosis of infants' conditions and ages.

    import infantxray

    model = infantxray.load("runs/finetune")
    result = model.predict(["a.dcm", "b.png"])
    result.probabilities, result.age_months

`Model` lists all methods of a trained model. `create_encoder` makes one of the eight `ENCODERS`;
`import_encoder` and `export_encoder` exchange weights with PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infantxray.api import Model, Result, load
    from infantxray.models import ENCODERS, create_encoder
    from infantxray.models.torch_weights import export_encoder, import_encoder

__version__ = "0.2.0"

# Imported on first use: JAX takes a second, and `main.py` checks settings without it.
_HOMES = {
    "Model": "infantxray.api",
    "Result": "infantxray.api",
    "load": "infantxray.api",
    "ENCODERS": "infantxray.models",
    "create_encoder": "infantxray.models",
    "import_encoder": "infantxray.models.torch_weights",
    "export_encoder": "infantxray.models.torch_weights",
}

__all__ = [
    "ENCODERS",
    "Model",
    "Result",
    "create_encoder",
    "export_encoder",
    "import_encoder",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'infantxray' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
