"""The pyramid level of each parameter, for learning rates that fall with depth."""

import jax
import jax.numpy as jnp
import pytest

from infantxray.models import ENCODERS, create_encoder
from infantxray.models.depth import pyramid_level
from infantxray.models.encoders import vgg


def abstract_params(encoder):
    image = jnp.zeros((1, 32, 32, 1))
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=False))["params"]


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


def test_stages_of_resnet():
    params = abstract_params(create_encoder("resnet50"))
    levels = pyramid_level(create_encoder("resnet50"), params)
    for name, subtree in levels.items():
        stage = int(name[4]) if name.startswith("conv") else 1
        assert set(jax.tree.leaves(subtree)) == {max(stage - 2, 0)}, name


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_of_every_encoder_has_a_level(name):
    encoder = create_encoder(name)
    params = abstract_params(encoder)
    levels = pyramid_level(encoder, params)
    assert jax.tree.structure(levels) == jax.tree.structure(params)
    found = set(jax.tree.leaves(levels))
    assert found == ({0, 1, 2} if name == "vgg19" else {0, 1, 2, 3})
