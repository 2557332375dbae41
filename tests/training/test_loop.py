"""The loop with networks of a few parameters: everything but the two stages' own parts."""

import importlib.util
import math
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.errors import UserError
from infantxray.training import checkpoints, loop, optimizer
from infantxray.training.loop import LoopSettings
from infantxray.training.optimizer import OptimizerSettings
from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState
from infantxray.training.train_step import make_train_step
from infantxray.training.writers import read_history

BATCH, FEATURES = 8, 4


@pytest.fixture(autouse=True)
def _no_tensorflow(monkeypatch):
    """Its import takes seconds; the writers have tests of their own."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else find(name)
    )


class Net(nn.Module):
    """`encoder` and `head`, as in both stages."""

    norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(6, dtype=self.dtype, name="encoder")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return nn.Dense(1, dtype=jnp.float32, name="head")(nn.tanh(x))[..., 0]


def make_task(net=None, evaluate=lambda variables: {"loss": 1.0}, noise=0.0):
    """Two terms: a squared error, and one that is there for some examples alone."""
    net = net or Net()

    def losses(params, batch_stats, batch, key):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)
        output, updated = net.apply(
            {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"]
        )
        values = {"error": (output - batch["y"]) ** 2, "size": jnp.abs(output)}
        return values, updated.get("batch_stats", {})

    return loop.Task(
        init=lambda key: net.init(key, jnp.zeros((1, FEATURES)), train=False),
        weights=lambda batch: {"error": batch["mask"], "size": batch["mask"] * batch["known"]},
        losses=losses,
        coefficients={"error": 1.0, "size": 0.5},
        evaluate=evaluate,
    )


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
    return {
        "x": x,
        "y": np.sin(x.sum(1)),
        "mask": np.array([1, 1, 0, 1, 1, 1, 1, 0], np.float32),
        "known": np.array([1, 0, 1, 0, 0, 1, 0, 1], np.float32),
    }


class Batches:
    """An iterator like Grain's: its state is how many batches were drawn."""

    def __init__(self, change=lambda index, batch: batch):
        self.index = 0
        self._change = change

    def __next__(self):
        self.index += 1
        return self._change(self.index, make_batch(self.index))

    def get_state(self):
        return {"next_index": self.index}

    def set_state(self, state):
        self.index = state["next_index"]


def make_state(task, sharding, tx, ema=False):
    return jax.jit(
        lambda key: TrainState.create(task.init(key), tx, ema=ema),
        out_shardings=sharding.replicated,
    )(jax.random.key(0))


def update(task, *, tx=None, devices=None, steps=1, ema=False, **options):
    """The state after some updates, and the metrics of the last."""
    tx = tx or optax.sgd(0.1)
    sharding = DataParallel(devices)
    state = make_state(task, sharding, tx, ema)
    step = make_train_step(task, tx, sharding, **options)
    for i in range(steps):
        state, metrics = step(state, sharding.put(make_batch(i)), jax.random.key(7))
    return jax.device_get((state, metrics))


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class TestTrainStep:
    def test_loss_and_gradient_are_the_masked_means(self):
        task, batch = make_task(Net(norm=False)), make_batch()
        sharding = DataParallel()
        params = jax.device_get(make_state(task, sharding, optax.sgd(0.1)).params)
        mask, known = batch["mask"], batch["mask"] * batch["known"]

        def whole(params):
            values, _ = task.losses(params, {}, batch, jax.random.key(0))
            error = (values["error"] * mask).sum() / mask.sum()
            size = (values["size"] * known).sum() / known.sum()
            return error + 0.5 * size, (error, size)

        (loss, (error, size)), grads = jax.value_and_grad(whole, has_aux=True)(params)
        state, metrics = update(task)
        assert metrics["train/loss"] == pytest.approx(float(loss), rel=1e-5)
        assert metrics["train/error"] == pytest.approx(float(error), rel=1e-5)
        assert metrics["train/size"] == pytest.approx(float(size), rel=1e-5)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        assert metrics["train/gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert_close(state.params, expected, rtol=1e-5, atol=1e-6)
        assert state.step == 1

    def test_four_devices_are_as_good_as_one(self):
        task = make_task(noise=0.1)  # BatchNorm sees the whole batch, noise hangs on the example.
        one, one_metrics = update(task, devices=jax.devices()[:1], steps=5)
        four, four_metrics = update(task, devices=jax.devices(), steps=5)
        assert_close(one.params, four.params, rtol=1e-4, atol=1e-6)
        assert_close(one.batch_stats, four.batch_stats, rtol=1e-4, atol=1e-6)
        assert_close(one_metrics, four_metrics, rtol=1e-4)

    @pytest.mark.parametrize("accumulate_steps", [2, 4, 8])
    def test_accumulation_is_the_whole_batch(self, accumulate_steps):
        """Also where a part has fewer labels than another, or none."""
        task = make_task(Net(norm=False))
        devices = jax.devices()[: BATCH // accumulate_steps]
        whole, metrics = update(task, devices=devices, steps=3)
        parts, part_metrics = update(
            task, devices=devices, steps=3, accumulate_steps=accumulate_steps
        )
        assert_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)
        assert_close(part_metrics, metrics, rtol=1e-4)

    def test_accumulation_carries_the_running_statistics(self):
        task = make_task()
        start = jax.device_get(make_state(task, DataParallel(), optax.sgd(0.1)).batch_stats)
        state, _ = update(task, devices=jax.devices()[:2], accumulate_steps=4)
        moved = state.batch_stats["norm"]["var"] - start["norm"]["var"]
        once, _ = update(task, devices=jax.devices()[:2])
        # Four updates with momentum 0.99 move four times as far as one, nearly.
        ratio = np.abs(moved).sum() / np.abs(once.batch_stats["norm"]["var"] - 1).sum()
        assert 2 < ratio < 8

    def test_a_batch_without_any_label_changes_nothing(self):
        task = make_task()
        sharding, tx = DataParallel(), optax.sgd(0.1)
        state = make_state(task, sharding, tx)
        before = jax.device_get(state.params)
        batch = make_batch() | {"mask": np.zeros(BATCH, np.float32)}
        step = make_train_step(task, tx, sharding)
        state, metrics = step(state, sharding.put(batch), jax.random.key(0))
        assert metrics["train/loss"] == 0.0
        assert_identical(jax.device_get(state.params), before)

    def test_bfloat16_computes_and_float32_remembers(self):
        task = make_task(Net(dtype=jnp.bfloat16))
        state, metrics = update(task, steps=2, tx=optax.adam(0.1), ema=True, ema_decay=0.9)
        for tree in (state.params, state.batch_stats, state.ema_params, metrics):
            assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}
        floats = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
        assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
        full, _ = update(make_task(Net()), steps=2, tx=optax.adam(0.1))
        difference = np.abs(state.params["encoder"]["kernel"] - full.params["encoder"]["kernel"])
        assert 0 < difference.max() < 0.3  # The switch does something.

    def test_moving_average(self):
        task = make_task(Net(norm=False))
        trail = [update(task, steps=n)[0].params["head"]["bias"] for n in (1, 2, 3)]
        start = jax.device_get(make_state(task, DataParallel(), optax.sgd(0.1)))
        expected = start.params["head"]["bias"]
        for step, value in enumerate(trail):
            decay = min(0.15, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
        state, _ = update(task, steps=3, ema=True, ema_decay=0.15)
        np.testing.assert_allclose(state.ema_params["head"]["bias"], expected, rtol=1e-5)
        # It is what is evaluated, and training does not feel it.
        assert_identical(state.eval_variables["params"], state.ema_params)
        assert_identical(state.params["head"]["bias"], trail[-1])
        plain, _ = update(task, steps=3)
        assert plain.ema_params == {}
        assert_identical(plain.eval_variables["params"], plain.params)

    def test_the_old_state_is_donated(self):
        task, sharding, tx = make_task(), DataParallel(), optax.sgd(0.1)
        old = make_state(task, sharding, tx)
        new, _ = make_train_step(task, tx, sharding)(
            old, sharding.put(make_batch()), jax.random.key(0)
        )
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new.params))

    def test_every_step_draws_other_random_numbers(self):
        task = make_task(noise=1.0)
        sharding, tx = DataParallel(), optax.set_to_zero()
        state = make_state(task, sharding, tx)
        step = make_train_step(task, tx, sharding)
        seen = []
        for _ in range(3):
            state, metrics = step(state, sharding.put(make_batch()), jax.random.key(0))
            seen.append(float(metrics["train/loss"]))
        assert len(set(seen)) == 3


def settings(learning_rate=0.01, **values):
    values = {
        "total_steps": 10,
        "batch_size": BATCH,
        "log_every_steps": 2,
        "eval_every_steps": 4,
        "checkpoint_every_steps": 3,
        "optimizer": OptimizerSettings(learning_rate=learning_rate),
    } | values
    return LoopSettings(**values)


def fit(folder, task, *, batches=None, hook=None, loop_settings=None, **options):
    state, progress = loop.fit(
        task,
        batches or Batches(),
        loop_settings or settings(),
        str(folder),
        hooks=[hook] if hook else [],
        **options,
    )
    return jax.device_get(state), progress


def history(folder):
    return read_history(str(folder / "history.jsonl"))


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in rows]


def scripted(values):
    """An evaluation that gives these values of `loss`, one after another."""
    values = iter(values)
    return lambda variables: {"loss": next(values)}


def kill_at(step, signum=signal.SIGTERM):
    def hook(moment):
        if moment.step == step:
            os.kill(os.getpid(), signum)
        return {"on/step": float(moment.step)} if moment.every(5) else {}

    return hook


def weight_size(variables):
    return {"loss": float(np.abs(jax.tree.leaves(variables["params"])[0]).sum())}


class TestFit:
    @pytest.mark.parametrize("accumulate_steps", [1, 2])
    def test_stopped_and_started_again_is_bit_identical(self, tmp_path, accumulate_steps):
        task = make_task(noise=0.1, evaluate=weight_size)

        def run(name, stop=None):
            loop_settings = settings(accumulate_steps=accumulate_steps, ema_decay=0.9)
            return fit(tmp_path / name, task, loop_settings=loop_settings, hook=kill_at(stop))

        whole, progress = run("whole")
        with pytest.raises(loop.Interrupted, match=r"stopped at step 5 of 10 and saved"):
            run("parts", stop=5)
        assert checkpoints.checkpoint_steps(str(tmp_path / "parts"))[-1] == 5
        resumed, other = run("parts")
        assert_identical(whole, resumed)
        assert progress == other
        rows = history(tmp_path / "parts")
        # A stop writes its own row of the steps so far; the averages of the next row are shorter.
        names = [(r["step"], k) for r in rows for k in r if k.startswith(("validation/", "on/"))]
        assert len(names) == len(set(names))
        whole_rows = history(tmp_path / "whole")
        for prefix in ("validation/", "on/"):
            pick = [
                [r for r in without_time(x) if any(k.startswith(prefix) for k in r)]
                for x in (rows, whole_rows)
            ]
            assert pick[0] == pick[1]

    def test_killed_without_warning_goes_on_from_the_last_checkpoint(self, tmp_path):
        def die(moment):
            if moment.step == 5:
                raise KeyError("the machine is gone")
            return {}

        whole, _ = fit(tmp_path / "whole", make_task(evaluate=weight_size))
        with pytest.raises(KeyError):
            fit(tmp_path / "parts", make_task(evaluate=weight_size), hook=die)
        assert checkpoints.checkpoint_steps(str(tmp_path / "parts"))[-1] == 4
        resumed, _ = fit(tmp_path / "parts", make_task(evaluate=weight_size))
        assert_identical(whole, resumed)
        assert without_time(history(tmp_path / "parts")) == without_time(
            history(tmp_path / "whole")
        )

    def test_killed_before_the_first_checkpoint_leaves_no_double_rows(self, tmp_path):
        def hook(moment, die=False):
            if die and moment.step == 2:
                raise KeyError("the machine is gone")
            return {"probe": 1.0} if moment.every(5) else {}

        with pytest.raises(KeyError):
            fit(tmp_path, make_task(), hook=lambda moment: hook(moment, die=True))
        fit(tmp_path, make_task(), hook=hook)
        assert [r["step"] for r in history(tmp_path) if "probe" in r] == [0, 5, 10]

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_signals_save_and_give_the_handlers_back(self, tmp_path, signum):
        before = signal.getsignal(signum)
        with pytest.raises(loop.Interrupted) as caught:
            fit(tmp_path, make_task(), hook=kill_at(2, signum))
        assert isinstance(caught.value, UserError)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [2]
        assert signal.getsignal(signum) is before
        assert not checkpoints.is_finished(str(tmp_path))

    def test_a_signal_at_the_last_step_is_too_late(self, tmp_path):
        _, progress = fit(tmp_path, make_task(), hook=kill_at(10))
        assert progress.finished

    def test_the_last_step_is_saved_also_where_nothing_could_be_evaluated(self, tmp_path):
        fit(tmp_path, make_task(evaluate=lambda variables: {}))
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [9, 10]
        assert checkpoints.is_finished(str(tmp_path))

    def test_a_finished_run_is_not_trained_again(self, tmp_path):
        first, progress = fit(tmp_path, make_task())
        assert progress.finished
        assert checkpoints.is_finished(str(tmp_path))
        calls = []
        again, progress = fit(
            tmp_path,
            make_task(evaluate=calls.append),
            hook=calls.append,
            initialise=calls.append,
        )
        assert_identical(first, again)
        assert calls == []

    def test_initialise_changes_the_start_and_is_not_called_on_resumption(self, tmp_path):
        calls = []

        def initialise(variables):
            calls.append(1)
            return jax.tree.map(jnp.zeros_like, variables)

        with pytest.raises(loop.Interrupted):
            fit(tmp_path, make_task(), hook=kill_at(1), initialise=initialise)
        state = fit(tmp_path, make_task(), initialise=initialise)[0]
        assert len(calls) == 1
        # With all weights zero nothing but the last bias has a gradient.
        np.testing.assert_array_equal(state.params["encoder"]["kernel"], 0.0)

    @pytest.mark.parametrize(
        ("values", "lower", "best"),
        [
            ((0.5, 0.2, 0.3, 0.4, 0.9), True, 2),
            ((0.5, 0.2, 0.3, 0.9, 0.4), False, 4),
            ((0.5, 1.0, 1.0, 0.9, 0.8), False, 3),  # Of equals the last.
            ((0.5, 0.1, 0.1, 0.9, 0.1), True, 5),
            ((math.nan, math.nan, 0.3, math.nan, math.nan), True, 3),
            ((0.5, math.inf, 0.7, math.nan, 0.1), True, 5),
        ],
    )
    def test_the_best_and_the_latest_checkpoint_are_kept(self, tmp_path, values, lower, best):
        loop_settings = settings(
            eval_every_steps=2, checkpoint_every_steps=1, lower_is_better=lower
        )
        task = make_task(evaluate=scripted(values))
        _, progress = fit(tmp_path, task, loop_settings=loop_settings)
        assert progress.best_step == 2 * best
        assert progress.best == values[best - 1]
        assert checkpoints.best_step(str(tmp_path)) == 2 * best
        assert checkpoints.checkpoint_steps(str(tmp_path)) == sorted(
            {2 * best, 10} if best < 5 else {9, 10}
        )  # Where the latest is the best, the one before is kept too.

    def test_without_a_metric_to_choose_by_the_latest_counts_as_the_best(self, tmp_path):
        loop_settings = settings(
            eval_every_steps=2, checkpoint_every_steps=1, best_metric=None, early_stopping_evals=1
        )
        task = make_task(evaluate=scripted((0.1, 0.2, 0.3, 0.4, 0.5)))
        _, progress = fit(tmp_path, task, loop_settings=loop_settings)
        assert (progress.best, progress.finished) == (None, True)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [9, 10]
        assert checkpoints.best_step(str(tmp_path)) == 10

    def test_the_best_survives_a_resumption(self, tmp_path):
        loop_settings = settings(eval_every_steps=2, checkpoint_every_steps=1)
        task = make_task(evaluate=scripted([0.1, 0.5]))
        with pytest.raises(loop.Interrupted):
            fit(tmp_path, task, loop_settings=loop_settings, hook=kill_at(5))
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [2, 5]
        task = make_task(evaluate=scripted([0.4] * 3))
        _, progress = fit(tmp_path, task, loop_settings=loop_settings)
        assert (progress.best, progress.best_step) == (0.1, 2)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [2, 10]

    def test_without_any_finite_metric_the_latest_counts(self, tmp_path):
        _, progress = fit(tmp_path, make_task(evaluate=lambda variables: {"other": 1.0}))
        assert progress.best is None
        assert checkpoints.best_step(str(tmp_path)) == 10

    def test_early_stopping_counts_evaluations_also_over_a_stop(self, tmp_path):
        options = {
            "loop_settings": settings(eval_every_steps=2, total_steps=100, early_stopping_evals=3)
        }
        task = make_task(evaluate=scripted([0.5, 0.1, 0.2]))
        with pytest.raises(loop.Interrupted):
            fit(tmp_path, task, hook=kill_at(7), **options)
        _, progress = fit(tmp_path, make_task(evaluate=scripted([0.3, 0.1, 0.0])), **options)
        # Best at 4; 6, 8 and 10 are no better. Of equals the last is kept.
        assert (progress.finished, progress.best_step) == (True, 10)
        assert checkpoints.checkpoint_steps(str(tmp_path)) == [9, 10]

    def test_a_loss_that_is_not_finite_names_the_steps_and_keeps_a_good_checkpoint(self, tmp_path):
        def poison(index, batch):
            return batch | {"y": batch["y"] * np.float32(np.nan)} if index == 6 else batch

        loop_settings = settings(log_every_steps=4)
        options = {"loop_settings": loop_settings, "advice": ", or use config.dtype=float32"}
        with pytest.raises(loop.NonFiniteLossError) as caught:
            fit(tmp_path, make_task(), batches=Batches(poison), **options)
        message = str(caught.value)
        assert "at step 6" in message
        assert "learning_rate (0.01)" in message
        assert "dtype=float32" in message
        assert "last good checkpoint is step 4" in message

    def test_all_steps_since_the_last_look_are_named(self, tmp_path):
        def poison(index, batch):
            return batch | {"y": batch["y"] * np.float32(np.nan)} if index >= 2 else batch

        loop_settings = settings(log_every_steps=4, checkpoint_every_steps=100)
        with pytest.raises(loop.NonFiniteLossError, match=r"steps 2, 3, 4; .* step none"):
            fit(tmp_path, make_task(), loop_settings=loop_settings, batches=Batches(poison))

    def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(self, tmp_path):
        """The loss of that step is still finite: only the next one would be NaN."""
        task = make_task(Net(norm=False))

        def losses(params, batch_stats, batch, key):
            values, stats = task.losses(params, batch_stats, batch, key)
            # Zero, with an infinite slope.
            edge = jnp.sqrt(jnp.abs(params["head"]["kernel"].sum() * batch["edge"]))
            return values | {"error": values["error"] + edge}, stats

        def edge(index, batch):
            return batch | {"edge": np.full(BATCH, 0.0 if index == 3 else 1.0, np.float32)}

        poisoned = loop.Task(
            init=task.init,
            weights=task.weights,
            losses=losses,
            coefficients=task.coefficients,
            evaluate=task.evaluate,
        )
        loop_settings = settings(log_every_steps=3)
        with pytest.raises(loop.NonFiniteLossError, match="at step 3"):
            fit(tmp_path, poisoned, loop_settings=loop_settings, batches=Batches(edge))
        assert checkpoints.checkpoint_steps(str(tmp_path)) == []

    def test_what_is_logged(self, tmp_path):
        loop_settings = settings(eval_every_steps=5, log_every_steps=2, checkpoint_every_steps=100)
        fit(tmp_path, make_task(evaluate=scripted([0.5, math.nan])), loop_settings=loop_settings)
        rows = history(tmp_path)
        train = [row for row in rows if "train/loss" in row]
        assert [row["step"] for row in train] == [2, 4, 5, 6, 8, 10]
        assert {
            "train/error",
            "train/size",
            "train/gradient_norm",
            "train/learning_rate",
            "train/images_per_second",
        } <= train[0].keys()
        rate = optimizer.learning_rate_schedule(loop_settings.optimizer, 10)
        for row in train:
            assert row["train/learning_rate"] == pytest.approx(float(rate(row["step"] - 1)))
            assert row["train/images_per_second"] > 0
        validation = [(r["step"], r["validation/loss"]) for r in rows if "validation/loss" in r]
        assert validation == [(5, 0.5), (10, None)]

    def test_the_loss_falls_and_frozen_encoders_stay(self, tmp_path):
        loop_settings = settings(
            learning_rate=0.05,
            total_steps=60,
            log_every_steps=1,
            eval_every_steps=100,
            checkpoint_every_steps=100,
        )
        start = []

        def initialise(variables):
            start.append(jax.device_get(variables["params"]["encoder"]))
            return variables

        def freeze(params):
            return {
                name: jax.tree.map(lambda _: float(name != "encoder"), tree)  # noqa: B023
                for name, tree in params.items()
            }

        state, _ = fit(
            tmp_path, make_task(), loop_settings=loop_settings, learning_rate_factors=freeze,
            initialise=initialise,
        )  # fmt: skip
        losses = [row["train/loss"] for row in history(tmp_path) if "train/loss" in row]
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
        assert_identical(state.params["encoder"], start[0])

    def test_batches_that_the_devices_cannot_share_are_refused_first(self, tmp_path):
        with pytest.raises(UserError, match="multiple of the 4 devices"):
            fit(tmp_path, make_task(), loop_settings=settings(batch_size=6))
