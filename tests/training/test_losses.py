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


def test_soft_labels_that_are_certain_are_labels():
    logits = jnp.array([[0.3, -0.2, 1.0], [2.0, 0.0, -1.0]])
    label = jnp.array([2, 1])
    np.testing.assert_allclose(
        losses.soft_cross_entropy(logits, jax.nn.one_hot(label, 3)),
        losses.cross_entropy(logits, label),
        rtol=1e-6,
    )
    target = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        losses.soft_cross_entropy(logits, target), -(target * np.log(p)).sum(1), rtol=1e-5
    )


class TestAgeDistribution:
    BINS = jnp.linspace(-2.0, 2.0, 21)

    def value(self, logits, target):
        mean = jax.nn.softmax(logits) @ self.BINS
        return losses.age_distribution(logits, mean, target, self.BINS)

    def test_against_numpy(self):
        logits = np.random.default_rng(0).normal(size=(2, 21)).astype(np.float32)
        target = np.array([0.3, -1.7], np.float32)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        q = np.exp(-(((np.asarray(self.BINS) - target[:, None]) / 0.2) ** 2) / 2) + 1e-30
        q /= q.sum(1, keepdims=True)
        expected = (q * np.log(q / p)).sum(1) + np.abs(p @ np.asarray(self.BINS) - target)
        np.testing.assert_allclose(self.value(logits, target), expected, rtol=1e-4)

    def test_the_true_distribution_costs_nothing_and_others_more(self):
        target = jnp.array([0.4])
        exact = -(((self.BINS[None] - target[:, None]) / 0.2) ** 2) / 2
        assert float(self.value(exact, target)[0]) == pytest.approx(0.0, abs=1e-4)
        assert float(self.value(exact, target + 0.2)[0]) > 0.3

    def test_unknown_ages_cost_nothing_and_teach_nothing(self):
        logits, target = jnp.ones((2, 21)), jnp.array([jnp.nan, 0.5])
        gradient = jax.grad(lambda x: self.value(x, target).sum())(logits)
        assert self.value(logits, target)[0] == 0
        np.testing.assert_array_equal(gradient[0], 0.0)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[1]).max() > 0


def test_learned_weights_are_the_slopes_of_the_weighted_loss():
    log_variance = {"cross_entropy": jnp.asarray(0.7), "age_mse": jnp.asarray(-0.4)}

    def total(terms):
        return sum(x.sum() for x in losses.weigh_by_uncertainty(terms, log_variance).values())

    slopes = jax.grad(total)({name: jnp.ones(1) for name in log_variance})
    weights = losses.uncertainty_weights(log_variance)
    for name, weight in weights.items():
        assert float(slopes[name][0]) == pytest.approx(float(weight))
    assert float(weights["age_mse"]) == pytest.approx(0.5 * np.exp(0.4))


def test_learned_weights_settle_where_the_noise_is():
    """At the minimum a regression's variance is its mean squared error."""
    terms = {"cross_entropy": jnp.array([0.2, 0.4]), "age_mse": jnp.array([4.0, 2.0])}

    def total(log_variance):
        return sum(v.mean() for v in losses.weigh_by_uncertainty(terms, log_variance).values())

    at_minimum = {"cross_entropy": jnp.log(2 * 0.3), "age_mse": jnp.log(3.0)}
    gradient = jax.grad(total)(at_minimum)
    np.testing.assert_allclose(list(gradient.values()), 0.0, atol=1e-6)
    plain = losses.weigh_by_uncertainty(terms, {name: jnp.zeros(()) for name in terms})
    np.testing.assert_allclose(plain["cross_entropy"], terms["cross_entropy"])
    np.testing.assert_allclose(plain["age_mse"], terms["age_mse"] / 2)


@pytest.mark.parametrize(
    ("loss", "a", "b"),
    [
        (losses.l1, (2, 4, 4, 1), (2, 4, 4, 3)),
        (losses.l1, (2, 4, 4, 1), (2, 4, 4)),
        (losses.squared_error, (4, 1), (4,)),
        (losses.squared_error, (4,), (1,)),
        (losses.cross_entropy, (4, 3), (4, 1)),
        (losses.cross_entropy, (4, 3), (5,)),
        (losses.soft_cross_entropy, (4, 3), (4, 1)),
    ],
)
def test_shapes_that_would_broadcast_are_refused_with_both_sides(loss, a, b):
    target = jnp.zeros(b, jnp.int32 if loss is losses.cross_entropy else jnp.float32)
    with pytest.raises(ValueError, match="Shape mismatch") as caught:
        loss(jnp.zeros(a), target)
    assert str(b) in str(caught.value)
