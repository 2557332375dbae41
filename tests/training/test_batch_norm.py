"""BatchNorm statistics of images without augmentation, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.decode import Preprocessing
from data_pipeline.loader import ImageSource
from data_pipeline.phantom import open_phantom
from infantxray.models.encoders.layers import BatchNorm
from infantxray.training.batch_norm import PreciseStatistics
from infantxray.training.sharding import DataParallel

SIDE = 32


class TwoLayers(nn.Module):
    """The second statistics depend on the first layer's parameters and batches."""

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        return BatchNorm(use_running_average=not train)(x)


MODEL = TwoLayers()


def forward(params, batch_stats, batch):
    image = batch["image"].astype(jnp.float32) / 255
    variables = {"params": params, "batch_stats": batch_stats}
    return MODEL.apply(variables, image, train=True, mutable=["batch_stats"])[1]["batch_stats"]


@pytest.fixture(scope="module")
def source():
    records = open_phantom("infant:films=30").take(np.arange(22))
    return ImageSource(records, (), Preprocessing(SIDE), memory_mb=1)


def test_means_over_whole_batches(source):
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)), train=True)
    # Whatever the running statistics were.
    variables["batch_stats"] = jax.tree.map(lambda x: x + 7, variables["batch_stats"])
    statistics = PreciseStatistics(forward, source, batch_size=8, num_threads=1)
    found = jax.device_get(statistics(variables))

    images = source.read_batch(np.arange(16))["image"].astype(np.float64).reshape(2, 8, -1) / 255
    first = found["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], images.mean(2).mean(), rtol=1e-4)
    np.testing.assert_allclose(first["var"], images.reshape(2, -1).var(1).mean(), rtol=1e-4)
    # A training step that starts from them keeps them, if its batches are those.
    batches = [source.read_batch(np.arange(k, k + 8)) for k in (0, 8)]
    steps = [forward(variables["params"], found, {"image": b["image"]}) for b in batches]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *steps)
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_one_and_four_devices_agree(source, monkeypatch):
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)), train=True)
    four = PreciseStatistics(forward, source, batch_size=8, num_threads=1)(variables)
    devices = DataParallel().devices[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    one = PreciseStatistics(forward, source, batch_size=8, num_threads=1)(variables)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_fewer_images_than_a_batch_are_repeated(source):
    """A student of a dozen images is evaluated with their statistics, too."""
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)), train=True)
    few = ImageSource(source.records.take(np.arange(4)), (), Preprocessing(SIDE))
    found = PreciseStatistics(forward, few, batch_size=16, num_threads=1)(variables)
    expected = PreciseStatistics(forward, few, batch_size=4, num_threads=1)(variables)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_without_images_the_running_statistics_remain(source):
    variables = MODEL.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)), train=True)
    nothing = ImageSource(source.records.take(np.arange(0)), (), Preprocessing(SIDE))
    statistics = PreciseStatistics(forward, nothing, batch_size=8, num_threads=1)
    assert statistics(variables) is variables["batch_stats"]
