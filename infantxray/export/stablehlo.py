"""StableHLO export by `jax.export`: runs with JAX alone, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp

from infantxray.models.forms import use_forms

PLATFORMS = ("cpu", "cuda")


def to_stablehlo(function: Callable[[jax.Array], tuple[jax.Array, ...]], image_size: int) -> bytes:
    """A serialised program of a function of uint8 images `[B, S, S, 1]`, B any number.

    `jax.export.deserialize(data).call(image)` runs it.

    Args:
      function: of the images, with its weights inside. It must not have been traced before.
      image_size: S.
    """
    shape = jax.export.symbolic_shape(f"B, {image_size}, {image_size}, 1")
    with use_forms("lax"):
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )
    return bytes(exported.serialize())
