"""Objectives that share an encoder: weighted sums, separate heads and separate statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infantxray.stage_one import joint
from infantxray.training.train_step import Task


def toy(name, factor):
    """A task whose loss is `factor * (encoder . head - mean of the image)`; it counts its calls."""

    def init(key):
        return {
            "params": {"encoder": jnp.ones(3) * factor, "head": jnp.arange(3.0) + factor},
            "batch_stats": {"encoder": jnp.zeros(()), "norm": jnp.zeros(())},
        }

    def losses(params, stats, batch, key):
        value = factor * (params["encoder"] @ params["head"] - batch["image"].mean((1, 2, 3)))
        return {name: value}, {k: v + factor for k, v in stats.items()}

    return Task(
        init=init,
        weights=lambda batch: {name: batch["mask"] * factor},
        losses=losses,
        coefficients={name: 1.0},
        evaluate=lambda variables: {name: float(variables["params"]["head"][0])},
    )


TASKS = {"a": toy("a", 2.0), "b": toy("b", 5.0)}
BATCH = {"image": np.ones((2, 4, 4, 1), np.float32), "mask": np.ones(2, np.float32)}


@pytest.fixture
def both():
    return joint.join(TASKS, {"a": 1.0, "b": 0.5})


def test_one_objective_is_itself():
    assert joint.join({"a": TASKS["a"]}, {"a": 7.0}) is TASKS["a"]


def test_the_encoder_is_shared_and_the_rest_is_apart(both):
    params = both.init(jax.random.key(0))["params"]
    np.testing.assert_array_equal(params["encoder"], 2 * np.ones(3))
    np.testing.assert_array_equal(params["a"]["head"], np.arange(3) + 2)
    np.testing.assert_array_equal(params["b"]["head"], np.arange(3) + 5)
    assert both.coefficients == {"a": 1.0, "b": 0.5}
    assert both.weights(BATCH)["b"].tolist() == [5, 5]


def test_the_gradient_is_the_weighted_sum(both):
    variables = both.init(jax.random.key(0))

    def mean(params):
        values, _ = both.losses(params, variables["batch_stats"], BATCH, jax.random.key(0))
        return sum(both.coefficients[name] * value.mean() for name, value in values.items())

    gradient = jax.grad(mean)(variables["params"])
    expected = 2 * (np.arange(3) + 2) + 0.5 * 5 * (np.arange(3) + 5)
    np.testing.assert_allclose(gradient["encoder"], expected)
    np.testing.assert_allclose(gradient["b"]["head"], 0.5 * 5 * 2 * np.ones(3))


def test_statistics_are_kept_apart_and_those_of_the_encoder_are_the_first_objectives(both):
    variables = both.init(jax.random.key(0))
    stats = variables["batch_stats"]
    for _ in range(2):
        _, stats = both.losses(variables["params"], stats, BATCH, jax.random.key(0))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    assert (float(stats["encoder"]), float(stats["a"]["norm"])) == (4, 4)
    assert (float(stats["b"]["encoder"]), float(stats["b"]["norm"])) == (10, 10)


def test_an_encoder_without_statistics_has_none_in_the_joint_task():
    """As VGG19."""

    def without(task):
        def init(key):
            variables = task.init(key)
            return {"params": variables["params"], "batch_stats": {}}

        return Task(init, task.weights, task.losses, task.coefficients, task.evaluate)

    both = joint.join({n: without(t) for n, t in TASKS.items()}, {"a": 1.0, "b": 1.0})
    variables = both.init(jax.random.key(0))
    assert variables["batch_stats"] == {}
    values, stats = both.losses(variables["params"], {}, BATCH, jax.random.key(0))
    assert stats == {}
    assert set(values) == {"a", "b"}


def test_metrics_are_those_of_each_and_their_weighted_sum(both):
    found = both.evaluate(both.init(jax.random.key(0)))
    assert found == {"a": 2.0, "b": 5.0, "a+b": 4.5}


def test_panels_have_one_size(both):
    class Fake:
        def __init__(self, times):
            self.times = times

        def panels(self, variables, image):
            assert "head" in variables["params"]
            return (joint.repeat_pixels(image, self.times),)

    variables = both.init(jax.random.key(0))
    image = jnp.ones((2, 4, 4, 1))
    drawn = joint.panels({"a": Fake(2), "b": Fake(3)}, variables, image, ("a", "b"))
    assert [picture.shape for picture in drawn] == [(2, 24, 24, 1)] * 2


def test_what_changes_once_a_step_changes_in_each_task():
    def moved(params, stats):
        return {**stats, "norm": stats["norm"] + params["head"][1]}

    tasks = {**TASKS, "b": dataclasses.replace(TASKS["b"], after_step=moved)}
    both = joint.join(tasks, {"a": 1.0, "b": 0.5})
    variables = both.init(jax.random.key(0))
    before, found = variables["batch_stats"], both.after_step(**variables)
    assert found["b"]["norm"] == before["b"]["norm"] + 6
    found["b"] = before["b"]
    jax.tree.map(np.testing.assert_array_equal, found, before)
