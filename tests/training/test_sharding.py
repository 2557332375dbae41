import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from infantxray.training.sharding import DataParallel


def test_batches_are_divided_and_the_rest_is_everywhere():
    sharding = DataParallel()
    assert sharding.num_devices == 4
    batch = sharding.put({"x": np.arange(8.0), "image": np.zeros((8, 2, 2, 1), np.uint8)})
    pieces = {s.device: s.data for s in batch["x"].addressable_shards}
    assert len(pieces) == 4
    assert sorted(np.concatenate(list(pieces.values())).tolist()) == list(range(8))
    assert batch["image"].addressable_shards[0].data.shape == (2, 2, 2, 1)
    everywhere = jax.device_put(np.arange(3.0), sharding.replicated)
    assert [s.data.shape for s in everywhere.addressable_shards] == [(3,)] * 4
    micro = jax.device_put(np.zeros((5, 8)), sharding.micro_batches)
    assert micro.addressable_shards[0].data.shape == (5, 2)


def test_devices_can_be_chosen():
    assert DataParallel(jax.devices()[:1]).num_devices == 1
    assert DataParallel(jax.devices()[:2]).devices == jax.devices()[:2]


def test_batch_sizes_that_cannot_be_shared_are_refused_with_the_numbers():
    sharding = DataParallel()
    sharding.check_batch_size(8, 2)
    with pytest.raises(UserError, match=r"batch_size \(6\).*4 devices"):
        sharding.check_batch_size(6)
    with pytest.raises(UserError, match=r"batch_size \(12\).*accumulate_steps \(2\)"):
        sharding.check_batch_size(12, 2)


def test_evaluation_batches_are_rounded_up():
    sharding = DataParallel()
    assert [sharding.evaluation_batch_size(n) for n in (1, 4, 5, 32)] == [4, 4, 8, 32]
    assert DataParallel(jax.devices()[:1]).evaluation_batch_size(5) == 5
