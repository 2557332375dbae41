"""Which runs a study has, in which folders, with which settings and commands."""

import importlib
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import common
from configs import study as study_config
from data_pipeline.errors import UserError
from infantxray.commands import study
from infantxray.studies import commands, plan, recipes, timing


def make_config(**selections):
    config = study_config.get_config()
    config.study.encoders = ("shufflenet", "resnet50")
    config.study.seeds = (0, 1)
    for name, value in selections.items():
        config.study[name] = value
    return config


def make_runs(**selections):
    return plan_runs(make_config(**selections))


def plan_runs(config, folder="/study"):
    return study.make_plan(config, str(folder)).runs


def of(run):
    """The settings of a run, by attribute."""
    return ConfigDict(run.settings)


def test_stage_one_is_run_once_and_shared():
    runs = make_runs()
    by_task = {task: [c for c in runs if c.task == task] for task in ("pretrain", "finetune")}
    assert len(by_task["pretrain"]) == 2 * 2  # Encoders, seeds.
    assert len(by_task["finetune"]) == 2 * 3 * 2  # And variants.
    assert [run.index for run in runs] == list(range(len(runs)))
    for run in by_task["finetune"]:
        if run.name == "without_pretraining":
            assert run.needs == ()
            assert of(run).pretrained == ""
        else:
            (need,) = run.needs
            assert runs[need].index < run.index
            assert (runs[need].encoder, runs[need].seed) == (run.encoder, run.seed)
            assert of(run).pretrained == runs[need].folder
    assert len({run.folder for run in runs}) == len(runs)


def test_few_stages_one_take_turns():
    runs = make_runs(seeds=(0, 1, 2, 5, 7), pretrain_seeds=(3, 4), encoders=("resnet50",))
    assert [run.seed for run in runs if run.task == "pretrain"] == [3, 4]
    full = [run for run in runs if run.task == "finetune" and run.name == "full"]
    assert [run.seed for run in full] == [0, 1, 2, 5, 7]
    assert [runs[run.needs[0]].seed for run in full] == [3, 4, 3, 4, 3]


@pytest.mark.parametrize("changed", [False, True])
def test_recipes_draw_equally_many_images(changed):
    """The arms of docs/results.md, also where the command line changes their length."""
    config = study_config.get_config("best")
    config.finetune.train_steps = 188
    if changed:
        config.finetune.train_steps, config.finetune.batch_size = 300, 32
        config.finetune.labelled_fraction = 0.5
    images = {}
    for run in plan_runs(config):
        if run.task == "finetune":
            settings = of(run)
            teacher_batch = round(settings.batch_size * settings.labelled_fraction)
            drawn = settings.train_steps * settings.batch_size
            teaching = settings.self_training
            drawn += teaching.teachers * teaching.teacher_steps * teacher_batch
            images.setdefault(run.name, set()).add(drawn)
    arms = {"random", "paper", "masked", "random_self_training", "best"}
    assert images.keys() == arms | {"random_fine_tuned_teacher"}
    # To within half of a batch: a teacher's images need not fill whole batches of a student.
    expected, half = (300 * 32, 16) if changed else (188 * 64, 32)
    assert all(abs(drawn - expected) <= half for drawn in set.union(*images.values()))
    stage_one = [of(c) for c in plan_runs(config) if c.task == "pretrain"]
    assert {run.objective for run in stage_one} == {"l1", "masked_hog"}
    assert len({(run.train_steps, run.batch_size) for run in stage_one}) == 1


def test_other_teachers_draw_equally_many_images():
    config = study_config.get_config("ablation")
    config.finetune.train_steps = 188
    runs = {c.name: of(c) for c in plan_runs(config) if c.task == "finetune"}
    steps = {name: run.train_steps for name, run in runs.items()}
    # A teacher's 150 steps of 16 images are 37.5 of 64; a linear probe draws none.
    assert steps.pop("fine_tuned_teacher") == 150
    assert set(steps.values()) == {188}
    teachers = "fine_tuned_teacher.finetune.self_training.teachers"
    config.study.changes = f"{teachers}=2"
    with_two = plan_runs(config)
    assert {of(c).train_steps for c in with_two if c.name == "fine_tuned_teacher"} == {113}
    config.study.changes = f"{teachers}=9"
    with pytest.raises(UserError, match="of the variant fine_tuned_teacher alone draw more"):
        plan_runs(config)


def test_labels_alone_need_a_number_of_steps():
    config = study_config.get_config("best")
    config.finetune.train_steps, config.finetune.train_epochs = 0, 3.0
    with pytest.raises(UserError, match=r"needs config\.finetune\.train_steps, not train_epochs"):
        plan_runs(config)


def test_a_length_by_the_data_is_equal_in_all_arms():
    """Teachers count there too: `budget.by_data` takes their images off."""
    runs = [of(c) for c in plan_runs(study_config.get_config("best")) if c.task == "finetune"]
    assert {(run.train_steps, run.train_epochs) for run in runs} == {(0, 0.0)}


def test_runs_have_the_settings_of_the_study():
    config = make_config(label_fractions=(0.1, 1.0))
    config.data.image_size = 96
    config.data.split_seed = 7
    config.study.pretrain_data = "folder:/adults"
    config.finetune.optimizer.learning_rate = 0.01
    runs = plan_runs(config)
    for run in runs:
        assert of(run).task == run.task
        assert of(run).data.image_size == 96
        assert of(run).data.split_seed == 7
        assert of(run).seed == run.seed
        stage_one = run.task == "pretrain"
        assert of(run).data.train == ("folder:/adults" if stage_one else "phantom:infant")
    tuned = [run for run in runs if run.task == "finetune"]
    assert {of(run).data.label_fraction for run in tuned} == {0.1, 1.0}
    assert {of(run).optimizer.learning_rate for run in tuned} == {0.01}
    assert {of(run).age_head for run in tuned if run.name == "without_apn"} == {False}
    assert {of(run).age_head for run in tuned if run.name == "full"} == {True}
    # Labels play no part in stage one.
    assert len([run for run in runs if run.task == "pretrain"]) == 2 * 2


def test_every_seed_may_draw_its_own_labelled_patients():
    config = make_config(label_fractions=(0.1,), seeds=(0, 1, 2))
    shared = plan_runs(config)
    config.study.label_draw = "seed"
    drawn = plan_runs(config)
    for runs, seeds in ((shared, {0: 0, 1: 0, 2: 0}), (drawn, {0: 0, 1: 1, 2: 2})):
        tuned = [run for run in runs if run.task == "finetune"]
        assert len(tuned) == 3 * 3 * len(config.study.encoders)
        assert all(of(run).data.label_seed == seeds[run.seed] for run in tuned)
        # Stage one is the same for all: it has the labels for its probe alone.
        first = [run for run in runs if run.task == "pretrain"]
        assert {of(run).data.label_seed for run in first} == {0}


def test_variants_with_another_stage_one_get_runs_of_their_own():
    config = make_config(variants=("full", "sgd", "sgd_without_apn"))
    stage_one = {"optimizer": {"name": "sgd"}}
    config.variants.sgd = {"pretrained": True, "pretrain": stage_one, "finetune": {}}
    config.variants.sgd_without_apn = {
        "pretrained": True, "pretrain": stage_one, "finetune": {"age_head": False},
    }  # fmt: skip
    runs = plan_runs(config)
    first = [run for run in runs if run.task == "pretrain"]
    assert {run.name for run in first} == {"l1", "l1-optimizer.name=sgd"}
    assert len(first) == 2 * 2 * 2
    for run in runs:
        if run.name.startswith("sgd"):
            assert of(runs[run.needs[0]]).optimizer.name == "sgd"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
@pytest.mark.parametrize("size", ["cpu", "paper"])
def test_a_command_gives_the_settings_of_its_run(size, monkeypatch):
    """Parsed as main.py does, from the configuration file that it names."""
    config = study_config.get_config(size)
    config.study.encoders = ("shufflenet",)
    config.data.classes = ("mass", "normal")
    config.data.train = "manifest:/data/with space.csv"
    runs = plan_runs(config)
    for run in (runs[0], runs[6], runs[-1]):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", run.command[2:])  # Which ml_collections reads itself.
        values(run.command[2:])
        assert values.config.to_dict() == run.settings
        assert values.workdir == run.folder


def test_a_printed_command_is_short_and_quoted():
    config = make_config()
    config.data.train = "manifest:/data/with space.csv"
    run = plan_runs(config)[-1]
    text = commands.printed(run.command)
    assert text.startswith("python main.py --config=configs/finetune.py --workdir=/study/finetune")
    assert "'--config.data.train=manifest:/data/with space.csv'" in text
    assert "log_every_steps" not in text  # As in the file.


def test_selections():
    runs = make_runs()
    assert [run.index for run in plan.select(runs, "0-2,5")] == [0, 1, 2, 5]
    assert plan.select(runs, "") == list(runs)
    for text in ("a", "3-1", "-1", "0,,2", "1000"):
        with pytest.raises(UserError, match=r"config\.study\.cells"):
            plan.select(runs, text)


def test_names_may_be_separated_by_commas():
    runs = make_runs(encoders=("vgg19, shufflenet,",), variants=("full,without_apn",))
    assert [c.encoder for c in runs if c.task == "pretrain"] == ["vgg19"] * 2 + ["shufflenet"] * 2


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        ({"encoders": ()}, "config.study.encoders"),
        ({"encoders": ("resnet51",)}, "study.encoders names .resnet51.; there are vgg19"),
        ({"seeds": (1, 1)}, "each once"),
        ({"variants": ("fully",)}, "fully"),
        ({"label_fractions": (0.0,)}, "above 0"),
    ],
)
def test_selections_that_cannot_be_meant(selections, message):
    with pytest.raises(UserError, match=message):
        make_runs(**selections)


def test_a_setting_of_a_stage_that_cannot_be_meant():
    config = make_config()
    config.finetune.train_epochs = 2.0  # Beside train_steps.
    with pytest.raises(UserError, match=r"a finetune run of this study.*exactly one"):
        plan_runs(config)
    config = make_config(variants=("full",))
    config.variants.full = {"finetune": {"agehead": False}}
    with pytest.raises(UserError, match="sets agehead of finetune"):
        plan_runs(config)
    config.variants.full = {"finetune": {"age_head": "no"}}
    with pytest.raises(UserError, match=r"age_head of finetune to 'no'.*another type"):
        plan_runs(config)


def test_the_time_left_is_estimated_from_what_is_known(tmp_path):
    runs = plan_runs(make_config(frozen=False), tmp_path)
    assert timing.seconds_left(runs, runs, 1) is None

    def record(task, encoder, seconds):
        for run in runs:
            if (run.task, run.encoder, run.seed) == (task, encoder, 0):
                (tmp_path / run.folder).mkdir(parents=True, exist_ok=True)
                run.write_record({"seconds": seconds, "finished": True})

    def left(task, encoder):
        (run, *_) = [c for c in runs if (c.task, c.encoder) == (task, encoder)]
        return timing.seconds_left([run], runs, 1)

    record("pretrain", "shufflenet", 10.0)
    assert left("pretrain", "shufflenet") == 10.0
    assert left("pretrain", "resnet50") == 10.0  # Nothing better is known.
    record("pretrain", "resnet50", 40.0)
    record("finetune", "shufflenet", 20.0)
    assert left("finetune", "resnet50") == pytest.approx(80.0)  # Four times shufflenet's.
    assert timing.seconds_left(runs[:2], runs, 2) == 10.0


@pytest.mark.parametrize("name", study_config.VARIANTS)
def test_the_last_variant_is_what_others_are_compared_with(name):
    planned = study.make_plan(study_config.get_config(name), "/study")
    tuned = [run.name for run in planned.runs if run.task == "finetune"]
    last = {"cpu": "full", "paper": "full", "objectives": "masked_hog", "age": "none"}
    last |= {"transfer": "supervised_masked_hog", "converged": "full"}
    assert tuned[-1] == last.get(name, "best")
    recipe, _ = study_config.VARIANTS[name]
    assert list(dict.fromkeys(tuned)) == list(recipes.RECIPES[recipe])


def test_augmentation_is_switched_off_completely():
    changed = recipes.RECIPES["ablation"]["without_augmentation"].finetune["augment"]
    assert changed.keys() == set(common.augment())
    assert not any(changed.values())


def test_variants_are_changed_on_the_command_line():
    config = make_config(
        changes="full.finetune.age_weight=0.4, without_apn.finetune.optimizer.name=sgd,"
        "full.finetune.age_film=True,full.pretrain.train_steps=7"
    )
    found = {run.name: of(run) for run in plan_runs(config) if run.task == "finetune"}
    assert (found["full"].age_weight, found["full"].age_film) == (0.4, True)
    assert found["without_apn"].optimizer.name == "sgd"
    assert found["without_apn"].age_head is False
    assert found["full"].optimizer.name == found["without_pretraining"].optimizer.name == "adamw"
    learned = {run.name: of(run).train_steps for run in plan_runs(config) if run.task == "pretrain"}
    assert learned == {"l1": 100, "l1-train_steps=7": 7}


@pytest.mark.parametrize(
    "changes",
    [
        "full",
        "ful.finetune.age_weight=1",
        "full.evaluate.age_weight=1",
        "full.finetune.age_wait=1",
        "full.finetune.age_weight=much",
        "full.finetune.age_head=yes",
        "full.finetune.optimizer=1",
    ],
)
def test_changes_that_cannot_be_meant(changes):
    with pytest.raises(UserError, match=r"config\.study\.changes holds '" + changes):
        make_runs(changes=changes)


@pytest.mark.parametrize(
    ("name", "variants", "same_as"),
    [
        ("cpu", (), {"without_apn": "full"}),
        ("cpu", ("full", "without_apn"), {"without_apn": "full"}),
        ("cpu", ("without_pretraining", "full"), {}),
        ("best", (), {}),
        (
            "age",
            (),
            dict.fromkeys(("mse", "learned_weights", "distribution", "condition", "all"), "none"),
        ),
    ],
)
def test_without_ages_identical_variants_are_run_once(name, variants, same_as):
    config = study_config.get_config(name)
    config.study.variants = variants
    planned = study.make_plan(config, "/study", has_ages=False)
    assert planned.same_as == same_as
    every = study.make_plan(config, "/study")
    assert every.same_as == {}
    kept = [run.folder for run in every.runs if run.name not in same_as]
    assert [run.folder for run in planned.runs] == kept
    text = plan.describe(planned, set())
    for one, other in same_as.items():
        assert f"{one} is identical to {other}" in text


def test_sizes_are_those_of_the_stages():
    for size in ("cpu", "paper"):
        config = study_config.get_config(size)
        for task in ("pretrain", "finetune"):
            whole = importlib.import_module(f"configs.{task}").get_config(size)
            assert set(config[task]) | {
                "task",
                "encoder",
                "seed",
                "dtype",
                "data",
                "labels",
            } >= set(whole) - {"pretrained"}
            if size == "paper":
                assert config[task].batch_size == whole.batch_size
