"""Every objective trains every encoder.

Forty networks would take many minutes to compile. An objective sees nothing of its encoder but
the last map, and gives nothing back but that map's gradient. So each encoder is compiled once,
forward and backward, and each objective once, for maps that are filled up with zeros to the width
of the widest; the chain rule does the rest. That objectives fit maps of every width is checked
without compiling.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infantxray.models import ENCODERS, create_encoder
from infantxray.stage_one.objectives import OBJECTIVES, ObjectiveSettings

SIDE, IMAGES = 32, 4
STEPS = 3
TWO_VIEWS = ("simsiam", "byol")
WIDEST = 2048  # Channels of a last map.


class Elsewhere(nn.Module):
    """For an encoder that runs outside: what it is shown is its statistic, its map a parameter."""

    width: int

    @nn.compact
    def __call__(self, image, *, train):
        self.variable("batch_stats", "shown", lambda: image).value = image
        shape = (IMAGES, SIDE // 32, SIDE // 32, self.width)
        return (None, None, None, self.param("last_map", nn.initializers.zeros_init(), shape))


def objective_loss(name, width):
    """Shapes of its variables, and variables, images, key -> mean loss and statistics."""
    settings = ObjectiveSettings(image_size=SIDE)
    objective = OBJECTIVES[name](Elsewhere(width), jnp.float32, settings)

    def loss(params, batch_stats, images, key):
        variables = {"params": params, "batch_stats": batch_stats}
        values, batch_stats = objective.loss(variables, images, key, train=True)
        return values.mean(), batch_stats

    image = jnp.zeros((IMAGES, SIDE, SIDE, 1))
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), image))
    return shapes, loss


@functools.cache
def compile_objective(name):
    """Its variables, and variables, images, key -> loss, gradient and statistics."""
    shapes, loss = objective_loss(name, WIDEST)
    return fill(shapes), jax.jit(jax.value_and_grad(loss, has_aux=True))


def compile_encoder(name):
    """Its variables, and two functions: the forward pass, and a step down a map's gradient."""
    encoder = create_encoder(name)
    image = jnp.zeros((IMAGES, SIDE, SIDE, 1))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, train=False))

    def forward(params, batch_stats, image):
        def last_map(params):
            maps, updated = encoder.apply(
                {"params": params, "batch_stats": batch_stats},
                image,
                train=True,
                mutable=["batch_stats"],
            )
            return maps[-1], updated.get("batch_stats", {})

        return jax.vjp(last_map, params, has_aux=True)

    def descend(params, pull_back, gradient):
        (gradient,) = pull_back(gradient)
        return jax.tree.map(lambda p, g: p - 1e-3 * jnp.sign(g), params, gradient)

    return (
        {"batch_stats": {}} | fill(shapes),
        jax.jit(forward),
        jax.jit(descend),
    )


def fill(shapes):
    """Random kernels; scales and variances of one, offsets and means of zero."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if len(shape.shape) > 1:
            fan_in = np.prod(shape.shape[:-1])
            return rng.normal(scale=(2 / fan_in) ** 0.5, size=shape.shape).astype(np.float32)
        return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(
    "encoder",
    [
        # Half a minute each to compile. Shapes and gradients of each are tested in tests/models.
        name if name == "resnet50" else pytest.param(name, marks=pytest.mark.slow)
        for name in ENCODERS
    ],
)
def test_every_objective_trains_every_encoder(encoder):
    start, forward, descend = compile_encoder(encoder)
    images = np.random.default_rng(1).uniform(size=(IMAGES, SIDE, SIDE, 1)).astype(np.float32)
    for name in OBJECTIVES:
        # Two views of each image: half as many images give the same shape.
        batch = images[: IMAGES // 2] if name in TWO_VIEWS else images
        head, step = compile_objective(name)
        params, batch_stats = start["params"], start["batch_stats"]
        for number in range(STEPS):
            key = jax.random.key(number)
            (_, stats), _ = step(head["params"], head["batch_stats"], batch, key)
            last_map, pull_back, batch_stats = forward(
                params, batch_stats, stats["encoder"]["shown"]
            )
            width = last_map.shape[-1]
            filled = np.pad(last_map, ((0, 0), (0, 0), (0, 0), (0, WIDEST - width)))
            answered = {**head["params"], "encoder": {"last_map": filled}}
            (loss, _), gradient = step(answered, head["batch_stats"], batch, key)
            gradient = gradient["encoder"]["last_map"][..., :width]
            assert np.isfinite(loss), f"{name}, step {number}"
            params = descend(params, pull_back, gradient)
        for kind, now in (("params", params), ("batch_stats", batch_stats)):
            for (path, before), after in zip(
                jax.tree_util.tree_leaves_with_path(start[kind]), jax.tree.leaves(now), strict=True
            ):
                after = np.asarray(after)
                assert np.isfinite(after).all(), f"{name}: {jax.tree_util.keystr(path)}"
                assert (after != before).any(), f"{name}: {jax.tree_util.keystr(path)} stays"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_fit_the_last_map_of_every_encoder(name):
    images = jax.ShapeDtypeStruct((IMAGES // (2 if name in TWO_VIEWS else 1), SIDE, SIDE, 1), "f4")
    for width in {create_encoder(encoder).num_features for encoder in ENCODERS}:
        shapes, loss = objective_loss(name, width)
        value, _ = jax.eval_shape(
            loss, shapes["params"], shapes["batch_stats"], images, jax.random.key(0)
        )
        assert value.shape == ()
