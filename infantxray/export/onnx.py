"""ONNX export by jax2onnx, an optional dependency."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.errors import UserError
from data_pipeline.extras import install_line
from infantxray.models.forms import use_forms

INSTALL = install_line("onnx")
_OPSET = 21


def to_onnx(
    function: Callable[[jax.Array], tuple[jax.Array, ...]],
    names: Sequence[str],
    image_size: int,
    *,
    opset: int = _OPSET,
) -> bytes:
    """An ONNX model of a function of uint8 images `[B, S, S, 1]`, B any number.

    Args:
      function: of the images, with its weights inside. It must not have been traced before.
      names: names of its outputs.
      image_size: S.
      opset: version of the operators.

    Raises:
      UserError: jax2onnx is not installed.
    """
    logging.disable(logging.WARNING)  # It warns of plugins that other networks would need.
    try:
        from jax2onnx import to_onnx as convert

        image = jax.ShapeDtypeStruct(("B", image_size, image_size, 1), jnp.uint8)
        with use_forms("onnx"):
            model = convert(
                function, [image], opset=opset, input_names=["image"], output_names=list(names)
            )
    except ImportError:
        raise UserError(f"the export to ONNX needs jax2onnx: {INSTALL}") from None
    finally:
        logging.disable(logging.NOTSET)
    return model.SerializeToString()


def session(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
      UserError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"running the exported model needs onnxruntime: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
