"""The pyramid level of each parameter, for learning rates that fall with depth."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from infantxray.models import ENCODERS, create_encoder
from infantxray.models.depth import pyramid_level
from infantxray.models.encoders import vgg


def test_levels_are_where_gradients_come_from():
    encoder = vgg.VGG(stages=tuple(vgg.Stage(1, 8) for _ in range(5)))
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    params = jax.jit(lambda: encoder.init(jax.random.key(1), image, train=False))()["params"]
    levels = jax.tree.leaves(pyramid_level(encoder, params))
    for at in range(4):
        grads = jax.grad(
            lambda params, at=at: encoder.apply({"params": params}, image, train=False)[at].sum()
        )(params)
        reached = [bool(jnp.abs(g).max() > 0) for g in jax.tree.leaves(grads)]
        assert reached == [level <= at for level in levels]
    # The map of stride 32 is pooled from the one before.
    assert set(levels) == {0, 1, 2}


@pytest.mark.parametrize("name", ENCODERS)
def test_tables_agree_with_the_computation(name):
    """Against the first map that an operation on each parameter leads to."""
    encoder = create_encoder(name)
    image = jnp.zeros((1, 32, 32, 1))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=False))
    program = jax.make_jaxpr(lambda variables: encoder.apply(variables, image, train=False))
    jaxpr = program(variables).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    expected = {}
    for level, output in enumerate(jaxpr.outvars):
        needed = {output}
        for equation in reversed(jaxpr.eqns):
            if needed.intersection(equation.outvars):
                needed.update(v for v in equation.invars if not isinstance(v, Literal))
        for path, variable in zip(paths, jaxpr.invars, strict=True):
            if path[0].key == "params" and variable in needed:
                expected.setdefault(jax.tree_util.keystr(path[1:]), level)
    levels = pyramid_level(encoder, variables["params"])
    actual = {jax.tree_util.keystr(p): n for p, n in jax.tree_util.tree_leaves_with_path(levels)}
    assert actual == expected
    assert set(actual.values()) == ({0, 1, 2} if name == "vgg19" else {0, 1, 2, 3})
