"""Layer-wise learning-rate decay: the pyramid level at which each encoder parameter enters."""

from __future__ import annotations

import re
from typing import Any

import jax
from flax import linen as nn

PyTree = Any


def pyramid_level(encoder: nn.Module, params: PyTree) -> PyTree:
    """The first map of the encoder's pyramid that each parameter takes part in.

    Args:
      encoder: see `infantxray.models.create_encoder`; its `levels` list patterns that match the
        start of a module's path, each with its level. Parameters that match none are at level 0.
      params: its parameters.

    Returns:
      A tree like `params` of integers: 0 for parameters of the map of stride 4, up to 3 for
      parameters of the map of stride 32 alone (up to 2 if that map is pooled without parameters).
    """

    def level(path: tuple[Any, ...], _: Any) -> int:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((n for pattern, n in encoder.levels if re.match(pattern, name)), 0)

    return jax.tree_util.tree_map_with_path(level, params)
