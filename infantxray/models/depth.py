"""How deep in an encoder each of its parameters sits, for learning rates that fall with depth."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

PyTree = Any


def pyramid_level(encoder: nn.Module, params: PyTree) -> PyTree:
    """The first map of the encoder's pyramid that each parameter takes part in.

    It is read off the encoder's own computation, so it holds for any encoder.

    Args:
      encoder: see `infantxray.models.create_encoder`.
      params: its parameters.

    Returns:
      A tree like `params` of integers: 0 for what the map of stride 4 is made of, up to 3 for what
      only the map of stride 32 is (up to 2 where that map is pooled without parameters).
    """
    image = jnp.zeros((1, 32, 32, encoder.in_channels))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=False))
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    jaxpr = jax.make_jaxpr(
        lambda params, rest: encoder.apply({"params": params, **rest}, image, train=False)
    )(variables["params"], rest).jaxpr
    leaves, structure = jax.tree.flatten(params)
    levels: list[int | None] = [None] * len(leaves)
    for level, output in enumerate(jaxpr.outvars):
        # Backwards from the map: whatever an operation that counts reads, counts.
        needed = {output}
        for equation in reversed(jaxpr.eqns):
            if needed.intersection(equation.outvars):
                needed.update(v for v in equation.invars if not isinstance(v, Literal))
        for i, variable in enumerate(jaxpr.invars[: len(leaves)]):
            if levels[i] is None and variable in needed:
                levels[i] = level
    return jax.tree.unflatten(structure, levels)
