"""Both stages, evaluation and prediction, as a user runs them, on a few small images."""

import csv
import functools
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from quick_figures import quick_figures
from sklearn.linear_model import LogisticRegression
from small_encoder import small_encoder

from configs import evaluate as evaluate_config
from configs import finetune as finetune_config
from configs import predict as predict_config
from configs import pretrain as pretrain_config
from configs import probe as probe_config
from data_pipeline.dataset import DataSettings, Reader, open_split
from data_pipeline.decode import load_image
from data_pipeline.errors import UserError
from data_pipeline.splits import read_split
from infantxray.commands import evaluate, finetune, predict, pretrain, probe
from infantxray.evaluation import localisation
from infantxray.models import ENCODERS
from infantxray.models.diagnosis import DiagnosisModel
from infantxray.models.encoders import vgg
from infantxray.reports import run_report
from infantxray.runs import settings
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference, transfer
from infantxray.training import augment, checkpoints, loop
from infantxray.training.writers import read_history

# All in one process, so that the two runs which most tests look at are made once.
pytestmark = pytest.mark.xdist_group("end_to_end")

PHANTOM = "phantom:infant:films=60"
ENCODER = "small"


@pytest.fixture(scope="module", autouse=True)
def _small_encoder():
    with small_encoder():
        yield


@pytest.fixture(autouse=True)
def _quick_figures():
    """For all runs but those of the module's fixtures."""
    with quick_figures():
        yield


def small(config):
    config.encoder = ENCODER
    config.batch_size = 8
    config.data.image_size = 32
    config.train_steps = 4
    config.log_every_steps = 1
    config.eval_every_steps = 2
    config.checkpoint_every_steps = 2
    return config


def stage_one():
    config = small(pretrain_config.get_config())
    config.data.train = f"phantom:adult:films=60,{PHANTOM}"
    config.images_every_steps = 2
    config.probe_every_steps = 2
    config.probe_images = 32
    return config


def stage_two(pretrained="", *, quick=False):
    """With `quick`, without BatchNorm statistics, calibration and outlier detection."""
    config = small(finetune_config.get_config())
    config.data.train = PHANTOM
    config.pretrained = str(pretrained)
    config.bootstrap_samples = 20
    if quick:
        config.coverage = 0.0
        config.batch_norm_images = 0
    return config


def arrays(folder):
    """Everything in the latest checkpoint, as bytes by name."""
    step = checkpoints.checkpoint_steps(str(folder))[-1]
    with ocp.CheckpointManager(
        folder / "checkpoints", item_handlers={"state": ocp.PyTreeCheckpointHandler()}
    ) as manager:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            manager.item_metadata(step).state.tree,
        )
        restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
        state = manager.restore(step, args=ocp.args.Composite(state=restore)).state
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage_one")
    config = stage_one()
    settings.check(config)
    pretrain.run(config, str(folder))
    return folder


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, pretrained):
    folder = tmp_path_factory.mktemp("stage_two")
    config = stage_two(pretrained)
    settings.check(config)
    finetune.run(config, str(folder))
    return folder


def test_stage_one_leaves_what_it_promises(pretrained):
    assert {"config.json", "split.csv", "model.json", "checkpoints"} <= set(os.listdir(pretrained))
    tags = set().union(*(row.keys() for row in read_history(str(pretrained / "history.jsonl"))))
    assert {
        "train/loss",
        "train/l1",
        "train/learning_rate",
        "train/images_per_second",
        "validation/l1",
        "probe/accuracy",
        "probe/roc_auc",
    } <= tags
    panels = np.asarray(Image.open(pretrained / "figures" / "panels.png"))
    assert panels.std() > 0


def test_stage_one_leaves_the_test_patients_out(pretrained, finetuned):
    def patients(folder, split):
        with open(folder / "split.csv", newline="") as file:
            return {row["patient_id"] for row in csv.DictReader(file) if row["split"] == split}

    tested = patients(finetuned, "test")
    assert tested
    assert tested <= patients(pretrained, "test")
    assert not tested & patients(pretrained, "train")


def test_an_encoder_without_batchnorm_goes_through_both_stages(tmp_path, monkeypatch):
    """It has no statistics beside its parameters: the decoder's are there alone, or none."""
    plain = functools.partial(vgg.VGG, stages=(vgg.Stage(1, 8),) * 5)
    monkeypatch.setitem(ENCODERS, "plain", plain)
    config = stage_one()
    config.encoder = "plain"
    config.train_steps = 2
    pretrain.run(config, str(tmp_path / "one"))
    rows = read_history(str(tmp_path / "one" / "history.jsonl"))
    assert [row["step"] for row in rows if "probe/accuracy" in row] == [0, 2]
    config = stage_two(tmp_path / "one", quick=True)
    config.encoder = "plain"
    config.train_steps = 2
    finetune.run(config, str(tmp_path / "two"))
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["n"] > 0


def test_stage_two_leaves_what_it_promises(finetuned):
    metrics = json.loads((finetuned / "metrics.json").read_text())
    for name in ("n", "accuracy", "recall", "precision", "f1", "roc_auc", "age_mae_months"):
        assert isinstance(metrics[name], (int, float)), name
    assert {"per_class", "confusion_matrix", "age_bands", "ci95", "calibration"} <= metrics.keys()
    with open(finetuned / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["n"]
    probabilities = [[float(v) for k, v in row.items() if k.startswith("p_")] for row in rows]
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1.0, atol=1e-4)
    hits = sum(row["label"] == row["predicted"] for row in rows)
    assert metrics["accuracy"] == pytest.approx(hits / len(rows))
    assert len(np.array(metrics["confusion_matrix"])) == len(metrics["per_class"])
    page = (finetuned / "report.html").read_text()
    assert f"{metrics['accuracy']:.3f}" in page
    assert not re.search(r"(src|href)=['\"]https?:", page)
    for name in ("confusion_matrix", "roc", "learning_curves", "calibration", "saliency", "age"):
        assert (finetuned / "figures" / f"{name}.png").stat().st_size > 1000


def test_evaluating_again_gives_the_same_answer(finetuned, tmp_path, monkeypatch):
    for name in ("localisation", "examples", "mistakes"):  # As in the run itself.
        monkeypatch.setattr(run_report, name, getattr(localisation, name))
    config = evaluate_config.get_config()
    config.checkpoint = str(finetuned)
    config.bootstrap_samples = 20
    config.batch_size = 8  # As in training: another size rounds sums another way.
    settings.check(config)
    evaluate.run(config, str(tmp_path))
    tables = [path.relative_to(finetuned) for path in (finetuned / "tables").iterdir()]
    assert len(tables) > 9
    date = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    for name in ("predictions.csv", "metrics.json", *tables):
        first, second = ((folder / name).read_bytes() for folder in (tmp_path, finetuned))
        assert date.sub(b"", first) == date.sub(b"", second), name


@pytest.mark.parametrize(
    ("role", "what"), [("train", "was trained on 1"), ("validation", "was validated on 1")]
)
def test_evaluating_on_patients_of_the_run_is_refused(finetuned, tmp_path, role, what):
    with open(finetuned / "split.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["split"] == role)
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(image)
    manifest = tmp_path / "films.csv"
    manifest.write_text(f"image_path,patient_id,label\nfilm.png,{row['patient_id']},normal\n")
    config = evaluate_config.get_config()
    config.checkpoint = str(finetuned)
    config.data.test = f"manifest:{manifest}"
    with pytest.raises(UserError, match=f"{what} .*{re.escape(row['patient_id'])}"):
        evaluate.run(config, str(tmp_path / "out"))


def test_an_external_set_with_a_split_and_other_conditions(finetuned, tmp_path, caplog):
    """What is not scored is said: images of other parts, and conditions the model does not know."""
    caplog.set_level("INFO", logger="infantxray")
    rows = ["image_path,patient_id,label,split"]
    for i, (label, split) in enumerate(
        [("mass", "test"), ("Mass", "test"), ("", "test"), ("mass", "train"), ("mass", "")]
    ):
        Image.fromarray(np.full((32, 32), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,new{i},{label},{split}")
    (tmp_path / "films.csv").write_text("\n".join(rows) + "\n")
    config = evaluate_config.get_config()
    config.checkpoint, config.bootstrap_samples = str(finetuned), 20
    config.data.test = f"manifest:{tmp_path / 'films.csv'}"
    settings.check(config)
    evaluate.run(config, str(tmp_path / "part"))
    assert "scored: 3 of 5 images, the test part" in caplog.text
    assert "1 images of 'Mass' are left out of the diagnosis" in caplog.text
    found = json.loads((tmp_path / "part" / "metrics.json").read_text())
    assert (found["n"], found["n_with_condition"], found["n_without_patient_id"]) == (3, 1, 0)
    config.data.given_splits = "ignore"
    evaluate.run(config, str(tmp_path / "all"))
    assert json.loads((tmp_path / "all" / "metrics.json").read_text())["n"] == 5


def test_prediction_needs_images(finetuned, tmp_path):
    config = predict_config.get_config()
    config.checkpoint = str(finetuned)
    with pytest.raises(UserError, match="name the images"):
        predict.run(config, str(tmp_path))


def test_prediction_takes_a_folder_and_skips_what_is_no_image(finetuned, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (70, 50), np.uint8)).save(images / f"{i}.png")
    (images / "broken.png").write_bytes(b"no image")
    config = predict_config.get_config()
    config.checkpoint = str(finetuned)
    config.data.test = f"folder:{images}"
    config.data.on_error = "skip"
    settings.check(config)
    predict.run(config, str(tmp_path / "out"))
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["image_path"]) for row in rows] == ["0.png", "1.png", "2.png"]
    assert all(row["label"] == "" and row["predicted"] for row in rows)
    assert "broken.png" in (tmp_path / "out" / "bad_files.csv").read_text()


def stop_after(steps, monkeypatch):
    """Sends SIGTERM at that step of this process, and at every later one."""
    compiled = loop._Compilation.result
    left = [steps]

    def compile_and_count(compilation):
        step = compiled(compilation)

        def wrapped(state, batch, key):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch, key)

        return wrapped

    monkeypatch.setattr(loop._Compilation, "result", compile_and_count)


def test_a_stopped_run_goes_on_to_bit_identical_parameters(tmp_path, pretrained, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    config = stage_two(pretrained)
    config.ema_decay = 0.9
    finetune.run(config, str(straight))

    stop_after(3, monkeypatch)
    with pytest.raises(loop.Interrupted, match="step 3 of 4"):
        finetune.run(config, str(stopped))
    monkeypatch.undo()
    finetune.run(config, str(stopped))
    assert arrays(stopped) == arrays(straight)
    for name in ("predictions.csv", "metrics.json"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def test_self_training_goes_on_wherever_it_was_stopped(tmp_path, pretrained, monkeypatch):
    """Teacher and student in one command, with every switch of stage two that is off by default."""
    config = stage_two(pretrained, quick=True)
    config.self_training.teacher_steps = 1
    config.self_training.teachers = 2
    config.self_training.rounds = 2
    config.train_steps = 4
    config.consistency = 0.5
    config.batch_size = 16
    config.data.label_fraction = 0.5
    config.age_loss = "distribution"
    config.age_weighting = "uncertainty"
    config.age_film = True
    config.layer_decay = 0.7
    config.augment.erase = 0.5
    settings.check(config)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finetune.run(config, str(straight))
    answers = np.load(straight / "teachers" / "soft_labels.npy")
    np.testing.assert_allclose(answers.sum(1), 1.0, atol=1e-5)
    with open(straight / "split.csv", newline="") as file:
        train = [row for row in csv.DictReader(file) if row["split"] == "train"]
    assert len(answers) == len(train)
    assert 0 < sum(row["label"] == "" for row in train) < len(train)
    tags = set().union(*(row.keys() for row in read_history(str(straight / "history.jsonl"))))
    assert {"train/age_distribution", "train/weight_cross_entropy", "train/consistency"} <= tags
    # The two students share the four steps, and the second learns from the first.
    assert checkpoints.checkpoint_steps(str(straight))[-1] == 2
    student = straight / "teachers" / "student1"
    assert checkpoints.checkpoint_steps(str(student))[-1] == 2
    second = np.load(straight / "teachers" / "soft_labels_2.npy")
    spec = ModelSpec.read(str(straight))
    reader = Reader(settings.data_settings(config), spec.classes)
    predictor = inference.Predictor(spec, batch_size=16, num_threads=1)
    found, _ = predictor(
        inference.restore(str(student), spec)[0], reader(read_split(straight / "split.csv").train)
    )
    np.testing.assert_array_equal(found.probabilities.astype(np.float32), second)

    # Each attempt makes one step: one of each teacher, then those of the students.
    for _ in range(4):
        stop_after(1, monkeypatch)
        with pytest.raises(loop.Interrupted):
            finetune.run(config, str(stopped))
        monkeypatch.undo()
        if (stopped / "teachers" / "soft_labels_2.npy").exists():
            break
    finetune.run(config, str(stopped))
    np.testing.assert_array_equal(np.load(stopped / "teachers" / "soft_labels.npy"), answers)
    assert arrays(stopped) == arrays(straight)
    assert (stopped / "metrics.json").read_bytes() == (straight / "metrics.json").read_bytes()


def test_a_finished_run_stops_at_once(finetuned, pretrained, monkeypatch):
    before = (finetuned / "report.html").stat().st_mtime_ns
    monkeypatch.setattr(loop, "fit", None)  # Calling it would fail.
    finetune.run(stage_two(pretrained), str(finetuned))
    pretrain.run(stage_one(), str(pretrained))
    assert (finetuned / "report.html").stat().st_mtime_ns == before


def test_other_settings_in_the_same_workdir_are_refused(finetuned, pretrained):
    config = stage_two(pretrained)
    config.age_weight = 0.5
    with pytest.raises(UserError, match=r"age_weight \(0\.8 -> 0\.5\)"):
        finetune.run(config, str(finetuned))


def test_a_stage_one_of_another_encoder_is_refused(pretrained, tmp_path):
    config = stage_two(pretrained)
    config.encoder = "mobilenet_v2"
    with pytest.raises(UserError, match=r"small.*mobilenet_v2"):
        finetune.run(config, str(tmp_path / "run"))


def test_stage_one_on_the_test_patients_is_refused(pretrained, tmp_path):
    config = stage_two(pretrained)
    # The patients that stage one trained on, offered as test patients.
    with open(pretrained / "split.csv", newline="") as file:
        seen = [row["patient_id"] for row in csv.DictReader(file) if row["split"] == "train"]
    manifest = tmp_path / "films.csv"
    manifest.write_text(
        "image_path,patient_id,label,split,age_months\n"
        + "".join(f"a{i}.png,{patient},normal,test,3\n" for i, patient in enumerate(seen))
        + "".join(f"b{i}.png,new{i},{'mass' if i % 2 else 'normal'},,{i}\n" for i in range(20))
    )
    config.data.train = f"manifest:{manifest}"
    with pytest.raises(UserError, match="stage one must not see"):
        finetune.run(config, str(tmp_path / "run"))
    frozen = probe_config.get_config()
    frozen.encoder, frozen.pretrained = ENCODER, str(pretrained)
    frozen.data.train, frozen.data.image_size = config.data.train, 32
    with pytest.raises(UserError, match="stage one must not see"):
        probe.run(frozen, str(tmp_path / "probe"))


def test_images_without_ages_are_learned_without_the_age_head(tmp_path, caplog):
    """The settings as they stand run on data of which no age is known."""
    manifest = tmp_path / "films.csv"
    manifest.write_text(
        "image_path,patient_id,label\n"
        + "".join(f"{i}.png,p{i},{'mass' if i % 2 else 'normal'}\n" for i in range(40))
    )
    config = stage_two()
    config.data.train = f"manifest:{manifest}"
    (tmp_path / "run").mkdir()
    data = settings.build(DataSettings, config.data)
    split = open_split(data, str(tmp_path / "run"))
    assert not finetune._specify(config, data, split).has_age
    assert "no AgePredictionNet: 0 training images have a known age" in caplog.text
    config.age_film = True
    with pytest.raises(UserError, match="age_head=False"):
        finetune._specify(config, data, split)


def test_ages_alone_can_be_learned(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image_path,patient_id,age_months"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(images / f"{i}.png")
        lines.append(f"images/{i}.png,p{i},{i * 3}")
    manifest = tmp_path / "films.csv"
    manifest.write_text("\n".join(lines) + "\n")
    config = stage_two(quick=True)
    config.data.train = f"manifest:{manifest}"
    config.best_metric = "age_mae_months"
    finetune.run(config, str(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["age_mae_months"] > 0
    assert metrics["accuracy"] is None
    assert "condition head" in metrics["not_computed"]["accuracy"]


def test_a_linear_probe_teaches(tmp_path, pretrained, caplog):
    """What it says equals a probe that is fitted on the same images here, by another solver."""
    caplog.set_level("INFO", logger="infantxray")
    config = stage_two(pretrained, quick=True)
    config.self_training.linear_probe = True
    config.mixup = 0.4
    config.batch_size = 16
    config.data.label_fraction = 0.5
    for name in config.augment:
        config.augment[name] = type(config.augment[name])(0)
    settings.check(config)
    finetune.run(config, str(tmp_path / "run"))
    assert "teacher: a linear probe of" in caplog.text
    answers = np.load(tmp_path / "run" / "teachers" / "soft_labels.npy")

    spec = ModelSpec.read(str(tmp_path / "run"))
    model = inference.build_model(spec)
    variables = inference.init_variables(model, spec.preprocessing.image_size, jax.random.key(0))
    variables = transfer.start_from(str(pretrained), spec.encoder, variables)
    train = read_split(tmp_path / "run" / "split.csv").train
    images = np.stack([load_image(path, spec.preprocessing) for path in train.image_path])
    x = augment.normalise(augment.to_intensity(jnp.asarray(images)[..., None]))
    latent = model.apply(variables, x, method=DiagnosisModel.latent)
    values = np.asarray(latent, np.float64).mean((1, 2))
    known = train.has_label
    mean, std = values[known].mean(0), values[known].std(0) + 1e-6
    fitted = LogisticRegression(C=1 / known.sum(), tol=1e-8, max_iter=3000)  # L2 of 1.
    fitted.fit((values[known] - mean) / std, train.label[known])
    order = [list(fitted.classes_).index(name) for name in spec.classes]
    expected = fitted.predict_proba((values - mean) / std)[:, order]
    np.testing.assert_allclose(answers, expected, atol=0.01)
