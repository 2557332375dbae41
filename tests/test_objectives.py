import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import pretrain
from infantxray.objectives import OBJECTIVES
from infantxray.training.augment import MEAN

SIDE = 32


class Encoder(nn.Module):
    """As small as an encoder can be."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(64, (32, 32), (32, 32), dtype=self.dtype, name="conv")(image)
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return (None, None, None, nn.relu(x))


def build(name, encoder=None, dtype=jnp.float32, image_size=SIDE):
    config = pretrain.get_config()
    config.data.image_size = image_size
    return OBJECTIVES[name](encoder or Encoder(dtype=dtype), dtype, config)


@functools.cache
def create(name):
    """An objective and fresh variables."""
    objective = build(name)
    image = jnp.zeros((1, SIDE, SIDE, 1))
    init = jax.jit(lambda key: objective.model.init(key, image, train=False))
    return objective, jax.device_get(init(jax.random.key(0)))


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def created(request):
    return create(request.param)


@pytest.fixture(scope="module")
def objective(created):
    return created[0]


@pytest.fixture(scope="module")
def variables(created):
    return created[1]


@pytest.fixture(scope="module")
def images():
    """Films of different brightness, with a gradient each."""
    ramp = np.linspace(0, 0.4, SIDE)[None, :, None, None]
    level = np.array([0.1, 0.3, 0.5, 0.6])[:, None, None, None]
    return np.broadcast_to(level + ramp, (4, SIDE, SIDE, 1)).astype(np.float32)


@functools.cache
def compiled(objective, train):
    return jax.jit(lambda v, x, k: objective.loss(v, x, k, train=train))


def loss(objective, variables, images, key=0, train=True):
    return jax.device_get(compiled(objective, train)(variables, images, jax.random.key(key)))


def test_contract(objective, variables, images):
    """What stage one and stage two rely on, for every objective."""
    assert set(variables) == {"params", "batch_stats"}
    assert "encoder" in variables["params"]
    assert "encoder" in variables["batch_stats"]
    values, batch_stats = loss(objective, variables, images)
    assert values.shape == (4,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert jax.tree.structure(batch_stats) == jax.tree.structure(variables["batch_stats"])
    assert objective.name
    pictures = jax.device_get(jax.jit(objective.panels)(variables, images))
    assert len(pictures) == len(objective.panel_names)
    times = pictures[0].shape[1] // SIDE
    for picture in pictures:
        assert picture.shape == (4, times * SIDE, times * SIDE, 1)
        assert picture.min() >= 0.0
        assert picture.max() <= 1.0


def test_statistics_move_in_training_alone(objective, variables, images):
    _, moved = loss(objective, variables, images)
    _, kept = loss(objective, variables, images, train=False)
    before = variables["batch_stats"]
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, before)
    assert difference["encoder"]["norm"]["mean"] > 0
    jax.tree.map(np.testing.assert_array_equal, kept, before)


def test_in_evaluation_a_film_is_judged_alone(objective, variables, images):
    together = loss(objective, variables, images, train=False)[0]
    for i in range(4):
        alone = loss(objective, variables, np.repeat(images[i : i + 1], 4, axis=0), train=False)[0]
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-4)


def test_every_parameter_learns(objective, variables, images):
    def mean(params):
        values, _ = objective.loss({**variables, "params": params}, images, jax.random.key(0),
                                   train=True)  # fmt: skip
        return values.mean()

    # At the very start the last layer is almost zero: one step wakes up what is before it.
    params = variables["params"]
    tx = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(mean)(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), (value, grads)

    _, (values, grads) = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=40))(params)
    assert values[-5:].mean() < 0.6 * values[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_bfloat16_gives_float32_losses(name, images):
    objective = build(name, dtype=jnp.bfloat16)

    def run(image, key):
        variables = objective.model.init(key, image, train=False)
        return variables, objective.loss(variables, image, key, train=True)

    for leaf in jax.tree.leaves(jax.eval_shape(run, images, jax.random.key(0))):
        assert leaf.dtype == jnp.float32


class TestL1:
    @pytest.fixture
    def fresh(self):
        objective, variables = create("l1")
        params = variables["params"]
        # A decoder that says zero: the grey level that normalisation takes for the middle.
        silent = jax.tree.map(np.zeros_like, params["decoder"]["output"])
        decoder = params["decoder"] | {"output": silent}
        return objective, variables | {"params": params | {"decoder": decoder}}

    def test_units_are_the_full_intensity_range(self, fresh, images):
        objective, variables = fresh
        values, _ = loss(objective, variables, images)
        np.testing.assert_allclose(values, np.abs(images - MEAN).mean(axis=(1, 2, 3)), rtol=1e-4)

    def test_panels_are_input_reconstruction_difference(self, fresh, images):
        objective, variables = fresh
        shown, reconstruction, difference = jax.jit(objective.panels)(variables, images)
        np.testing.assert_array_equal(shown, images)
        np.testing.assert_allclose(reconstruction, MEAN, rtol=1e-5)
        np.testing.assert_allclose(difference, np.abs(images - MEAN), rtol=1e-4, atol=1e-6)

    def test_the_loss_is_not_random(self, fresh, images):
        np.testing.assert_array_equal(
            loss(*fresh, images, key=0)[0], loss(*fresh, images, key=1)[0]
        )
