"""Stage-two models in use, and the loss they are trained with."""

import csv
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from configs import finetune as finetune_config
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.evaluation.predictions import Predictions, write_predictions
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.encoders.vgg import VGG, Stage
from infantxray.runs import settings
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference, loss, transfer
from infantxray.training import augment, batches
from infantxray.training.augment import Augmentation
from infantxray.training.checkpoints import Checkpoints
from infantxray.training.hooks import Moment, Progress
from infantxray.training.sharding import DataParallel
from infantxray.training.state import TrainState

SIDE = 32
CLASSES = ("normal", "mass", "constipation")
HOW = Preprocessing(image_size=SIDE)


class Encoder(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(8, (32, 32), (32, 32), dtype=self.dtype, name="conv")(image)
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="norm")(x)
        return (None, None, None, nn.relu(x))


@pytest.fixture(autouse=True)
def _small_encoder(monkeypatch):
    monkeypatch.setattr(inference, "create_encoder", lambda name, dtype: Encoder(dtype=dtype))


def make_spec(classes=CLASSES, ages=(20.0, 8.0), dtype="float32"):
    return ModelSpec("resnet50", dtype, HOW, classes, *ages)


def make_variables(spec, seed=0, scale=1.0):
    model = inference.build_model(spec)
    variables = inference.init_variables(model, SIDE, jax.random.key(seed))
    # Away from the heads' small start, so that images differ.
    return jax.tree.map(
        lambda x: x + scale * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven images; the fourth is damaged, some labels and ages are unknown."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"damaged")
    records = Records.create(
        [str(folder / f"{i}.png") for i in range(7)],
        source="s",
        patient_id=["a", "a", "b", "b", "", "c", "c"],
        label=["mass", "", "normal", "mass", "constipation", "other", "normal"],
        age_months=[1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0],
    )
    return ImageSource(records, CLASSES, HOW, on_error="skip")


READABLE = [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_images_come_back_in_order_without_padding_and_damage(source, batch_size):
    spec = make_spec()
    variables = make_variables(spec)
    predictor = inference.Predictor(spec, batch_size=batch_size, num_threads=2)
    predictions, records = predictor(variables, source, check=False)
    assert records.image_path.tolist() == source.records.image_path[READABLE].tolist()
    assert predictions.label.tolist() == [1, -1, 0, 2, -1, 0]
    np.testing.assert_array_equal(predictions.age_months, records.age_months)
    assert predictions.patient.tolist() == [
        "patient:a", "patient:a", "patient:b", f"image:{records.image_path[3]}", "patient:c",
        "patient:c",
    ]  # fmt: skip
    assert predictions.classes == CLASSES
    # Each image by itself, without the pipeline.
    model = inference.build_model(spec)
    for i, row in enumerate(READABLE):
        image = np.asarray(Image.open(source.records.image_path[row]))[None, ..., None]
        x = (image / 255.0 - augment.MEAN) / augment.STD
        outputs = model.apply(variables, x.astype(np.float32), train=False)
        np.testing.assert_allclose(
            predictions.probabilities[i], nn.softmax(outputs["logits"])[0], atol=1e-5
        )
        # The network says standard deviations, the user reads months.
        expected = 20.0 + 8.0 * float(outputs["age"][0])
        assert predictions.age_predicted_months[i] == pytest.approx(expected, rel=1e-4)
    assert len(np.unique(predictions.probabilities, axis=0)) == len(READABLE)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_predictions_do_not_depend_on_the_number_of_devices(source, num_devices, monkeypatch):
    """To the last digit: every device gets as many images as a single one."""
    spec = make_spec()
    variables = make_variables(spec)

    def outputs():
        predictor = inference.Predictor(spec, batch_size=4, num_threads=1)
        return [part for part, _ in predictor.outputs(variables, source)]

    expected = np.concatenate([part["probabilities"] for part in outputs()])  # On four devices.
    few = DataParallel(jax.devices()[:num_devices])
    monkeypatch.setattr(batches, "DataParallel", lambda: few)
    found = np.concatenate([part["probabilities"] for part in outputs()])
    np.testing.assert_array_equal(found, expected)


def test_without_age_head_ages_are_unknown(source):
    spec = make_spec(ages=(None, None))
    predictor = inference.Predictor(spec, batch_size=4, num_threads=1)
    predictions, _ = predictor(make_variables(spec), source, check=False)
    assert np.isnan(predictions.age_predicted_months).all()
    assert predictions.probabilities.shape == (6, 3)


def test_without_condition_head_there_are_no_probabilities(source):
    spec = make_spec(classes=())
    predictor = inference.Predictor(spec, batch_size=4, num_threads=1)
    predictions, _ = predictor(make_variables(spec), source, check=False)
    assert predictions.probabilities.shape == (6, 0)
    assert np.isfinite(predictions.age_predicted_months).all()


def test_a_source_of_damaged_images_gives_empty_predictions(source):
    bad = ImageSource(source.records.take(np.array([3])), CLASSES, HOW, on_error="skip")
    predictions, records = inference.Predictor(make_spec(), batch_size=4, num_threads=1)(
        make_variables(make_spec()), bad
    )
    assert len(predictions) == len(records) == 0
    assert predictions.probabilities.shape == (0, 3)


def test_predictions_csv(tmp_path):
    records = Records.create(
        ["/x/a, b.png", "/x/c.png"], source="s", patient_id=["p", ""], label=["mass", ""],
        age_months=[100.0, np.nan],
    )  # fmt: skip
    predictions = Predictions(
        classes=("normal", "mass"),
        probabilities=np.array([[0.25, 0.75], [1.0, 0.0]], np.float32),
        label=np.array([1, -1]),
        age_months=records.age_months,
        age_predicted_months=np.array([101.25, np.nan]),
        patient=np.array(["p", "c"]),
    )
    write_predictions(str(tmp_path / "p.csv"), predictions, records)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image_path", "patient_id", "label", "predicted", "p_normal", "p_mass", "age_months",
         "age_predicted_months"],
        ["/x/a, b.png", "p", "mass", "mass", "0.25", "0.75", "100", "101.25"],
        ["/x/c.png", "", "", "normal", "1", "0", "", ""],
    ]  # fmt: skip


def save(folder, spec, step, variables, best_step):
    state = TrainState.create(variables, optax.sgd(0.1), ema=False)
    manager = Checkpoints(str(folder))
    manager.save(step, state, {"best_step": best_step, "finished": True})
    manager.close()
    spec.write(str(folder))


def test_the_best_checkpoint_is_used_and_not_the_latest(tmp_path):
    spec = make_spec()
    best, latest = make_variables(spec, 0), make_variables(spec, 1)
    save(tmp_path, spec, 10, best, 10)
    save(tmp_path, spec, 20, latest, 10)
    assert inference.read_spec(str(tmp_path)) == spec
    variables, step = inference.restore(str(tmp_path), spec)
    assert step == 10
    jax.tree.map(np.testing.assert_array_equal, variables, best)


def test_workdirs_that_cannot_predict_say_why(tmp_path):
    with pytest.raises(UserError, match="not the workdir of a run"):
        inference.read_spec(str(tmp_path))
    make_spec(classes=(), ages=(None, None)).write(str(tmp_path))
    with pytest.raises(UserError, match="is a stage-one workdir"):
        inference.read_spec(str(tmp_path))
    make_spec().write(str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint yet"):
        inference.read_spec(str(tmp_path))


class TestAgeAsACondition:
    """FiLM: the age modulates what the condition head reads."""

    SPEC = dataclasses.replace(make_spec(), age_film=True)

    def outputs(self, variables, age):
        model = inference.build_model(self.SPEC)
        image = jnp.asarray(np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 1)), jnp.float32)
        return model.apply(variables, image, train=False, age=age)

    def test_at_first_it_changes_nothing(self):
        model = inference.build_model(self.SPEC)
        variables = inference.init_variables(model, SIDE, jax.random.key(0))
        young, old = (self.outputs(variables, jnp.full(3, age)) for age in (-1.0, 2.0))
        np.testing.assert_array_equal(young["logits"], old["logits"])

    def test_the_true_age_counts_where_it_is_known_and_else_the_predicted(self):
        variables = make_variables(self.SPEC)
        predicted = self.outputs(variables, None)
        mixed = self.outputs(variables, jnp.array([jnp.nan, 5.0, predicted["age"][2]]))
        np.testing.assert_allclose(mixed["logits"][0], predicted["logits"][0], rtol=1e-5)
        assert np.abs(mixed["logits"][1] - predicted["logits"][1]).max() > 1e-2
        np.testing.assert_allclose(mixed["logits"][2], predicted["logits"][2], rtol=1e-4)

    def test_the_condition_does_not_bend_the_age(self):
        variables = make_variables(self.SPEC)

        def total(params):
            return self.outputs(variables | {"params": params}, None)["logits"].sum()

        grads = jax.grad(total)(variables["params"])
        for leaf in jax.tree.leaves(grads["age_prediction_net"]):
            np.testing.assert_array_equal(leaf, 0.0)
        assert np.abs(grads["age_modulation"]["film"]["kernel"]).max() > 0


def test_heads_do_not_feel_the_scale_of_an_encoder_without_batchnorm():
    """Stage one leaves VGG19 with a last map of any size; a large one made the loss infinite."""
    model = DiagnosisModel(VGG(stages=(Stage(1, 4),) * 5), num_classes=3)
    image = jax.random.normal(jax.random.key(0), (6, 32, 32, 1))
    variables = model.init(jax.random.key(1), image, train=False)

    def run(variables, train):
        outputs, updated = model.apply(variables, image, train=train, mutable=["batch_stats"])
        return outputs, {"params": variables["params"], **updated}

    small, after_small = run(variables, True)
    last = variables["params"]["encoder"]["conv5_1"]
    large = jax.tree.map(lambda x: x, variables)
    large["params"]["encoder"]["conv5_1"] = jax.tree.map(lambda x: 1e12 * x, last)
    big, after_big = run(large, True)
    for name in ("logits", "age"):
        assert np.std(small[name]) > 0
        # Up to epsilon, which the small one feels.
        np.testing.assert_allclose(big[name], small[name], rtol=0.2, atol=1e-3)
        assert np.isfinite(run(after_big, False)[0][name]).all()
    mean = [np.abs(v["batch_stats"]["latent_norm"]["mean"]).max() for v in (after_small, after_big)]
    assert mean[1] > 1e9 * mean[0] > 0
    assert (
        "latent_norm"
        not in DiagnosisModel(Encoder(), num_classes=3).init(jax.random.key(1), image, train=False)[
            "params"
        ]
    )


def test_distribution_regression_predicts_within_its_range(source):
    spec = dataclasses.replace(make_spec(), age_range_months=(1.0, 31.0))
    predictions, _ = inference.Predictor(spec, batch_size=4, num_threads=1)(
        make_variables(spec), source
    )
    assert (predictions.age_predicted_months >= 1).all()
    assert (predictions.age_predicted_months <= 31).all()
    # Before training every age in the range is as likely: the middle.
    fresh = inference.init_variables(inference.build_model(spec), SIDE, jax.random.key(0))
    predictions, _ = inference.Predictor(spec, batch_size=4, num_threads=1)(fresh, source)
    np.testing.assert_allclose(predictions.age_predicted_months, 16.0, atol=1.0)


def test_the_spec_comes_back(tmp_path):
    spec = dataclasses.replace(make_spec(), age_film=True, age_range_months=(1.0, 31.0))
    spec.write(str(tmp_path))
    assert ModelSpec.read(str(tmp_path)) == spec


class TestLoss:
    """L = CE + α·MSE, each over the images for which it is known."""

    BATCH = {  # noqa: RUF012
        "image": np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 1), np.uint8),
        "label": np.array([0, -1, 2, 1], np.int32),
        "age_months": np.array([12.0, 28.0, np.nan, 20.0], np.float32),
        "mask": np.array([1, 1, 1, 0], np.float32),
    }
    LABELS = np.array([0, 0, 0, 1, 2, -1], np.int32)

    def task(self, spec=None, **values):
        loss_settings = loss.LossSettings(**values)
        return loss.make_task(spec or make_spec(), loss_settings, Augmentation(), self.LABELS, None)

    def test_what_counts_is_what_is_known(self):
        weights = self.task().weights(self.BATCH)
        assert weights["cross_entropy"].tolist() == [1, 0, 1, 0]
        assert weights["age_mse"].tolist() == [1, 1, 0, 0]

    def test_coefficients_are_alpha_and_one(self):
        assert self.task(age_weight=0.3).coefficients == {"cross_entropy": 1.0, "age_mse": 0.3}
        no_age = self.task(make_spec(ages=(None, None)))
        assert no_age.coefficients == {"cross_entropy": 1.0}
        assert set(no_age.weights(self.BATCH)) == {"cross_entropy"}
        ages = self.task(make_spec(classes=()))
        assert ages.coefficients == {"age_mse": 1.0}
        assert set(ages.weights(self.BATCH)) == {"age_mse"}

    def test_values_and_no_nan_anywhere(self):
        task = self.task()
        variables = task.init(jax.random.key(0))

        def total(params):
            values, _ = task.losses(params, variables["batch_stats"], self.BATCH, jax.random.key(0))
            weights = task.weights(self.BATCH)
            return sum((values[k] * weights[k]).sum() for k in values), values

        (_, values), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])
        # Heads start small: every class about as likely, everybody about of mean age.
        assert values["cross_entropy"][0] == pytest.approx(np.log(3), abs=0.3)
        # Ages of 12, 28 and 20 months are -1, +1 and 0 standard deviations.
        np.testing.assert_allclose(values["age_mse"], [1, 1, 0, 0], atol=0.5)
        for leaf in jax.tree.leaves((grads, values)):
            assert np.isfinite(leaf).all()
        assert np.abs(grads["encoder"]["conv"]["kernel"]).max() > 0

    def test_balanced_weights_make_every_class_count_the_same(self):
        weights = self.task(class_weights="balanced").weights(
            self.BATCH | {"label": np.array([0, 1, 2, 0], np.int32)}
        )["cross_entropy"]
        # 3, 1 and 1 of 5 images.
        np.testing.assert_allclose(weights, [5 / 9, 5 / 3, 5 / 3, 0], rtol=1e-6)

    def test_a_frozen_encoder_gets_no_gradient_and_keeps_its_statistics(self):
        task = self.task(freeze_encoder=True)
        variables = task.init(jax.random.key(0))

        def total(params):
            values, stats = task.losses(
                params, variables["batch_stats"], self.BATCH, jax.random.key(0)
            )
            return values["cross_entropy"].sum(), stats

        grads, stats = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
        for leaf in jax.tree.leaves(grads["encoder"]):
            np.testing.assert_array_equal(leaf, 0.0)
        assert np.abs(grads["condition_head"]["logits"]["kernel"]).max() > 0
        jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])

    def test_soft_labels_teach_where_there_is_no_label(self):
        soft = np.array([[0.1, 0.2, 0.7]] * 4, np.float32)
        task = self.task()
        batch = self.BATCH | {"soft_label": soft}
        assert task.weights(batch)["cross_entropy"].tolist() == [1, 1, 1, 0]
        variables = task.init(jax.random.key(0))
        run = jax.jit(task.losses)
        values, _ = run(variables["params"], variables["batch_stats"], batch, jax.random.key(0))
        plain, _ = run(variables["params"], variables["batch_stats"], self.BATCH, jax.random.key(0))
        labelled = self.BATCH["label"] >= 0
        np.testing.assert_array_equal(
            values["cross_entropy"][labelled], plain["cross_entropy"][labelled]
        )
        # Against certainty about class 0, which is what an unknown label looks like.
        assert values["cross_entropy"][1] != plain["cross_entropy"][1]

    def test_class_weights_weigh_what_a_teacher_says_class_by_class(self):
        """The minimum is where that of labels drawn from the teacher's answer would be."""
        soft = np.array([[0.7, 0.3, 0.0]] * 4, np.float32)
        weights = jnp.array([0.5, 2.0, 1.0])
        batch = {"label": np.full(4, -1), "soft_label": soft}

        def total(logits):
            outputs = {"logits": jnp.broadcast_to(logits, (4, 3))}
            terms = loss.loss_terms(make_spec(), outputs, batch, weights)
            return terms["cross_entropy"].sum()

        expected = soft[0] * weights / (soft[0] * weights).sum()
        minimum = jnp.log(expected + 1e-7)
        np.testing.assert_allclose(jax.grad(total)(minimum), 0.0, atol=1e-5)
        assert total(minimum) < total(jnp.log(soft[0] + 1e-7)) - 0.1

    @pytest.mark.parametrize("mixup", [0.0, 0.4])
    def test_consistency_compares_two_views(self, mixup):
        """Views that do not differ agree; the other terms are then those of one view."""
        one = self.task(mixup=mixup)
        variables = one.init(jax.random.key(0))
        state = (variables["params"], variables["batch_stats"], self.BATCH, jax.random.key(0))
        single, _ = one.losses(*state)
        assert "consistency" not in one.weights(self.BATCH)
        both = self.task(mixup=mixup, consistency=2.0)
        assert both.coefficients["consistency"] == 2.0
        assert both.weights(self.BATCH)["consistency"].tolist() == [1, 1, 1, 0]
        values, _ = both.losses(*state)
        np.testing.assert_array_equal(values["consistency"], 0.0)
        for name, value in single.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-6)
        noisy = loss.make_task(
            make_spec(), loss.LossSettings(consistency=2.0), Augmentation(noise=0.5), self.LABELS,
            None,
        )  # fmt: skip
        values, _ = noisy.losses(*state)
        assert (values["consistency"] > 0).all()

    def test_consistency_needs_conditions(self):
        with pytest.raises(DataError, match="consistency compares predicted conditions"):
            self.task(make_spec(classes=()), consistency=1.0)

    def test_mixup_keeps_unknown_labels_out(self):
        task = self.task(mixup=0.4)
        variables = task.init(jax.random.key(0))
        weights = task.weights(self.BATCH)

        def total(params, label):
            batch = self.BATCH | {"label": label}
            values, _ = task.losses(params, variables["batch_stats"], batch, jax.random.key(0))
            return (values["cross_entropy"] * weights["cross_entropy"]).sum()

        label = self.BATCH["label"]
        found = jax.grad(total)(variables["params"], label)
        # The second label is unknown and the fourth image unreadable: their labels do not count.
        other = jax.grad(total)(variables["params"], np.array([0, 2, 2, 0], np.int32))
        jax.tree.map(np.testing.assert_array_equal, found, other)
        assert np.abs(found["encoder"]["conv"]["kernel"]).max() > 0

    def test_logged_weights_are_those_of_the_loss(self):
        """In the place of 1 and α: of the age, half the inverse variance."""
        log_variance = {"cross_entropy": jnp.asarray(0.0), "age_mse": jnp.asarray(np.log(2.0))}
        params = {"task_weighting": {"log_variance": log_variance}}
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, {}, {})
        moment = Moment(20, state, Progress(data={}), lambda step, images: None)
        assert loss.TaskWeights(20)(moment) == pytest.approx(
            {"train/weight_cross_entropy": 1.0, "train/weight_age_mse": 0.25}
        )
        assert loss.TaskWeights(15)(moment) == {}

    def test_learned_weighing_of_the_tasks(self):
        task = self.task(age_weighting="uncertainty")
        assert task.coefficients == {"cross_entropy": 1.0, "age_mse": 1.0}
        variables = task.init(jax.random.key(0))

        def total(params):
            values, _ = task.losses(params, variables["batch_stats"], self.BATCH, jax.random.key(0))
            weights = task.weights(self.BATCH)
            return sum((values[k] * weights[k]).sum() for k in values)

        grads = jax.grad(total)(variables["params"])["task_weighting"]["log_variance"]
        assert set(grads) == {"cross_entropy", "age_mse"}
        assert all(np.isfinite(g) and g != 0 for g in grads.values())

    def test_distribution_regression_has_its_own_term(self):
        spec = dataclasses.replace(make_spec(), age_range_months=(1.0, 40.0))
        task = self.task(spec, age_loss="distribution")
        assert task.coefficients == {"cross_entropy": 1.0, "age_distribution": 0.8}
        variables = task.init(jax.random.key(0))
        values, _ = task.losses(
            variables["params"], variables["batch_stats"], self.BATCH, jax.random.key(0)
        )
        assert (values["age_distribution"][:2] > 0).all()
        assert values["age_distribution"][2] == 0


def test_learning_rate_factors(monkeypatch):
    params = {"encoder": {"a": 1, "b": 2, "c": 3}, "condition_head": {"kernel": 4}}
    levels = {"a": 0, "b": 2, "c": 3}
    monkeypatch.setattr(transfer, "pyramid_level", lambda encoder, params: levels)

    def factors(**values):
        config = finetune_config.get_config()
        config.update(values)
        rates = settings.build(
            transfer.LearningRates,
            config,
            factor_without_batchnorm=config.optimizer.factor_without_batchnorm,
        )
        return rates(params)

    head = {"kernel": 1.0}
    params["task_weighting"] = {"log_variance": {"cross_entropy": 5}}
    assert factors().pop("task_weighting") == {"log_variance": {"cross_entropy": 30.0}}
    del params["task_weighting"]
    assert factors() == {"encoder": {"a": 1.0, "b": 1.0, "c": 1.0}, "condition_head": head}
    assert factors(freeze_encoder=True)["encoder"] == {"a": 0.0, "b": 0.0, "c": 0.0}
    decayed = factors(layer_decay=0.5, encoder_learning_rate_factor=0.2)
    assert decayed["condition_head"] == head
    assert decayed["encoder"] == pytest.approx({"a": 0.025, "b": 0.1, "c": 0.2})
    # Without BatchNorm an encoder learns at a fraction of the rate; heads do not.
    plain = factors(encoder="vgg19", encoder_learning_rate_factor=0.5)
    assert plain["encoder"] == pytest.approx(dict.fromkeys("abc", 0.015))
    assert plain["condition_head"] == head
    assert factors(encoder="vgg19", freeze_encoder=True)["encoder"] == dict.fromkeys("abc", 0.0)


def test_random_streams_are_apart_from_those_of_the_images():
    key = jax.random.key(0)
    streams = (loss._CONTEXT_STREAM, loss._VIEW_STREAM, loss._MIXUP_STREAM)
    keys = [jax.random.fold_in(key, stream) for stream in streams]
    keys += list(augment.example_keys(key, 2000))
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 2003
