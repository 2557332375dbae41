import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xxhash

from infantxray.training import checkpoints
from infantxray.training.checkpoints import CheckpointError, Checkpoints
from infantxray.training.partial_restore import restore_variables
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


def save_steps(folder, *steps, best=0, finished=False):
    """Checkpoints of a run; the parameters are the number of the step."""
    manager = Checkpoints(str(folder))
    for step in steps:
        state = TrainState.create(variables(float(step)), optax.adam(0.1), ema=False)
        progress = {"best_step": best, "finished": finished, "data": {"next_index": step}}
        manager.save(step, state, progress)
    manager.close()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        state,
    )


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(bytes(content))


class TestDamage:
    def test_two_checkpoints_are_kept(self, tmp_path):
        save_steps(tmp_path, 1, 2, 3, best=3)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [2, 3]
        save_steps(tmp_path, 4, 5, best=3)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [3, 5]

    def test_digests_are_those_of_xxhsum(self, tmp_path):
        save_steps(tmp_path, 1)
        folder = tmp_path / "checkpoints" / "1"
        lines = (folder / checkpoints.DIGESTS).read_text().splitlines()
        listed = dict(reversed(line.split("  ")) for line in lines)
        assert {"state/_METADATA", "state/manifest.ocdbt", "progress/metadata"} <= listed.keys()
        for name, digest in listed.items():
            assert xxhash.xxh3_128((folder / name).read_bytes()).hexdigest() == digest

    def test_a_changed_bit_in_any_file_is_noticed_and_named(self, tmp_path):
        abstract = save_steps(tmp_path, 1, 2)
        folder = tmp_path / "checkpoints" / "2"
        names = [line.split("  ")[1] for line in (folder / "digests.xxh128").read_text().split("\n")
                 if line]  # fmt: skip
        assert len(names) > 8
        for name in names:
            flip(folder / name)
            with pytest.raises(CheckpointError) as caught:
                restore_variables(str(tmp_path), 2, variables())
            assert str(folder / name) in str(caught.value)
            assert "--config.resume=last_good" in str(caught.value)
            assert "the newest whole checkpoint is step 1" in str(caught.value)
            manager = Checkpoints(str(tmp_path))
            with pytest.raises(CheckpointError, match="checkpoint 2 is damaged"):
                manager.restore(abstract)
            manager.close()
            flip(folder / name)
        restored, _ = restore_variables(str(tmp_path), 2, variables())
        np.testing.assert_array_equal(restored["params"]["encoder"]["conv"]["kernel"], 2.0)

    @pytest.mark.parametrize(
        "what", ["state", "progress", "everything", "array", "json", "digests"]
    )
    def test_an_incomplete_checkpoint_is_set_aside_only_on_demand(self, tmp_path, what, caplog):
        abstract = save_steps(tmp_path, 1, 2)
        folder = tmp_path / "checkpoints" / "2"
        if what in ("state", "progress"):
            shutil.rmtree(folder / what)
        elif what == "everything":
            shutil.rmtree(folder)
            folder.mkdir()
        elif what == "array":
            largest = max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-20])
        elif what == "json":
            (folder / "progress" / "metadata").write_text('{"best_st')
        else:
            (folder / checkpoints.DIGESTS).write_bytes(b"\xff\n")
        manager = Checkpoints(str(tmp_path))
        with pytest.raises(CheckpointError) as caught:
            manager.restore(abstract)
        manager.close()
        message = str(caught.value)
        assert str(folder) in message
        assert "the newest whole checkpoint is step 1" in message
        checkpoints.set_aside_damaged(str(tmp_path))
        assert "continuing from the checkpoint of step 1" in caplog.text
        assert (tmp_path / "checkpoints" / "2.damaged").is_dir()
        assert checkpoints.read_progress(str(tmp_path))["data"] == {"next_index": 1}
        manager = Checkpoints(str(tmp_path))
        state, _ = manager.restore(abstract)
        np.testing.assert_array_equal(state.params["encoder"]["conv"]["kernel"], 1.0)
        manager.close()
        save_steps(tmp_path, 2)  # The step can be saved again.
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [1, 2]

    def test_nothing_whole_is_said(self, tmp_path):
        save_steps(tmp_path, 1)
        flip(tmp_path / "checkpoints" / "1" / "state" / "_METADATA")
        with pytest.raises(CheckpointError, match=r"no other checkpoint .* is whole; delete"):
            checkpoints.set_aside_damaged(str(tmp_path))

    def test_nothing_damaged_is_left_alone(self, tmp_path, caplog):
        save_steps(tmp_path, 1, 2)
        checkpoints.set_aside_damaged(str(tmp_path))
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [1, 2]
        assert not [r for r in caplog.records if r.levelname not in ("DEBUG", "INFO")]

    def test_a_damaged_best_checkpoint(self, tmp_path, caplog):
        save_steps(tmp_path, 1, 2, 3, best=1)
        assert checkpoints.best_step(str(tmp_path)) == 1
        flip(tmp_path / "checkpoints" / "1" / "state" / "_METADATA")
        checkpoints.set_aside_damaged(str(tmp_path))
        assert checkpoints.best_step(str(tmp_path)) == 3
        assert "the best checkpoint, step 1, was damaged: using step 3" in caplog.text
        shutil.rmtree(tmp_path / "checkpoints" / "1.damaged")
        with pytest.raises(CheckpointError, match=r"1 is missing; the newest whole .* is step 3"):
            checkpoints.best_step(str(tmp_path))

    def test_checkpoints_of_earlier_versions_have_no_digests(self, tmp_path):
        abstract = save_steps(tmp_path, 1, 2)
        for step in ("1", "2"):
            (tmp_path / "checkpoints" / step / checkpoints.DIGESTS).unlink()
        manager = Checkpoints(str(tmp_path))
        state, _ = manager.restore(abstract)
        np.testing.assert_array_equal(state.params["encoder"]["conv"]["kernel"], 2.0)
        manager.close()
        for name in ("_METADATA", "manifest.ocdbt"):
            (tmp_path / "checkpoints" / "2" / "state" / name).write_bytes(b"{")
        manager = Checkpoints(str(tmp_path))
        with pytest.raises(CheckpointError, match=r"checkpoint 2 is damaged: .* cannot be read"):
            manager.restore(abstract)
        manager.close()
        checkpoints.set_aside_damaged(str(tmp_path))
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [1]

    def test_a_save_that_fails_leaves_no_unfinished_folder(self, tmp_path, monkeypatch):
        save_steps(tmp_path, 1)

        def full(folder):
            raise OSError(28, "No space left on device", str(folder))

        monkeypatch.setattr(checkpoints, "write_digests", full)
        with pytest.raises(OSError, match="No space"):
            save_steps(tmp_path, 2)
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1"]
