"""The decoder rebuilds an image from the last map alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infantxray.models import Decoder


@pytest.mark.parametrize("features", [512, 960, 2048])
@pytest.mark.parametrize("out_channels", [1, 3])
def test_restores_the_resolution(features, out_channels):
    decoder = Decoder(out_channels, dtype=jnp.bfloat16)
    latent = jax.ShapeDtypeStruct((2, 2, 3, features), jnp.bfloat16)
    image, variables = jax.eval_shape(
        lambda latent: decoder.init_with_output(jax.random.key(0), latent, train=False), latent
    )
    assert image.shape == (2, 64, 96, out_channels)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_starts_near_zero_and_learns():
    decoder = Decoder()
    latent = jax.random.uniform(jax.random.key(0), (4, 1, 1, 64))
    rows = jnp.linspace(-1, 1, 32)[None, :, None, None]
    target = rows * jnp.array([1.0, -1.0, 0.5, -0.5])[:, None, None, None]
    target = jnp.broadcast_to(target, (4, 32, 32, 1))
    variables = decoder.init(jax.random.key(1), latent, train=True)
    optimizer = optax.adam(3e-3)

    def loss(params, batch_stats):
        image, updates = decoder.apply(
            {"params": params, "batch_stats": batch_stats},
            latent,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.abs(image - target).mean(), (updates["batch_stats"], image)

    @jax.jit
    def step(params, batch_stats, moments):
        (value, (batch_stats, image)), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, batch_stats
        )
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), batch_stats, moments, value, image

    params, batch_stats = variables["params"], variables["batch_stats"]
    moments = optimizer.init(params)
    values = []
    for number in range(60):
        params, batch_stats, moments, value, image = step(params, batch_stats, moments)
        values.append(float(value))
        if number == 0:
            assert np.abs(image).max() < 0.5
    assert values[-1] < 0.3 * values[0]
