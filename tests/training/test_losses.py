import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infantxray.training import losses


def test_l1_is_the_mean_of_each_image():
    prediction = jnp.zeros((2, 2, 2, 1))
    target = jnp.stack([jnp.full((2, 2, 1), 0.5), jnp.array([[[1.0], [0.0]], [[0.0], [0.0]]])])
    np.testing.assert_allclose(losses.l1(prediction, target), [0.5, 0.25])
    np.testing.assert_allclose(losses.l1(target, prediction), [0.5, 0.25])


def test_cross_entropy_values():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])) + 5.0
    value = losses.cross_entropy(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(value, -np.log([0.7, 0.1]), rtol=1e-5)
    np.testing.assert_allclose(
        losses.cross_entropy(jnp.zeros((1, 11)), jnp.array([4])), np.log(11), rtol=1e-6
    )


def test_unknown_labels_are_finite_with_finite_gradient():
    logits = jnp.array([[0.3, -0.2], [40.0, -40.0]])
    label = jnp.array([-1, -1])
    assert np.isfinite(losses.cross_entropy(logits, label)).all()
    gradient = jax.grad(lambda x: (losses.cross_entropy(x, label) * jnp.zeros(2)).sum())(logits)
    np.testing.assert_array_equal(gradient, 0.0)


def test_squared_error_values():
    value = losses.squared_error(jnp.array([1.0, -1.0]), jnp.array([3.0, -1.0]))
    np.testing.assert_array_equal(value, [4.0, 0.0])


def test_unknown_ages_cost_nothing_and_teach_nothing():
    prediction, target = jnp.array([1.0, 2.0]), jnp.array([jnp.nan, 0.5])
    value = losses.squared_error(prediction, target)
    np.testing.assert_array_equal(value, [0.0, 2.25])
    gradient = jax.grad(lambda x: losses.squared_error(x, target).sum())(prediction)
    np.testing.assert_array_equal(gradient, [0.0, 3.0])


@pytest.mark.parametrize(
    ("loss", "a", "b"),
    [
        (losses.l1, (2, 4, 4, 1), (2, 4, 4, 3)),
        (losses.l1, (2, 4, 4, 1), (2, 4, 4)),
        (losses.squared_error, (4, 1), (4,)),
        (losses.squared_error, (4,), (1,)),
        (losses.cross_entropy, (4, 3), (4, 1)),
        (losses.cross_entropy, (4, 3), (5,)),
    ],
)
def test_shapes_that_would_broadcast_are_refused_with_both_sides(loss, a, b):
    target = jnp.zeros(b, jnp.int32 if loss is losses.cross_entropy else jnp.float32)
    with pytest.raises(ValueError, match="Shape mismatch") as caught:
        loss(jnp.zeros(a), target)
    assert str(b) in str(caught.value)
