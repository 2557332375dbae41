"""The CPU's spelling of convolution and pooling equals XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from infantxray.models import convolution

# side, channels, features, kernel size, strides, padding, groups
CASES = {
    "1x1": (9, 8, 12, 1, 1, 0, 1),
    "1x1 strided": (9, 8, 12, 1, 2, 0, 1),
    "1x1 in groups": (6, 12, 24, 1, 1, 0, 3),
    "3x3": (12, 6, 10, 3, 1, 1, 1),
    "3x3 strided": (12, 6, 10, 3, 2, 1, 1),
    "3x3 unpadded": (13, 6, 10, 3, 2, 0, 1),
    "3x3 on a small map": (5, 6, 10, 3, 1, 1, 1),
    "3x3 strided on a small map": (4, 6, 10, 3, 2, 1, 1),
    "3x3 on a map smaller than the kernel": (2, 6, 10, 3, 1, 1, 1),
    "3x3 on one pixel": (1, 6, 10, 3, 2, 1, 1),
    "3x3 in groups": (12, 64, 64, 3, 1, 1, 8),
    "3x3 in groups, strided": (12, 64, 64, 3, 2, 1, 8),
    "3x3 in groups on a small map": (4, 64, 128, 3, 1, 1, 16),
    "3x3 in wide groups on a small map": (4, 64, 64, 3, 2, 1, 2),
    "3x3 in few narrow groups": (4, 8, 8, 3, 1, 1, 2),
    "depthwise": (10, 8, 8, 3, 1, 1, 8),
    "depthwise strided": (10, 8, 8, 3, 2, 1, 8),
    "7x7": (14, 1, 8, 7, 2, 3, 1),
}


def value_and_gradients(function, *arguments):
    """The function's value, and its gradients against fixed random weights."""

    def scalar(*arguments):
        y = function(*arguments)
        weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        return (y * weights).sum(), y

    positions = tuple(range(len(arguments)))
    (_, y), gradients = jax.jit(jax.value_and_grad(scalar, positions, has_aux=True))(*arguments)
    return [y, *gradients]


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_products_equal_xla(case):
    side, channels, features, size, strides, padding, groups = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, side, side + 2 * (side > 2), channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels // groups, features)).astype(np.float32)

    def run(form):
        return value_and_gradients(
            lambda x, kernel: form(x, kernel, strides=strides, padding=padding, groups=groups),
            x,
            kernel,
        )

    assert_close(run(convolution.convolve_products), run(convolution.convolve_lax))


@pytest.mark.parametrize(("size", "strides", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("side", [7, 8, 2])
def test_pooling_equals_linen(size, strides, padding, side):
    x = np.random.default_rng(0).normal(size=(2, side, side, 5)).astype(np.float32)
    window = ((size, size), (strides, strides), [(padding, padding)] * 2)
    for ours, linens in [
        (convolution.max_pool, nn.max_pool),
        (convolution.average_pool, nn.avg_pool),
    ]:
        actual = value_and_gradients(
            lambda x, pool=ours: pool(x, size=size, strides=strides, padding=padding), x
        )
        assert_close(actual, value_and_gradients(lambda x, pool=linens: pool(x, *window), x))


def test_backend_decides(monkeypatch):
    # A map smaller than the kernel.
    x, kernel = jnp.zeros((1, 2, 2, 2)), jnp.zeros((3, 3, 2, 2))

    def primitives():
        program = jax.make_jaxpr(lambda x: convolution.convolve(x, kernel, padding=1))(x)
        return {equation.primitive.name for equation in program.eqns}

    assert "conv_general_dilated" not in primitives()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in primitives()
