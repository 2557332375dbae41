"""Supervised stage one: whose labels count, what is unknown, and what stage two loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_encoder import small_encoder

from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from data_pipeline.dataset import DataSettings, divide_sources
from data_pipeline.errors import DataError, UserError
from infantxray.commands import pretrain
from infantxray.models import ENCODERS, create_encoder
from infantxray.models.initialisation import initialise
from infantxray.runs import settings
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one.joint import join
from infantxray.stage_one.objectives import OBJECTIVES, ObjectiveSettings
from infantxray.stage_one.training import make_task
from infantxray.stage_two import supervised, transfer
from infantxray.stage_two.inference import build_model, init_variables
from infantxray.stage_two.supervised import SupervisedSettings, make_supervised, source_split
from infantxray.training import checkpoints
from infantxray.training.augment import Augmentation

SOURCES = "phantom:adult:films=44,phantom:infant:films=44"
DATA = DataSettings(train=SOURCES, image_size=32, num_threads=1)

# In one process, so that fixtures are made once.
pytestmark = pytest.mark.xdist_group("supervised")


@pytest.fixture(scope="module")
def split():
    return divide_sources(DATA)


def test_labels_of_the_target_are_left_to_stage_two(split):
    known = source_split(split, SupervisedSettings())
    for role in ("train", "validation", "test"):
        adults = split[role].source == "phantom:adult:films=44"
        assert adults.any()
        assert not adults.all()
        assert (known[role].has_label == adults).all()
        assert (known[role].has_age == adults).all()
        assert (known[role].label[adults] == split[role].label[adults]).all()


def test_sources_can_be_named(split):
    known = source_split(split, SupervisedSettings(sources="phantom:infant:films=44"))
    assert set(known.train.source[known.train.has_label]) == {"phantom:infant:films=44"}
    with pytest.raises(DataError, match="phantom:adult, which is not in"):
        source_split(split, SupervisedSettings(sources="phantom:adult"))


def supervise(split, data=DATA, encoder="small", **options):
    with small_encoder():
        spec = ModelSpec(encoder, "float32", DATA.preprocessing)
        options = SupervisedSettings(labels=data.labels, **options)
        known = source_split(split, options)
        task, reader = make_supervised(spec, options, Augmentation(), data, known, batch_size=8)
        return task, reader(known.train)


def test_terms_count_where_the_truth_is_known_alone(split):
    task, source = supervise(split)
    rows = np.r_[0:3, len(source) - 3 : len(source)]
    weights = task.weights(source.read_batch(rows))
    for term in ("cross_entropy", "age_mse"):
        assert np.asarray(weights[term]).tolist() == [1, 1, 1, 0, 0, 0]
    assert task.coefficients == {"cross_entropy": 1.0, "age_mse": 0.8}


def test_several_findings_and_ages_alone(split):
    task, source = supervise(split, dataclasses.replace(DATA, labels="multi"))
    assert source.findings.shape == (len(split.train), 10)  # `normal` is no finding.
    assert np.isnan(source.findings[-1]).all()
    one = split.train.replace(label=np.where(split.train.has_label, "normal", ""))
    task, _ = supervise(dataclasses.replace(split, train=one))
    assert set(task.coefficients) == {"age_mse"}
    with pytest.raises(DataError, match="needs images of the source data with labels"):
        supervise(dataclasses.replace(split, train=one), age_head=False)


QUICK = ("vgg19", "resnet50")  # Without and with statistics.


@pytest.mark.parametrize(
    "encoder",
    [pytest.param(e, marks=() if e in QUICK else pytest.mark.slow) for e in ENCODERS],
)
def test_every_encoder_learns_from_labels_and_images_together(encoder, split):
    """Shapes of a step; `test_objectives_with_encoders.py` computes the parts."""
    task, source = supervise(split, encoder=encoder)
    kind = OBJECTIVES["masked_hog"]
    hog = kind(create_encoder(encoder), jnp.float32, ObjectiveSettings(image_size=32))
    other = make_task(hog, source, Augmentation(), batch_size=8, num_threads=1, seed=0)
    both = join({"supervised": task, "masked_hog": other}, dict.fromkeys(OBJECTIVES, 1.0)
                | {"supervised": 1.0})  # fmt: skip
    start = jax.eval_shape(both.init, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, source.read_batch(np.arange(4)))

    def loss(params):
        values, stats = both.losses(params, start_stats, batch, jax.random.key(0))
        return sum(value.sum() for value in values.values()), (values, stats)

    start_stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), start["batch_stats"])
    gradient, (values, stats) = jax.eval_shape(jax.grad(loss, has_aux=True), start["params"])
    assert set(values) == {"cross_entropy", "age_mse", "masked_hog"} == set(both.coefficients)
    assert {value.shape for value in values.values()} == {(4,)}
    assert jax.tree.structure(gradient) == jax.tree.structure(start["params"])
    assert jax.tree.structure(stats) == jax.tree.structure(start["batch_stats"])


def test_findings_and_classes_of_the_target_do_not_matter(split):
    joined = split.train.replace(label=np.where(split.train.has_label, "mass|normal", ""))
    with pytest.raises(DataError, match=r"set config\.supervised\.labels=multi"):
        supervise(dataclasses.replace(split, train=joined))
    task, _ = supervise(split, dataclasses.replace(DATA, classes=("of the target", "other")))
    assert "cross_entropy" in task.coefficients


def config_of(objective, **changes):
    config = pretrain_config.get_config()
    config.encoder, config.objective, config.batch_size = "small", objective, 8
    config.data.train, config.data.image_size, config.data.num_threads = SOURCES, 32, 1
    config.train_steps = 2
    config.probe_every_steps = 0
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """A supervised stage one, and a joint one that starts from it."""
    first, second = (str(tmp_path_factory.mktemp(name)) for name in ("first", "second"))
    with small_encoder():
        pretrain.run(config_of("supervised"), first)
        pretrain.run(config_of("l1+supervised", pretrained=first), second)
    return first, second


@pytest.fixture(scope="module")
def fresh(chained):
    """Variables of a stage two, with random weights."""
    with small_encoder():
        spec = dataclasses.replace(ModelSpec.read(chained[0]), classes=("a", "b"), objective="")
        model = build_model(spec)
        return jax.device_get(
            initialise(lambda key: init_variables(model, 32, key), jax.random.key(9))
        )


def test_stage_two_loads_the_encoder_of_both(chained, fresh):
    with small_encoder():
        for place in chained:
            spec = ModelSpec.read(place)
            assert spec.source_labels
            assert not spec.has_heads
            loaded = transfer.start_from(place, "small", dict(fresh))
            for kind in ("params", "batch_stats"):
                before, after = (
                    np.concatenate([np.ravel(x) for x in jax.tree.leaves(t[kind]["encoder"])])
                    for t in (fresh, loaded)
                )
                assert (before != after).any()


def test_a_stage_one_starts_from_another(chained, fresh):
    first, second = chained
    with small_encoder():
        start, end = (
            transfer.start_from(place, "small", dict(fresh))["params"]["encoder"]
            for place in (first, second)
        )
        random = fresh["params"]["encoder"]

        def distance(a, b):
            pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            return sum(float(np.square(x - y).sum()) for x, y in pairs)

        assert distance(end, start) < 0.2 * distance(end, random)
    assert list(transfer.walk(second)) == [second, first]


def test_metrics_of_every_objective_and_their_sum_are_logged(chained):
    with open(chained[1] + "/history.jsonl") as file:
        last = [json.loads(line) for line in file]
    row = {key: value for part in last for key, value in part.items()}
    total = 10 * row["validation/l1"] + row["validation/supervised"]
    assert row["validation/l1+supervised"] == pytest.approx(total, rel=1e-5)
    assert 0 <= row["validation/source_roc_auc"] <= 1
    assert checkpoints.is_finished(chained[1])


def test_patients_that_any_stage_one_of_the_chain_saw_cannot_be_scored(chained):
    data = dataclasses.replace(DATA, train="phantom:infant:films=44", split_seed=3)
    split = divide_sources(data)
    swapped = dataclasses.replace(split, test=split.train)
    with pytest.raises(DataError, match="must not see the patients scored here"):
        transfer.check_scored(chained[1], swapped, ("test",), patient_ids="shared")


@pytest.mark.parametrize("objective", ["supervised+supervised", "supervised+gan", "", "l1+"])
def test_objectives_that_cannot_be_joined_are_refused(objective):
    config = pretrain_config.get_config()
    config.objective = objective
    with pytest.raises(settings.ConfigError, match="objective is"):
        settings.check(config)


def test_defaults_use_no_labels():
    for variant in ("cpu", "paper", "best"):
        assert supervised.NAME not in pretrain_config.get_config(variant).objective
    assert finetune_config.get_config("paper").pretrained == ""


def test_weights_of_another_input_scale_are_refused_in_stage_one(monkeypatch):
    spec = ModelSpec("resnet50", "float32", DATA.preprocessing)
    other = dataclasses.replace(spec, input_mean=0.0)
    monkeypatch.setattr(transfer, "with_input_scale", lambda *_: other)
    with pytest.raises(UserError, match="one input scale"):
        transfer.check_input_scale(spec, "torch:file.pth")
