"""The eight encoders keep one contract. That they learn is tested with the objectives."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from infantxray.models import ENCODERS, create_encoder
from infantxray.models.encoders import densenet, hrnet, mobilenet, resnet, shufflenet, vgg, xception

# Trainable parameters of the references without their classifiers, for RGB images.
RGB_PARAMETERS = {
    "vgg19": 20_024_384,
    "mobilenet_v2": 2_223_872,
    "shufflenet": 904_728,
    "xception": 20_806_952,
    "hrnet_w32": 39_183_680,
    "resnext50": 22_979_904,
    "densenet121": 6_953_856,
    "resnet50": 23_508_032,
}
# A grey image saves two of the three colours' weights in the first convolution.
STEM_WEIGHTS = {
    "vgg19": 3 * 3 * 64,
    "mobilenet_v2": 3 * 3 * 32,
    "shufflenet": 3 * 3 * 24,
    "xception": 3 * 3 * 32,
    "hrnet_w32": 3 * 3 * 64,
    "resnext50": 7 * 7 * 64,
    "densenet121": 7 * 7 * 64,
    "resnet50": 7 * 7 * 64,
}
LAST_FEATURES = {
    "vgg19": 512,
    "mobilenet_v2": 1280,
    "shufflenet": 960,
    "xception": 2048,
    "hrnet_w32": 2048,
    "resnext50": 2048,
    "densenet121": 1024,
    "resnet50": 2048,
}
# One network a family with as few layers as keep every kind of layer.
SMALL = {
    "vgg": vgg.VGG(stages=tuple(vgg.Stage(1, 8) for _ in range(5))),
    "mobilenet": mobilenet.MobileNetV2(
        stages=(
            mobilenet.Stage(1, 8, 1, 1),
            *(mobilenet.Stage(2, 8, 2, 2) for _ in range(4)),
        )
    ),
    "shufflenet": shufflenet.ShuffleNet(
        stages=(
            shufflenet.Stage("stage2", 2, 48),
            shufflenet.Stage("stage3", 1, 96),
            shufflenet.Stage("stage4", 1, 192),
        )
    ),
    "xception": xception.Xception(
        stages=(
            *(xception.Stage((16, 16), 2) for _ in range(3)),
            xception.Stage((16,), 1),
            xception.Stage((16, 16), 2),
        )
    ),
    "hrnet": hrnet.HRNet(
        stages=(hrnet.Stage(1, (4, 8)), hrnet.Stage(1, (4, 8, 8)), hrnet.Stage(1, (4, 8, 8, 8))),
        units=1,
    ),
    "resnext": resnet.ResNet(
        stages=tuple(
            resnet.Stage(f"conv{n}", 1, 16, strides)
            for n, strides in zip(range(2, 6), (1, 2, 2, 2), strict=True)
        ),
        groups=4,
        group_width=16,
    ),
    "densenet": densenet.DenseNet(blocks=(1, 1, 1, 1), growth_rate=8),
}


@lru_cache
def abstract_variables(encoder, channels, side=32):
    image = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    return jax.eval_shape(lambda image: encoder.init(jax.random.key(0), image, train=False), image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def names(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def make_step(encoder):
    """One step of SGD towards maps of mean one."""

    def loss(params, batch_stats, image):
        maps, updates = encoder.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
        )
        pooled = maps[-1].astype(jnp.float32).mean((1, 2))
        return ((pooled - 1) ** 2).mean(), updates.get("batch_stats", {})

    def step(params, batch_stats, image):
        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, batch_stats, image
        )
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
        return params, batch_stats, value, gradient

    return step


def test_registry_is_the_papers_table():
    assert set(ENCODERS) == set(RGB_PARAMETERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_parameter_counts(name):
    rgb = count(abstract_variables(create_encoder(name, 3), 3)["params"])
    grey = count(abstract_variables(create_encoder(name), 1)["params"])
    assert rgb == RGB_PARAMETERS[name]
    assert grey == RGB_PARAMETERS[name] - 2 * STEM_WEIGHTS[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_shapes_and_dtypes(name):
    """In bfloat16: the maps are, parameters and statistics stay float32."""
    encoder = create_encoder(name, dtype=jnp.bfloat16)
    maps, updates = jax.eval_shape(
        lambda variables, image: encoder.apply(
            variables, image, train=True, mutable=["batch_stats"]
        ),
        abstract_variables(encoder, 1),
        jax.ShapeDtypeStruct((2, 64, 96, 1), jnp.float32),
    )
    assert encoder.num_features == encoder.pyramid_features[-1] == LAST_FEATURES[name]
    assert [m.shape for m in maps] == [
        (2, 64 // stride, 96 // stride, features)
        for stride, features in zip((4, 8, 16, 32), encoder.pyramid_features, strict=True)
    ]
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    stay = jax.tree.leaves((abstract_variables(encoder, 1), updates))
    assert {leaf.dtype for leaf in stay} == {jnp.dtype("float32")}


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("family", SMALL)
def test_every_multiple_of_32_gives_whole_strides(family, side):
    encoder = SMALL[family]
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    maps = jax.eval_shape(
        lambda variables, image: encoder.apply(variables, image, train=False),
        abstract_variables(encoder, 1),
        image,
    )
    assert [m.shape[1:3] for m in maps] == [(side // s, side // s) for s in (4, 8, 16, 32)]


# HRNet is made of ResNet's layers, and takes as long to compile as all others.
@pytest.mark.parametrize(
    "family",
    [
        name if name in ("vgg", "resnet") else pytest.param(name, marks=pytest.mark.slow)
        for name in SMALL
        if name != "hrnet"
    ],
)
def test_one_and_four_devices_agree(family):
    encoder = SMALL[family]
    image = jax.random.normal(jax.random.key(0), (8, 32, 32, 1))
    variables = jax.jit(lambda key: encoder.init(key, image, train=False))(jax.random.key(1))
    results = []
    for devices in (1, 4):
        mesh = jax.make_mesh(
            (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
        )
        replicated, batch = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        step = jax.jit(
            make_step(encoder),
            in_shardings=(replicated, replicated, batch),
            out_shardings=replicated,
        )
        state = variables["params"], variables.get("batch_stats", {})
        *state, loss, _ = step(*state, jax.device_put(image, batch))
        results.append(jax.device_get((state, loss)))
    for one, four in zip(*map(jax.tree.leaves, results), strict=True):
        # By norm: a step amplifies rounding in single weights.
        assert np.linalg.norm(four - one) <= 1e-3 * np.linalg.norm(one) + 1e-4


def test_running_statistics_are_used_at_inference():
    encoder = SMALL["resnext"]
    image = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    variables = jax.jit(lambda key: encoder.init(key, image, train=False))(jax.random.key(1))
    last_map = jax.jit(lambda image: encoder.apply(variables, image, train=False)[-1])
    together, alone = last_map(image), last_map(image[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_encoder_is_a_submodule_of_that_name():
    class Model(nn.Module):
        encoder: nn.Module

        def __call__(self, image, *, train):
            return self.encoder(image, train=train)[-1]

    image = jnp.zeros((1, 32, 32, 1))
    variables = jax.eval_shape(
        lambda: Model(SMALL["densenet"]).init(jax.random.key(0), image, train=False)
    )
    alone = jax.eval_shape(lambda: SMALL["densenet"].init(jax.random.key(0), image, train=False))
    assert set(variables["params"]) == set(variables["batch_stats"]) == {"encoder"}
    assert names(variables["params"]["encoder"]) == names(alone["params"])


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'resnet18'.*vgg19.*resnet50"):
        create_encoder("resnet18")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 32, 32, 3), r"\(1, 32, 32, 3\).*\[B, H, W, 1\]"),
        ((32, 32, 1), r"\(32, 32, 1\).*\[B, H, W, 1\]"),
        ((1, 48, 64, 1), "48 x 64.*multiples of 32"),
    ],
)
@pytest.mark.parametrize("name", ENCODERS)
def test_wrong_images_are_refused(name, shape, message):
    encoder = create_encoder(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros(shape), train=False))
