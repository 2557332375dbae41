"""Which runs a study has, in which folders, with which settings and commands."""

import importlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import study as study_config
from data_pipeline.errors import UserError
from infantxray.studies import commands, plan, timing


def make_config(**selections):
    config = study_config.get_config()
    config.study.encoders = ("shufflenet", "resnet50")
    config.study.seeds = (0, 1)
    for name, value in selections.items():
        config.study[name] = value
    return config


def make_plan(**selections):
    return plan.make_plan(make_config(**selections), "/study")


def test_stage_one_is_run_once_and_shared():
    cells = make_plan()
    by_task = {task: [c for c in cells if c.task == task] for task in ("pretrain", "finetune")}
    assert len(by_task["pretrain"]) == 2 * 2  # Encoders, seeds.
    assert len(by_task["finetune"]) == 2 * 3 * 2  # And variants.
    assert [cell.index for cell in cells] == list(range(len(cells)))
    for cell in by_task["finetune"]:
        if cell.name == "without_pretraining":
            assert cell.needs == ()
            assert cell.config.pretrained == ""
        else:
            (need,) = cell.needs
            assert cells[need].index < cell.index
            assert (cells[need].encoder, cells[need].seed) == (cell.encoder, cell.seed)
            assert cell.config.pretrained == cells[need].folder
    assert len({cell.folder for cell in cells}) == len(cells)


def test_few_stages_one_take_turns():
    cells = make_plan(seeds=(0, 1, 2, 5, 7), pretrain_seeds=(3, 4), encoders=("resnet50",))
    assert [cell.seed for cell in cells if cell.task == "pretrain"] == [3, 4]
    full = [cell for cell in cells if cell.task == "finetune" and cell.name == "full"]
    assert [cell.seed for cell in full] == [0, 1, 2, 5, 7]
    assert [cells[cell.needs[0]].seed for cell in full] == [3, 4, 3, 4, 3]


@pytest.mark.parametrize("changed", [False, True])
def test_recipes_draw_equally_many_images(changed):
    """The arms of docs/results.md, also where the command line changes their length."""
    config = study_config.get_config("best")
    if changed:
        config.finetune.train_steps, config.finetune.batch_size = 300, 32
        config.finetune.labelled_fraction = 0.5
    images = {}
    for cell in plan.make_plan(config, "/study"):
        if cell.task == "finetune":
            run = cell.config
            teacher_batch = round(run.batch_size * run.labelled_fraction)
            drawn = run.train_steps * run.batch_size
            teaching = run.self_training
            drawn += teaching.teachers * teaching.teacher_steps * teacher_batch
            images.setdefault(cell.name, set()).add(drawn)
    arms = {"random", "paper", "masked", "random_self_training", "best"}
    assert images.keys() == arms | {"random_fine_tuned_teacher"}
    # To within half of a batch: a teacher's images need not fill whole batches of a student.
    expected, half = (300 * 32, 16) if changed else (188 * 64, 32)
    assert all(abs(drawn - expected) <= half for drawn in set.union(*images.values()))
    stage_one = [c.config for c in plan.make_plan(config, "/study") if c.task == "pretrain"]
    assert {run.objective for run in stage_one} == {"l1", "masked_hog"}
    assert len({(run.train_steps, run.batch_size) for run in stage_one}) == 1


def test_other_teachers_draw_equally_many_images():
    config = study_config.get_config("ablation")
    cells = {c.name: c.config for c in plan.make_plan(config, "/study") if c.task == "finetune"}
    steps = {name: run.train_steps for name, run in cells.items()}
    # A teacher's 150 steps of 16 images are 37.5 of 64; a linear probe draws none.
    assert steps.pop("fine_tuned_teacher") == 150
    assert set(steps.values()) == {188}
    teaching = config.variants.fine_tuned_teacher.finetune.self_training
    with config.unlocked():
        teaching.teachers = 2
    with_two = plan.make_plan(config, "/study")
    assert {c.config.train_steps for c in with_two if c.name == "fine_tuned_teacher"} == {113}
    teaching.teachers = 9
    with pytest.raises(UserError, match="of the variant fine_tuned_teacher alone draw more"):
        plan.make_plan(config, "/study")


def test_labels_alone_need_a_number_of_steps():
    config = study_config.get_config("best")
    config.finetune.train_steps, config.finetune.train_epochs = 0, 3.0
    with pytest.raises(UserError, match=r"needs config\.finetune\.train_steps, not train_epochs"):
        plan.make_plan(config, "/study")


def test_cells_are_ordinary_runs_with_the_settings_of_the_study():
    config = make_config(label_fractions=(0.1, 1.0))
    config.data.image_size = 96
    config.data.split_seed = 7
    config.study.pretrain_data = "folder:/adults"
    config.finetune.optimizer.learning_rate = 0.01
    cells = plan.make_plan(config, "/study")
    for cell in cells:
        assert cell.config.task == cell.task
        assert cell.config.data.image_size == 96
        assert cell.config.data.split_seed == 7
        assert cell.config.seed == cell.seed
        stage_one = cell.task == "pretrain"
        assert cell.config.data.train == ("folder:/adults" if stage_one else "phantom:infant")
    tuned = [cell for cell in cells if cell.task == "finetune"]
    assert {cell.config.data.label_fraction for cell in tuned} == {0.1, 1.0}
    assert {cell.config.optimizer.learning_rate for cell in tuned} == {0.01}
    assert {cell.config.age_head for cell in tuned if cell.name == "without_apn"} == {False}
    assert {cell.config.age_head for cell in tuned if cell.name == "full"} == {True}
    # Labels play no part in stage one.
    assert len([cell for cell in cells if cell.task == "pretrain"]) == 2 * 2


def test_every_seed_may_draw_its_own_labelled_patients():
    config = make_config(label_fractions=(0.1,), seeds=(0, 1, 2))
    shared = plan.make_plan(config, "/study")
    config.study.label_draw = "seed"
    drawn = plan.make_plan(config, "/study")
    for cells, seeds in ((shared, {0: 0, 1: 0, 2: 0}), (drawn, {0: 0, 1: 1, 2: 2})):
        tuned = [cell for cell in cells if cell.task == "finetune"]
        assert len(tuned) == 3 * 3 * len(config.study.encoders)
        assert all(cell.config.data.label_seed == seeds[cell.seed] for cell in tuned)
        # Stage one is the same for all: it has the labels for its probe alone.
        first = [cell for cell in cells if cell.task == "pretrain"]
        assert {cell.config.data.label_seed for cell in first} == {0}


def test_variants_with_another_stage_one_get_runs_of_their_own():
    config = make_config(variants=("full", "sgd", "sgd_without_apn"))
    stage_one = {"optimizer": {"name": "sgd"}}
    config.variants.sgd = {"pretrained": True, "pretrain": stage_one, "finetune": {}}
    config.variants.sgd_without_apn = {
        "pretrained": True, "pretrain": stage_one, "finetune": {"age_head": False},
    }  # fmt: skip
    cells = plan.make_plan(config, "/study")
    first = [cell for cell in cells if cell.task == "pretrain"]
    assert {cell.name for cell in first} == {"l1", "l1-optimizer.name=sgd"}
    assert len(first) == 2 * 2 * 2
    for cell in cells:
        if cell.name.startswith("sgd"):
            assert cells[cell.needs[0]].config.optimizer.name == "sgd"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # Of ml_collections.
@pytest.mark.parametrize("size", ["cpu", "paper"])
def test_a_command_gives_the_settings_of_its_cell(size, monkeypatch):
    """Parsed as main.py does, from the configuration file that it names."""
    config = study_config.get_config(size)
    config.study.encoders = ("shufflenet",)
    config.data.classes = ("mass", "normal")
    config.data.train = "manifest:/data/with space.csv"
    cells = plan.make_plan(config, "/study")
    for cell in (cells[0], cells[6], cells[-1]):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", cell.command[1:])  # Which ml_collections reads itself.
        values(cell.command[1:])
        assert values.config == cell.config
        assert values.workdir == cell.folder


def test_a_printed_command_is_short_and_quoted():
    config = make_config()
    config.data.train = "manifest:/data/with space.csv"
    cell = plan.make_plan(config, "/study")[-1]
    text = commands.printed(cell.command)
    assert text.startswith("python main.py --config=configs/finetune.py --workdir=/study/finetune")
    assert "'--config.data.train=manifest:/data/with space.csv'" in text
    assert "log_every_steps" not in text  # As in the file.


def test_selections():
    cells = make_plan()
    assert [cell.index for cell in plan.select(cells, "0-2,5")] == [0, 1, 2, 5]
    assert plan.select(cells, "") == cells
    for text in ("a", "3-1", "-1", "0,,2", "1000"):
        with pytest.raises(UserError, match=r"config\.study\.cells"):
            plan.select(cells, text)


def test_names_may_be_separated_by_commas():
    cells = make_plan(encoders=("vgg19, shufflenet,",), variants=("full,without_apn",))
    assert [c.encoder for c in cells if c.task == "pretrain"] == ["vgg19"] * 2 + ["shufflenet"] * 2


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
        make_plan(**selections)


def test_a_setting_of_a_stage_that_cannot_be_meant():
    config = make_config()
    config.finetune.train_epochs = 2.0  # Beside train_steps.
    with pytest.raises(UserError, match=r"a finetune run of this study.*exactly one"):
        plan.make_plan(config, "/study")
    config = make_config(variants=("full",))
    config.variants.full.finetune = {"agehead": False}
    with pytest.raises(UserError, match="sets agehead of finetune"):
        plan.make_plan(config, "/study")
    config.variants.full.finetune = {"age_head": "no"}
    with pytest.raises(UserError, match=r"age_head of finetune to 'no'.*another type"):
        plan.make_plan(config, "/study")


def test_the_time_left_is_estimated_from_what_is_known(tmp_path):
    cells = plan.make_plan(make_config(frozen=False), str(tmp_path))
    assert timing.seconds_left(cells, cells, 1) is None

    def record(task, encoder, seconds):
        for cell in cells:
            if (cell.task, cell.encoder, cell.seed) == (task, encoder, 0):
                (tmp_path / cell.folder).mkdir(parents=True, exist_ok=True)
                cell.write_record({"seconds": seconds, "finished": True})

    def left(task, encoder):
        (cell, *_) = [c for c in cells if (c.task, c.encoder) == (task, encoder)]
        return timing.seconds_left([cell], cells, 1)

    record("pretrain", "shufflenet", 10.0)
    assert left("pretrain", "shufflenet") == 10.0
    assert left("pretrain", "resnet50") == 10.0  # Nothing better is known.
    record("pretrain", "resnet50", 40.0)
    record("finetune", "shufflenet", 20.0)
    assert left("finetune", "resnet50") == pytest.approx(80.0)  # Four times shufflenet's.
    assert timing.seconds_left(cells[:2], cells, 2) == 10.0


@pytest.mark.parametrize("size", study_config.SIZES)
def test_the_last_variant_is_what_others_are_compared_with(size):
    config = study_config.get_config(size)
    assert sorted(config.study.variants) == sorted(config.variants)
    last = {"cpu": "full", "paper": "full", "objectives": "masked_hog", "age": "none"}
    assert config.study.variants[-1] == last.get(size, "best")


def test_sizes_are_those_of_the_stages():
    for size in ("cpu", "paper"):
        config = study_config.get_config(size)
        for task in ("pretrain", "finetune"):
            whole = importlib.import_module(f"configs.{task}").get_config(size)
            assert set(config[task]) | {"task", "encoder", "seed", "dtype", "data"} >= set(
                whole
            ) - {"pretrained"}
            if size == "paper":
                assert config[task].batch_size == whole.batch_size
