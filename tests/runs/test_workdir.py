import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import finetune, pretrain
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError
from infantxray.runs import workdir
from infantxray.runs.model_spec import ModelSpec
from infantxray.runs.settings import to_dict


def test_the_same_command_may_come_again(tmp_path):
    folder = str(tmp_path / "new" / "run")
    workdir.prepare(folder, to_dict(finetune.get_config()))
    workdir.prepare(folder, to_dict(finetune.get_config()))
    saved = workdir.read_config(folder)
    assert saved["task"] == "finetune"
    assert saved["data"]["image_size"] == 64
    assert saved["optimizer"]["learning_rate"] == finetune.get_config().optimizer.learning_rate


def test_tuples_and_types_survive_the_comparison(tmp_path):
    config = finetune.get_config()
    config.data.classes = ("mass", "normal")
    workdir.prepare(str(tmp_path), to_dict(config))
    workdir.prepare(str(tmp_path), to_dict(config))
    assert workdir.read_config(str(tmp_path))["data"]["classes"] == ["mass", "normal"]


@pytest.fixture(params=["checkpoints/50/state", "metrics.json", "teachers/0/checkpoints/9/state"])
def result(request):
    """A file that a run has once it has come to something."""
    return request.param


def test_another_setting_is_refused_and_named(tmp_path, result):
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    before = (tmp_path / "config.json").read_text()
    changed = finetune.get_config()
    changed.optimizer.learning_rate = 0.5
    changed.batch_size = 8
    with pytest.raises(UserError) as caught:
        workdir.prepare(str(tmp_path), to_dict(changed))
    message = str(caught.value)
    usual = finetune.get_config()
    assert f"batch_size ({usual.batch_size} -> 8)" in message
    assert f"optimizer.learning_rate ({usual.optimizer.learning_rate} -> 0.5)" in message
    assert "another --workdir" in message
    assert (tmp_path / "config.json").read_text() == before
    changed.seed, changed.data.resize = 5, "crop"
    with pytest.raises(UserError, match="and 1 more"):
        workdir.prepare(str(tmp_path), to_dict(changed))


def test_a_run_that_came_to_nothing_is_forgotten(tmp_path):
    """Over a mistyped path, say: the right one is another setting."""
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    (tmp_path / "split.csv").write_text("of the wrong data")
    (tmp_path / "events.out.1").touch()
    (tmp_path / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir(parents=True)
    changed = finetune.get_config()
    changed.data.train = "manifest:/data/right.csv"
    assert workdir.changed_settings(str(tmp_path), to_dict(changed)) == []
    workdir.prepare(str(tmp_path), to_dict(changed))
    assert workdir.read_config(str(tmp_path))["data"]["train"] == "manifest:/data/right.csv"
    assert not (tmp_path / "split.csv").exists()
    assert not (tmp_path / "events.out.1").exists()


LEFT = (
    "split.csv.sha256", "bad_files.1.csv", "SHA256SUMS", "trust.json", "trust.npz",
    "operating_points.json", "reconstruction.json", "teachers/soft_labels.npy",
    "teachers/soft_labels_2.npy", "teachers/soft_labels.json", "teachers/SHA256SUMS",
    "teachers/0/model.json", "teachers/student1/history.jsonl", "predictions.csv.partial",
    "json/000001_a.json", "dicom/000001_a_report.dcm",
)  # fmt: skip
MINE = ("author.yaml", "json/mine.json", "dicom/mine.dcm", "notes.txt")


def test_nothing_of_a_run_that_came_to_nothing_reaches_the_next_one(tmp_path):
    """A teacher's labels, say: it may have seen labels that the next run does without."""
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    for name in (*LEFT, *MINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    changed = finetune.get_config()
    changed.data.label_fraction = 0.1
    workdir.prepare(str(tmp_path), to_dict(changed))
    assert [name for name in LEFT if (tmp_path / name).exists()] == []
    assert all((tmp_path / name).exists() for name in MINE)


def test_a_model_of_another_task_is_not_to_be_deleted(tmp_path, result):
    """Such as with the checkpoint of `predict` as its workdir."""
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    with pytest.raises(UserError, match="holds a run of another task, finetune; choose") as caught:
        workdir.prepare(str(tmp_path), to_dict(pretrain.get_config()))
    assert "delete" not in str(caught.value)


def test_another_task_and_another_process_are_kept_out(tmp_path):
    workdir.prepare(str(tmp_path / "one"), to_dict(finetune.get_config()))
    with pytest.raises(UserError, match="another task, finetune"):
        workdir.prepare(str(tmp_path / "one"), to_dict(pretrain.get_config()))
    script = (
        "import sys; from configs import finetune; from infantxray.runs import settings, workdir; "
        "workdir.prepare(sys.argv[1], settings.to_dict(finetune.get_config())); "
        "print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "two")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another process uses"):
            workdir.prepare(str(tmp_path / "two"), to_dict(finetune.get_config()))
        other.communicate("\n")
    workdir.prepare(str(tmp_path / "two"), to_dict(finetune.get_config()))


def test_files_that_are_not_of_a_run_are_kept(tmp_path):
    (tmp_path / "split.csv").write_text("mine")
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    assert (tmp_path / "split.csv").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="was not written by this program"):
        workdir.prepare(str(other), to_dict(finetune.get_config()))
    assert (other / "config.json").read_text() == '{"mine": 1}'


def test_settings_that_do_not_change_the_result_may_change(tmp_path):
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    (tmp_path / "metrics.json").touch()
    changed = finetune.get_config()
    changed.data.on_error = "skip"
    changed.log_every_steps = 1
    changed.data.num_threads = 1
    changed.data.cache = "/cache"
    changed.data.memory_mb = 0
    workdir.prepare(str(tmp_path), to_dict(changed))
    assert workdir.read_config(str(tmp_path))["data"]["cache"] == "/cache"


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match=r"not the workdir of a run: it has no config\.json"):
        workdir.read_config(str(tmp_path))
    with pytest.raises(UserError, match=r"it has no model\.json"):
        ModelSpec.read(str(tmp_path))
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        workdir.read_config(str(tmp_path))


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("vgg19", "float32", Preprocessing(image_size=64)),
        ModelSpec(
            "resnet50",
            "bfloat16",
            Preprocessing(image_size=96, resize="crop", trim_borders=True),
            ("normal", "Söhne, & <b>"),
            17.123456789012345,
            8.1,
        ),
    ],
)
def test_spec_round_trip(tmp_path, spec):
    spec.write(str(tmp_path))
    assert ModelSpec.read(str(tmp_path)) == spec
    assert json.loads((tmp_path / "model.json").read_text())["encoder"] == spec.encoder


def test_home_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = ModelSpec("vgg19", "float32", Preprocessing(image_size=64))
    spec.write(str(tmp_path))
    assert ModelSpec.read("~") == spec


def test_nothing_half_written_is_left(tmp_path):
    workdir.prepare(str(tmp_path), to_dict(finetune.get_config()))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "run.lock"}
