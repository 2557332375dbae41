import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from infantxray.training.optimizer import (
    OptimizerSettings,
    create_optimizer,
    learning_rate_schedule,
)


def settings(**values):
    config = common.optimizer()
    config.update(values)
    return config


PARAMS = {
    "encoder": {"conv": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 2)), "norm": {"scale": jnp.ones(2)}},
}
ONES = jax.tree.map(jnp.ones_like, PARAMS)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def factors(encoder, head=1.0):
    return {
        "encoder": jax.tree.map(lambda _: encoder, PARAMS["encoder"]),
        "head": jax.tree.map(lambda _: head, PARAMS["head"]),
    }


def first_update(config, grads, *options):
    tx = create_optimizer(config, 10, *options)
    return tx.update(grads, tx.init(PARAMS), PARAMS)[0]


def test_schedule_warms_up_then_falls_to_zero_like_a_cosine():
    rate = learning_rate_schedule(settings(learning_rate=0.5, warmup_fraction=0.1), 100)
    values = np.array([float(rate(step)) for step in range(101)])
    np.testing.assert_allclose(values[:11], 0.05 * np.arange(11), rtol=1e-5)
    assert values.argmax() == 10
    half = 10 + 45
    assert values[half] == pytest.approx(0.25, rel=1e-4)
    assert values[100] == pytest.approx(0.0, abs=1e-7)
    assert (np.diff(values[10:]) < 0).all()


def test_factors_of_one_change_nothing():
    config = settings(warmup_fraction=0.0, weight_decay=0.1)
    for a, b in zip(
        *map(
            jax.tree.leaves, (first_update(config, ONES), first_update(config, ONES, factors(1.0)))
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.05), (1, 0.9), (3, 0.9), (50, 0.0)])
def test_short_runs_and_no_warm_up_have_a_finite_schedule(steps, warmup):
    rate = learning_rate_schedule(settings(learning_rate=1.0, warmup_fraction=warmup), steps)
    values = [float(rate(step)) for step in range(steps)]
    assert np.isfinite(values).all()
    assert min(values) >= 0
    if not warmup:
        assert values[0] == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_factor_of_zero_leaves_parameters_as_they_are(name):
    config = settings(name=name, warmup_fraction=0.0, weight_decay=0.1)
    update = first_update(config, ONES, factors(0.0))
    for leaf in jax.tree.leaves(update["encoder"]):
        np.testing.assert_array_equal(leaf, 0.0)
    for leaf in jax.tree.leaves(update["head"]):
        assert (np.asarray(leaf) < 0).all()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_factor_scales_the_updates_of_its_parameters_alone(name):
    config = settings(name=name, warmup_fraction=0.0)
    plain, scaled = (first_update(config, ONES, factors(f)) for f in (1.0, 0.1))
    for a, b in zip(*map(jax.tree.leaves, (plain["encoder"], scaled["encoder"])), strict=True):
        np.testing.assert_allclose(b, 0.1 * np.asarray(a), rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (plain["head"], scaled["head"])), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_is_decoupled_and_on_kernels_alone(name):
    config = settings(name=name, warmup_fraction=0.0, learning_rate=0.5, weight_decay=0.1)
    update = first_update(config, ZEROS)
    np.testing.assert_allclose(update["encoder"]["conv"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(update["head"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(update["encoder"]["conv"]["bias"], 0.0)
    np.testing.assert_array_equal(update["head"]["norm"]["scale"], 0.0)


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    config = settings(name="sgd", warmup_fraction=0.0, learning_rate=1.0, weight_decay=0.0)
    config.clip_norm = 1.0
    big = jax.tree.map(lambda x: 100.0 * x, ONES)
    clipped = first_update(config, big)
    # Nesterov: the first step is 1.9 times the gradient.
    assert float(optax.tree.norm(clipped)) == pytest.approx(1.9, rel=1e-5)
    config.clip_norm = 0.0
    free = first_update(config, big)
    np.testing.assert_allclose(free["head"]["kernel"], -190.0, rtol=1e-5)


def test_the_gradient_of_frozen_parameters_does_not_count_in_clipping():
    params = {"encoder": jnp.ones(4), "head": jnp.ones(4)}
    plain = OptimizerSettings(name="sgd", warmup_fraction=0.0, weight_decay=0.0, clip_norm=1.0)

    def updates(encoder, factor):
        tx = create_optimizer(plain, 10, {"encoder": factor, "head": 1.0})
        gradient = {"encoder": jnp.full(4, encoder), "head": jnp.full(4, 0.25)}
        return tx.update(gradient, tx.init(params), params)[0]

    expected = updates(0.0, 1.0)["head"]
    np.testing.assert_array_equal(updates(100.0, 0.0)["head"], expected)
    np.testing.assert_array_equal(updates(100.0, 0.0)["encoder"], 0.0)
    assert jnp.abs(updates(100.0, 0.5)["head"]).max() < 0.1 * jnp.abs(expected).max()
    states = [
        create_optimizer(plain, 10, {"encoder": factor, "head": 1.0}).init(params)
        for factor in (0.0, 1.0)
    ]
    assert type(states[0][0]) is type(states[1][0])  # Checkpoints of earlier versions fit.


def test_adamw_is_optax_adamw():
    config = settings(warmup_fraction=0.0, weight_decay=0.0, clip_norm=0.0)
    ours = create_optimizer(config, 10)
    reference = optax.adam(learning_rate_schedule(config, 10))
    params, other = PARAMS, PARAMS
    state, other_state = ours.init(params), reference.init(other)
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x * (i + 1)), params)
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, other_state = reference.update(grads, other_state, other)
        other = optax.apply_updates(other, updates)
    for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_minimum_of_a_bowl_is_found():
    for name in ("adamw", "sgd"):
        config = settings(name=name, learning_rate=0.05, weight_decay=0.0)
        tx = create_optimizer(config, 200)
        params = {"encoder": jnp.array([3.0]), "head": jnp.array([-2.0])}

        def step(carry, _, tx=tx):
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=200)
        assert max(abs(float(x[0])) for x in params.values()) < 0.1, name
