"""Every form of convolution and pooling equals XLA's own, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from infantxray.models import convolution
from infantxray.models.forms import Forms, use_forms

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
    "3x3 on many channels": (8, 64, 72, 3, 1, 1, 1),
    "3x3 on many channels, unpadded": (9, 72, 64, 3, 1, 0, 1),
    "3x3 on many channels, padded by two": (8, 64, 64, 3, 1, 2, 1),
    "5x5 on many channels": (9, 64, 64, 5, 1, 1, 1),
    "3x3 on many channels in groups": (10, 128, 256, 3, 1, 1, 2),
    "3x3 to a grey image": (9, 8, 1, 3, 1, 1, 1),
    "3x3 to a colour image, unpadded": (9, 8, 3, 3, 1, 0, 1),
    "5x5 to a grey image": (9, 8, 1, 5, 1, 2, 1),
    "3x3 on a large map": (32, 32, 64, 3, 1, 1, 1),
    "3x3 on a large map, unpadded": (37, 64, 32, 3, 1, 0, 1),
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


def random_inputs(case):
    """A map and a kernel for the case."""
    side, channels, features, size, _, _, groups = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, side, side + 2 * (side > 2), channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels // groups, features)).astype(np.float32)
    return x, kernel


def convolve_in(forms, case):
    """`convolve` in these forms: its value and gradients, and the operations that it is made of."""
    *_, strides, padding, groups = case
    x, kernel = random_inputs(case)

    def function(x, kernel):
        return convolution.convolve(x, kernel, strides=strides, padding=padding, groups=groups)

    with use_forms(forms):
        program = str(jax.make_jaxpr(function)(x, kernel))
        return value_and_gradients(function, x, kernel), program


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_products_equal_xla(case):
    assert_close(convolve_in("cpu", case)[0], convolve_in("lax", case)[0])


@pytest.mark.parametrize("case", [name for name in CASES if "many" in name or "large" in name])
def test_kernel_gradient_is_one_product(case):
    x, kernel = random_inputs(CASES[case])
    *_, strides, padding, groups = CASES[case]

    def total(kernel):
        return convolution.convolve(
            x, kernel, strides=strides, padding=padding, groups=groups
        ).sum()

    with use_forms("cpu"):
        program = str(jax.make_jaxpr(jax.grad(total))(kernel))
    assert program.count("dot_general") == groups


@pytest.mark.parametrize("case", [name for name in CASES if "image" in name])
def test_convolution_to_an_image_is_made_of_products(case):
    assert "conv_general_dilated" not in convolve_in("cpu", CASES[case])[1]


@pytest.mark.parametrize("form", ["batched", "dense"])
@pytest.mark.parametrize(
    "case",
    [
        "1x1 in groups",
        "3x3 in groups",
        "3x3 in groups, strided",
        "3x3 in groups on a small map",
        "3x3 in few narrow groups",
    ],
)
def test_grouped_forms_equal_xla(case, form):
    result, program = convolve_in(Forms(grouped_1x1=form, grouped_3x3=form), CASES[case])
    expected, plain = convolve_in("lax", CASES[case])
    assert_close(result, expected)
    assert program != plain
    assert f"feature_group_count={CASES[case][-1]}" not in program


@pytest.mark.parametrize("side", [32, 14, 13])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "padding"), [(7, 3), (3, 1), (3, 0)])
def test_stem_on_blocks_equals_xla(side, channels, size, padding):
    case = (side, channels, 8, size, 2, padding, 1)
    result, program = convolve_in(Forms(stem="space_to_depth"), case)
    assert_close(result, convolve_in("lax", case)[0])
    assert "window_strides=(1, 1)" in program


@pytest.mark.parametrize("case", ["depthwise", "depthwise strided", "3x3 strided"])
def test_other_convolutions_keep_xlas_form(case):
    special = Forms(grouped_1x1="dense", grouped_3x3="batched", stem="space_to_depth")
    assert convolve_in(special, CASES[case])[1] == convolve_in("lax", CASES[case])[1]


@pytest.mark.parametrize(("size", "strides", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("side", [7, 8, 2])
@pytest.mark.parametrize("forms", ["cpu", "gpu", "lax", "onnx"])
def test_pooling_equals_linen(size, strides, padding, side, forms):
    x = np.random.default_rng(0).normal(size=(2, side, side, 5)).astype(np.float32)
    window = ((size, size), (strides, strides), [(padding, padding)] * 2)
    for ours, linens in [
        (convolution.max_pool, nn.max_pool),
        (convolution.average_pool, nn.avg_pool),
    ]:
        with use_forms(forms):
            actual = value_and_gradients(
                lambda x, pool=ours: pool(x, size=size, strides=strides, padding=padding), x
            )
        assert_close(actual, value_and_gradients(lambda x, pool=linens: pool(x, *window), x))


def test_pools_for_onnx_have_no_padding_of_their_own():
    def pools(x):
        return [
            pool(x, size=3, strides=2, padding=1)
            for pool in (convolution.max_pool, convolution.average_pool)
        ]

    with use_forms("onnx"):
        equations = jax.make_jaxpr(pools)(jnp.ones((1, 8, 8, 1))).eqns
    windows = [e for e in equations if e.primitive.name.startswith("reduce_window")]
    assert len(windows) == 2
    assert all(not np.any(e.params["padding"]) for e in windows)
    # An infinite number would become NaN in runtimes that multiply it.
    assert "inf" not in str([e for e in equations if e.primitive.name == "pad"])
