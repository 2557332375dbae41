import copy
import re

import pytest

from configs import evaluate, finetune, label_efficiency, predict, pretrain, probe, study
from data_pipeline.errors import UserError
from infantxray.evaluation.metrics import HEADLINES
from infantxray.runs import settings
from infantxray.runs.settings import ConfigError, check
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.stage_two import supervised


def config(**values):
    """Stage two with some other values; `data__image_size` is `data.image_size`."""
    result = copy.deepcopy(finetune.get_config())
    for name, value in values.items():
        *groups, key = name.split("__")
        node = result
        for group in groups:
            node = node[group]
        assert key in node, name
        node[key] = value
    return result


def test_the_configs_as_they_stand_pass():
    for module in (pretrain, finetune):
        check(module.get_config())
        check(module.get_config("paper"))
        check(module.get_config("best"))


# One bad value at each side of every rule, and one value at its edge that is allowed.
BAD = {
    "resume": ["first"],
    "task": ["train", ""],
    "seed": [-1],
    "dtype": ["float16"],
    "batch_size": [0, -4],
    "accumulate_steps": [0],
    "train_steps": [-1],
    "train_epochs": [-0.5, float("nan"), float("inf")],
    "log_every_steps": [0],
    "eval_every_steps": [0],
    "checkpoint_every_steps": [0],
    "age_weight": [-0.1, float("nan")],
    "encoder_learning_rate_factor": [-1.0],
    "optimizer__factor_without_batchnorm": [0.0, -1.0],
    "age_loss": ["mae"],
    "age_weighting": ["learned"],
    "layer_decay": [0.0, 1.1],
    "self_training__teacher_steps": [-1],
    "labelled_fraction": [0.0, 1.0],
    "self_training__teachers": [0],
    "self_training__rounds": [0],
    "mixup": [-0.1],
    "consistency": [-1.0],
    "class_weights": ["inverse"],
    "batch_norm_images": [-1],
    "ema_decay": [-0.1, 1.0],
    "best_metric": ["auc"],
    "early_stopping_evals": [-1],
    "bootstrap_samples": [-1],
    "operating_points": ["sensitivity", "sensitivity:1", "specificity:0", "youden,youden", "best"],
    "prevalence": ["1", "0", "0.0", "ten"],
    "subgroups": ["sex,sex"],
    "coverage": [-0.1, 1.0],
    "optimizer__name": ["adam"],
    "optimizer__learning_rate": [0.0, -1e-3, float("inf")],
    "optimizer__warmup_fraction": [-0.1, 1.0],
    "optimizer__weight_decay": [-1e-4],
    "optimizer__clip_norm": [-1.0],
    "augment__rotation_degrees": [-1.0, 181.0],
    "augment__scale": [-0.1, 1.0],
    "augment__shift": [-0.1, 1.0],
    "augment__contrast": [-0.1, 1.0],
    "augment__brightness": [-0.1, 1.0],
    "augment__gamma": [-0.1],
    "augment__noise": [-0.1],
    "augment__erase": [-0.1, 1.1],
    "labels": ["several", ""],
    "condition_on": ["age", "sex,sex", "sex view"],
    "data__uncertain": ["ones"],
    "data__image_size": [0, 16, 100, -32],
    "data__resize": ["stretch"],
    "data__validation_fraction": [-0.1, 1.0],
    "data__test_fraction": [-0.1, 1.0],
    "data__patient_ids": ["both"],
    "data__given_splits": ["drop"],
    "data__label_fraction": [0.0, 1.5],
    "data__label_seed": [-1],
    "data__on_error": ["ignore"],
    "data__num_threads": [0],
}
GOOD = {
    "batch_size": [1],
    "age_weight": [0.0],
    "encoder_learning_rate_factor": [0.0],
    "age_loss": ["distribution"],
    "age_weighting": ["uncertainty"],
    "layer_decay": [0.5, 1.0],
    "self_training__teacher_steps": [100],
    "class_weights": ["balanced"],
    "early_stopping_evals": [1],
    "ema_decay": [0.0, 0.9999],
    "batch_norm_images": [0, 500],
    "bootstrap_samples": [0],
    "coverage": [0.0, 0.95],
    "optimizer__name": ["sgd"],
    "optimizer__clip_norm": [0.0],
    "augment__rotation_degrees": [0.0, 180.0],
    "labels": ["multi"],
    "condition_on": ["sex", "view,sex"],
    "data__uncertain": ["positive", "negative"],
    "data__image_size": [32, 224],
    "data__label_fraction": [0.01, 1.0],
    "data__test_fraction": [0.0],
    "data__resize": ["crop", "squash"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in BAD.items() for v in vs])
def test_impossible_values_are_refused_in_one_line_with_what_is_allowed(key, value):
    with pytest.raises(ConfigError) as caught:
        check(config(**{key: value}))
    message = str(caught.value)
    assert message.startswith(f"config.{key.replace('__', '.')} is {value!r}; it must be ")
    assert "\n" not in message
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in GOOD.items() for v in vs])
def test_values_at_the_edge_are_allowed(key, value):
    check(config(**{key: value}))


def test_every_rule_is_tested():
    stage_one = {"objective", "images_every_steps", "probe_every_steps", "probe_images"}
    stage_one |= {"denoise__noise", "masking__fraction", "masking__patch_size", "views__blur"}
    stage_one |= {"teacher_momentum", "supervised__labels", "supervised__age_weight"}
    stage_one |= {f"weights__{name}" for name in settings.OBJECTIVES}
    views = {
        key.replace("augment", name)
        for name in ("views", "supervised__augment")
        for key in BAD
        if key.startswith("augment__")
    }
    others = {"study__size", "study__parallel_cells", "study__label_draw", "train_films"}
    others |= {"draws", "label_fractions", "permutations", "augmentations"}
    rules = {key.replace(".", "__") for key in settings._RULES}
    assert rules == BAD.keys() | stage_one | views | others


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", "l2"),
        ("teacher_momentum", 1.0),
        ("supervised.labels", "both"),
        ("supervised.age_weight", -1.0),
        ("supervised.augment.noise", -0.1),
        ("weights.l1", 0.0),
        ("images_every_steps", 0),
        ("probe_every_steps", -1),
        ("probe_images", 0),
        ("denoise.noise", 0.0),
        ("masking.fraction", 0.0),
        ("masking.fraction", 1.0),
        ("masking.patch_size", 12),
        ("views.blur", -0.1),
        ("views.scale", 1.0),
    ],
)
def test_rules_of_stage_one(key, value):
    changed = pretrain.get_config()
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=f"config.{key} is {value!r}"):
        check(changed)


@pytest.mark.parametrize(
    ("module", "key", "value"),
    [
        (study, "study.size", "small"),
        (study, "study.parallel_cells", 0),
        (study, "study.label_draw", "patient"),
        (probe, "train_films", 0),
        (label_efficiency, "draws", 0),
        (label_efficiency, "label_fractions", (0.0, 1.0)),
    ],
)
def test_rules_of_other_tasks(module, key, value):
    changed = module.get_config()
    check(changed)
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=re.escape(f"config.{key} is {value!r}")):
        check(changed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_epochs": 2.0}, r"exactly one of .*train_steps \(\d+\) and .*train_epochs \(2\)"),
        ({"batch_size": 6, "accumulate_steps": 4}, r"batch_size \(6\) must be a multiple of .*4"),
        (
            {"data__validation_fraction": 0.5, "data__test_fraction": 0.5},
            r"leave nothing to train on \(0\.5 \+ 0\.5\)",
        ),
        ({"best_metric": "age_mae_months", "age_head": False}, r"needs config\.age_head=True"),
        (
            {"self_training__linear_probe": True, "self_training__teacher_steps": 10},
            "either a linear probe or fine-tuned",
        ),
        (
            {"self_training__linear_probe": True, "self_training__teachers": 2},
            "a linear probe is one",
        ),
        ({"self_training__rounds": 2}, "needs a first teacher"),
        ({"self_training__linear_probe": True, "batch_size": 1}, r"batch_size is 1; .*at least 2"),
        ({"mixup": 0.4, "age_film": True}, "mixes images of two ages"),
        ({"mixup": 0.4, "condition_on": "sex"}, "mixes images of two ages"),
        ({"encoder": "resnet51"}, r"config\.encoder is 'resnet51'; .*resnet50"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    with pytest.raises(ConfigError, match=message):
        check(config(**values))


def test_a_patch_must_leave_something_to_see():
    changed = pretrain.get_config()
    changed.masking.patch_size = changed.data.image_size = 32
    with pytest.raises(ConfigError, match=r"patch_size \(32\) must be below .*image_size \(32\)"):
        check(changed)


def test_epochs_instead_of_steps():
    check(config(train_steps=0, train_epochs=0.5))


def test_where_stage_two_starts_from(tmp_path):
    with pytest.raises(ConfigError, match=r"no stage-one checkpoint in .*configs/pretrain\.py"):
        check(config(pretrained=str(tmp_path)))
    (tmp_path / "checkpoints").mkdir()
    check(config(pretrained=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"the file .*w\.pth does not exist"):
        check(config(pretrained=f"torch:{tmp_path}/w.pth"))
    (tmp_path / "w.pth").touch()
    check(config(pretrained=f"torch:{tmp_path}/w.pth"))


@pytest.mark.parametrize("module", [evaluate, predict])
def test_what_is_evaluated_must_be_there(module, tmp_path, monkeypatch):
    changed = module.get_config()
    changed.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.checkpoint: the folder .*nowhere does not"):
        check(changed)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    changed.checkpoint = "~/run"
    check(changed)


def test_a_comma_may_belong_to_a_checkpoint(tmp_path):
    changed = predict.get_config()
    for name in ("my run, v2", "other"):
        (tmp_path / name).mkdir()
    whole, other = str(tmp_path / "my run, v2"), str(tmp_path / "other")
    escaped = whole.replace(",", "\\,")
    for text, places in (
        (whole, [whole]),
        (escaped, [whole]),
        (f"{other},{escaped}, {other}", [other, whole, other]),
    ):
        changed.checkpoint = text
        check(changed)
        assert settings.checkpoints(changed) == places
    changed.checkpoint = f"{other},{whole}"
    with pytest.raises(ConfigError, match=r"my run does not exist.*write a comma in a path as"):
        check(changed)
    assert settings.compared_encoders(f"random,a={escaped}") == {
        "random": ("random",),
        "a": (whole,),
    }


def test_names_agree_with_what_they_name():
    assert set(settings.OBJECTIVES) == OBJECTIVES.keys() | {supervised.NAME}
    assert set(pretrain.weights()) == set(settings.OBJECTIVES)
    assert set(settings.BEST_METRICS) == {*HEADLINES, "loss"}
