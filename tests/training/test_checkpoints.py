import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infantxray.training import checkpoints
from infantxray.training.checkpoints import CheckpointError, Checkpoints, restore_variables
from infantxray.training.state import TrainState


def variables(value=1.0, width=3, head="decoder"):
    return {
        "params": {
            "encoder": {"conv": {"kernel": jnp.full((2, width), value)}},
            head: {"kernel": jnp.full((4,), value)},
        },
        "batch_stats": {"encoder": {"norm": {"mean": jnp.full((width,), value / 2)}}},
    }


def save(folder, value=1.0, step=5, ema=False, **options):
    state = TrainState.create(variables(value, **options), optax.adam(0.1), ema=ema)
    if ema:
        state = state.replace(ema_params=jax.tree.map(lambda x: 10 * x, state.params))
    manager = Checkpoints(str(folder))
    manager.save(step, state, {"best_step": 0, "finished": False, "data": {"next_index": step}})
    manager.close()
    return state


def test_state_and_progress_come_back_as_they_were(tmp_path):
    state = save(tmp_path, 0.1)
    manager = Checkpoints(str(tmp_path))
    assert manager.latest_step == 5
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[2])
        ),
        state,
    )
    restored, progress = manager.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    # On other devices than it was saved from.
    assert all(leaf.devices() == {jax.devices()[2]} for leaf in jax.tree.leaves(restored))
    assert progress == {"best_step": 0, "finished": False, "data": {"next_index": 5}}
    manager.close()


def test_saving_an_old_step_is_an_error_and_not_silence(tmp_path):
    state = save(tmp_path)
    manager = Checkpoints(str(tmp_path))
    with pytest.raises(RuntimeError, match="Checkpoint 3 was not written"):
        manager.save(3, state, {"best_step": 0})
    manager.close()


def test_folders_without_checkpoints(tmp_path):
    assert checkpoints.checkpoint_steps(str(tmp_path)) == []
    assert checkpoints.read_progress(str(tmp_path)) == {}
    assert not checkpoints.is_finished(str(tmp_path))


def test_what_an_interrupted_save_leaves_is_no_checkpoint(tmp_path):
    save(tmp_path)
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.checkpoint_steps(str(tmp_path)) == [5]
    assert Checkpoints(str(tmp_path)).latest_step == 5


def test_home_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "run")
    assert checkpoints.checkpoint_steps("~/run") == [5]
    assert checkpoints.read_progress("~/run")["data"] == {"next_index": 5}


def test_everything_is_restored(tmp_path):
    save(tmp_path, 0.25)
    fresh = variables(7.0)
    restored, report = restore_variables(str(tmp_path), 5, fresh)
    jax.tree.map(np.testing.assert_array_equal, restored, variables(0.25))
    assert len(report.restored) == 3
    assert (report.new, report.left_over) == ((), ())


def test_abstract_variables_will_do(tmp_path):
    save(tmp_path, 0.25)
    abstract = jax.eval_shape(lambda: variables(0.0))
    restored, _ = restore_variables(str(tmp_path), 5, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, variables(0.25))


def test_the_encoder_alone_moves_into_another_model_with_a_report(tmp_path):
    """Parameters and running statistics: without these the encoder would be another function."""
    save(tmp_path, 0.25)
    fresh = variables(7.0, head="condition_head")
    restored, report = restore_variables(str(tmp_path), 5, fresh, only="encoder")
    np.testing.assert_array_equal(restored["params"]["encoder"]["conv"]["kernel"], 0.25)
    np.testing.assert_array_equal(restored["batch_stats"]["encoder"]["norm"]["mean"], 0.125)
    np.testing.assert_array_equal(restored["params"]["condition_head"]["kernel"], 7.0)
    assert set(report.restored) == {
        "params/encoder/conv/kernel",
        "batch_stats/encoder/norm/mean",
    }
    assert report.new == ("params/condition_head/kernel",)
    assert report.left_over == ("params/decoder/kernel",)
    text = str(report)
    assert "restored 2 (batch_stats/encoder, params/encoder)" in text
    assert "new 1 (params/condition_head)" in text
    assert "left over 1 (params/decoder)" in text


def test_another_width_names_the_array_and_both_shapes(tmp_path):
    save(tmp_path, width=3)
    with pytest.raises(CheckpointError) as caught:
        restore_variables(str(tmp_path), 5, variables(width=8), only="encoder")
    message = str(caught.value)
    assert "encoder/" in message
    assert "checkpoint (2, 3) vs model (2, 8)" in message or (
        "checkpoint (3,) vs model (8,)" in message
    )
    assert "and 1 more" in message
    assert "config.encoder" in message


def test_another_network_names_what_is_missing(tmp_path):
    save(tmp_path)
    other = variables()
    other["params"]["encoder"] = {"block9": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(CheckpointError, match=r"params/encoder/block9/kernel is not in"):
        restore_variables(str(tmp_path), 5, other, only="encoder")


def test_the_moving_average_is_what_is_restored(tmp_path):
    save(tmp_path, 0.5, ema=True)
    for only in ("", "encoder"):
        restored, report = restore_variables(str(tmp_path), 5, variables(7.0), only=only)
        np.testing.assert_array_equal(restored["params"]["encoder"]["conv"]["kernel"], 5.0)
        np.testing.assert_array_equal(restored["batch_stats"]["encoder"]["norm"]["mean"], 0.25)
        assert not any("ema" in name for name in report.restored + report.left_over)


def test_a_network_without_statistics(tmp_path):
    plain = {"params": variables()["params"], "batch_stats": {}}
    state = TrainState.create(plain, optax.sgd(0.1), ema=False)
    manager = Checkpoints(str(tmp_path))
    manager.save(1, state, {"best_step": 0})
    manager.close()
    restored, _ = restore_variables(str(tmp_path), 1, plain)
    assert restored["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, restored["params"], plain["params"])


def test_a_checkpoint_that_is_not_there(tmp_path):
    save(tmp_path)
    with pytest.raises(CheckpointError, match=r"no readable checkpoint in .*77"):
        restore_variables(str(tmp_path), 77, variables())
