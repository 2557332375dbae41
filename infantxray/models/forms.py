"""Computation forms: which equivalent spelling of an operation the networks use on each backend.

The same sums can be written in several ways, and XLA compiles them to programs that differ in
speed by up to a hundred times. `Forms` names one spelling for each kind of operation. Parameters
are the same in every form; results and gradients agree within rounding.

The forms are read when a function is traced, so set them before `jax.jit` compiles it:

    with use_forms("onnx"):
        exported = jax2onnx.to_onnx(predict, ...)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import jax


@dataclasses.dataclass(frozen=True)
class Forms:
    """One spelling for each kind of operation. The defaults are XLA's own operations.

    Attributes:
      convolution: "lax", XLA's convolution; or "products", matrix products and shifted additions
        for CPUs, which take precedence over the next four fields.
      pointwise: convolutions of 1x1 without groups: "lax"; or "product", a matrix product.
      grouped_1x1: grouped convolutions of 1x1: "lax"; "batched", one batched matrix product;
        or "dense", one product with a block-diagonal kernel.
      grouped_3x3: larger grouped convolutions, with the same choices. Depthwise convolutions
        keep "lax".
      stem: a convolution of stride 2 on up to three channels: "lax"; or "space_to_depth", a
        convolution of stride 1 on 2x2 blocks of pixels.
      max_pool: "lax"; "padded", an explicit pad and a window without padding (for ONNX); or
        "shifts", the maximum of shifted slices.
      average_pool: as `max_pool`.
      fusion: HRNet's sum of a fine map and coarser ones: "repeat", upsample each, then add; or
        "nested", add from the coarsest up, each time at the lower resolution.
      doubling: the decoder's upsampling: "early", rearrange the pixels, then normalise; "late",
        normalise, then rearrange; or "transposed", XLA's transposed convolution.
      statistics: DenseNet's batch statistics of concatenated maps: "each", computed again in
        every layer; or "shared", computed once for each new map.
    """

    convolution: Literal["lax", "products"] = "lax"
    pointwise: Literal["lax", "product"] = "lax"
    grouped_1x1: Literal["lax", "batched", "dense"] = "lax"
    grouped_3x3: Literal["lax", "batched", "dense"] = "lax"
    stem: Literal["lax", "space_to_depth"] = "lax"
    max_pool: Literal["lax", "padded", "shifts"] = "lax"
    average_pool: Literal["lax", "padded", "shifts"] = "lax"
    fusion: Literal["repeat", "nested"] = "repeat"
    doubling: Literal["early", "late", "transposed"] = "early"
    statistics: Literal["each", "shared"] = "each"


# The GPU's choices follow a profile of one H100. On an H200 the dense 1x1 groups took 7.5 ms a
# step of ShuffleNet instead of 18.7, and pointwise products 18.5 ms a step of ResNet-50 instead of
# 19.8; the max-pool forms are level (benchmarks/results/gpu.md). `benchmarks/gpu.py --each-form`
# measures each of them alone.
FORMS = {
    "cpu": Forms(convolution="products", max_pool="shifts", average_pool="shifts"),
    "gpu": Forms(
        pointwise="product",
        grouped_1x1="dense",
        stem="space_to_depth",
        max_pool="shifts",
        fusion="nested",
        doubling="late",
        statistics="shared",
    ),
    "tpu": Forms(grouped_1x1="dense", stem="space_to_depth", fusion="nested"),
    "lax": Forms(),
    "onnx": Forms(max_pool="padded", average_pool="padded"),
}

_chosen: ContextVar[Forms | None] = ContextVar("forms", default=None)


def current_forms() -> Forms:
    """The forms chosen by `use_forms`, or those of `jax.default_backend()`."""
    return _chosen.get() or FORMS.get(jax.default_backend(), FORMS["lax"])


@contextlib.contextmanager
def use_forms(forms: Forms | str) -> Iterator[Forms]:
    """Traces functions in these forms, in this thread, until the block ends.

    A function that `jax.jit` has compiled before keeps the forms it was traced with.

    Args:
      forms: what to use, or a key of `FORMS`.

    Raises:
      ValueError: `FORMS` has no such key.
    """
    if isinstance(forms, str):
        if forms not in FORMS:
            raise ValueError(f"no forms are called {forms!r}; choose from {', '.join(FORMS)}")
        forms = FORMS[forms]
    token = _chosen.set(forms)
    try:
        yield forms
    finally:
        _chosen.reset(token)
