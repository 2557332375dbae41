"""`initialise` gives what `model.init` does, without its large program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_encoders import SMALL

from infantxray.models import Decoder
from infantxray.models.autoencoder import Autoencoder
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.heads import Siamese
from infantxray.models.initialisation import initialise

MODELS = {
    "autoencoder": Autoencoder(SMALL["resnext"], Decoder()),
    "diagnosis": DiagnosisModel(SMALL["vgg"], num_classes=3, age_film=True),
    "siamese": Siamese(SMALL["shufflenet"], features=16),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_init_to_the_last_bit(name):
    model, key = MODELS[name], jax.random.key(5)
    image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    actual = initialise(functools.partial(model.init, train=False), key, image)
    init = jax.jit(lambda key: model.init(key, jnp.zeros(image.shape), train=False))
    expected = init(key)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)


def test_refuses_parameters_that_depend_on_the_input():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.param("mean", lambda key: x.mean())

    with pytest.raises(ValueError, match="depend on its input"):
        initialise(Centred().init, jax.random.key(0), jnp.ones(3))
