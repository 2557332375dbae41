import csv
import json
import re

import numpy as np
import pytest
from frozen_features import Tiny
from PIL import Image

from configs import label_efficiency as label_efficiency_config
from configs import pretrain as pretrain_config
from data_pipeline.dataset import DataSettings, Reader, divide_sources
from data_pipeline.decode import Preprocessing
from data_pipeline.division import keep_labels
from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from data_pipeline.splits import read_split
from infantxray.commands import label_efficiency, pretrain
from infantxray.evaluation.metrics import classification
from infantxray.features.extraction import Extractor, pixels, read_features
from infantxray.models import encoders
from infantxray.runs import settings
from infantxray.runs.settings import ConfigError, compared_encoders

# In one process, so that fixtures are made once.
pytestmark = pytest.mark.xdist_group("label_efficiency")


def small_config(config, monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "tiny", Tiny)
    config.encoder = "tiny"
    config.data.train = "phantom:infant:films=150"
    config.data.image_size = 32
    config.data.test_fraction = 0.3
    config.batch_size = 8
    return config


@pytest.fixture
def config(monkeypatch):
    config = small_config(label_efficiency_config.get_config(), monkeypatch)
    config.label_fractions = (0.5, 1.0)
    config.draws = 3
    config.bootstrap_samples = 20
    return config


def read_draws(folder):
    with open(folder / "draws.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_encoder_is_probed_on_the_same_draws(config, tmp_path):
    label_efficiency.run(config, str(tmp_path))
    rows = read_draws(tmp_path)
    assert [row["encoder"] for row in rows] == ["pixels"] * 4 + ["random"] * 4
    counts = [row["images"] for row in rows]
    assert counts[:4] == counts[4:]
    # The draws are those of data.label_seed, and so those of studies.
    split = read_split(tmp_path / "split.csv")
    expected = [keep_labels(split.train, 0.5, config.data.split_seed, draw) for draw in range(3)]
    assert counts[:3] == [str(kept.has_label.sum()) for kept in expected]
    assert counts[3] == str(split.train.has_label.sum())
    summary = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("pixels", "random"):
        own = [float(r["roc_auc"]) for r in rows if (r["encoder"], r["draw"]) == (name, r["draw"])]
        assert summary[name]["0.5"]["roc_auc"]["mean"] == pytest.approx(np.mean(own[:3]), abs=1e-6)
        assert summary[name]["1"]["roc_auc"]["mean"] == pytest.approx(own[3], abs=1e-6)
        errors = [float(r["age_mae_months"]) for r in rows if r["encoder"] == name]
        assert summary[name]["0.5"]["age_mae_months"]["mean"] == pytest.approx(
            np.mean(errors[:3]), abs=1e-6
        )
    page = (tmp_path / "report.html").read_text()
    assert "Age MAE, months by share of labels" in page
    assert re.search(r"50% of the labels: \w+ has the highest ROC AUC \(0\.\d{3}\)\.", page)
    assert re.search(
        r"random (cannot be told from|is worse than) pixels \(after correction\)", page
    )
    assert "random − pixels" in page
    assert "All runs" not in page
    before = (tmp_path / "report.html").stat().st_mtime_ns
    label_efficiency.run(config, str(tmp_path))  # Finished: nothing to do.
    assert (tmp_path / "report.html").stat().st_mtime_ns == before


def test_pixels_are_those_of_independent_probes(config, tmp_path):
    from sklearn.linear_model import LogisticRegression, Ridge

    from data_pipeline.decode import Preprocessing, load_image

    config.encoders = "pixels"
    config.label_fractions = (1.0,)
    label_efficiency.run(config, str(tmp_path))
    split = read_split(tmp_path / "split.csv")
    how = Preprocessing(image_size=32)
    train, test = (
        np.stack([load_image(path, how).ravel() for path in part.image_path]).astype(np.float64)
        for part in (split.train, split.test)
    )
    mean, std = train.mean(0), train.std(0) + 1e-6
    classes = sorted(set(split.train.label))
    fitted = LogisticRegression(C=1 / (1e-2 * len(train)), tol=1e-6, max_iter=3000)
    # The solution lies in the span of the training images, which are fewer than the pixels.
    span = np.linalg.svd((train - mean) / std, full_matrices=False)[2].T
    fitted.fit((train - mean) / std @ span, split.train.label)
    label = np.array([classes.index(name) for name in split.test.label])
    expected = classification(fitted.predict_proba((test - mean) / std @ span), label)["roc_auc"]
    found = read_draws(tmp_path)[0]
    assert float(found["roc_auc"]) == pytest.approx(expected, abs=0.01)
    # The penalty is a choice of the probe: its answers must be those of one of them.
    errors = []
    for alpha in 10.0 ** np.arange(-3.0, 4.5, 0.5) * len(train):
        ridge = Ridge(alpha=alpha).fit((train - mean) / std @ span, split.train.age_months)
        answers = ridge.predict((test - mean) / std @ span)
        answers = answers.clip(split.train.age_months.min(), split.train.age_months.max())
        errors.append(np.abs(answers - split.test.age_months).mean())
    assert np.abs(np.array(errors) - float(found["age_mae_months"])).min() < 1e-3
    assert float(found["age_mae_months"]) < 0.8 * errors[-1]  # All but the mean age.


def write_images(folder, columns, rows):
    """Images of noise, as bright as each of `rows` says."""
    rng = np.random.default_rng(0)
    lines = [f"image_path,patient_id,{','.join(columns)}"]
    for i, (level, *values) in enumerate(rows):
        image = rng.integers(level - 50, level + 50, (40, 40)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(f"{i}.png,p{i},{','.join(map(str, values))}")
    (folder / "films.csv").write_text("\n".join(lines))
    return f"manifest:{folder / 'films.csv'}"


def test_ages_without_conditions(config, tmp_path):
    rows = [(60 + 2 * i, 3 * i) for i in range(60)]
    config.data.train = write_images(tmp_path, ["age_months"], rows)
    config.encoders = "random,pixels"
    label_efficiency.run(config, str(tmp_path / "ages"))
    found = read_draws(tmp_path / "ages")
    assert {row["roc_auc"] for row in found} == {""}
    assert float(found[-1]["age_mae_months"]) < 10  # The mean age is 45 months off.
    page = (tmp_path / "ages" / "report.html").read_text()
    assert re.search(r"100% of the labels: \w+ has the lowest age error \(\d\.\d months\)", page)
    assert "ROC AUC" not in page
    summary = json.loads((tmp_path / "ages" / "metrics.json").read_text())
    assert list(summary["pixels"]["1"]) == ["age_mae_months"]


def test_images_of_which_nothing_is_known_teach_nothing(config, tmp_path):
    config.data.train = write_images(tmp_path, [], [(100,)] * 20)
    with pytest.raises(DataError, match="no training image has a label or an age"):
        label_efficiency.run(config, str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def stages_one(tmp_path_factory):
    """Workdirs of two stages one."""
    folder, places = tmp_path_factory.mktemp("stages_one"), []
    with pytest.MonkeyPatch.context() as patch:
        for seed in (0, 1):
            stage_one = small_config(pretrain_config.get_config(), patch)
            stage_one.seed = seed
            stage_one.train_steps = 1
            stage_one.probe_every_steps = 0
            places.append(str(folder / f"stage_one{seed}"))
            pretrain.run(stage_one, places[-1])
    return places


def test_stages_one_take_turns(config, tmp_path, stages_one):
    first, second = stages_one
    config.encoder = "resnet50"  # A stage one knows its own.
    config.encoders = f"both={first}+{second},first={first},second={second}"
    settings.check(config)
    folder = tmp_path / "compared"
    label_efficiency.run(config, str(folder))
    rows = {(r["encoder"], r["label_fraction"], r["draw"]): r for r in read_draws(folder)}
    for fraction, draw, turn in (("0.5", "0", 0), ("0.5", "1", 1), ("0.5", "2", 0), ("1", "1", 1)):
        both = rows["both", fraction, draw]
        assert both["place"] == stages_one[turn]
        assert both["roc_auc"] == rows[("first", "second")[turn], fraction, draw]["roc_auc"]
    caption = (folder / "tables" / "label_efficiency.md").read_text(encoding="utf-8")
    assert "With all labels the standard deviation and the interval are over these" in caption


def test_a_stage_one_that_saw_who_is_scored_is_refused(config, tmp_path, stages_one):
    config.data.given_splits = "ignore"  # And so another split.
    config.encoders = f"random,{stages_one[0]}"
    with pytest.raises(DataError, match="stage one must not see the patients scored here"):
        label_efficiency.run(config, str(tmp_path / "compared"))


def test_an_image_that_cannot_be_read_is_left_out(config, tmp_path):
    rows = [(60 + 100 * (i % 2), ("ill", "well")[i % 2]) for i in range(40)]
    config.data.train = write_images(tmp_path, ["label"], rows)
    config.data.on_error = "skip"
    config.encoders = "pixels"
    config.label_fractions = (1.0,)
    label_efficiency.run(config, str(tmp_path / "whole"))
    split = read_split(tmp_path / "whole" / "split.csv")
    (tmp_path / split.train.image_path[0]).write_bytes(b"no image")
    label_efficiency.run(config, str(tmp_path / "broken"))
    assert (tmp_path / "broken" / "bad_files.csv").exists()
    assert read_draws(tmp_path / "broken")[0]["roc_auc"] == "1.000000"
    assert len(set(split.train.patient)) == len(split.train)


def test_encoders_by_name():
    assert compared_encoders("random, l1=a+b,c+d") == {
        "random": ("random", "random"),
        "l1": ("a", "b"),
        "c + d": ("c", "d"),
    }
    assert compared_encoders("pixels,l1=a+b")["pixels"] == ("pixels",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "places separated by commas"),
        ("a,,b", "places separated by commas"),
        ("=a", "places separated by commas"),
        ("x=a+", "places separated by commas"),
        ("a,a", "names 'a' twice"),
        ("x=a+b,y=c+d+e", "x has 2 stages one that take turns and another has 3"),
    ],
)
def test_encoders_that_cannot_be_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        compared_encoders(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": "random,/nowhere"}, "no stage-one checkpoint in /nowhere"),
        ({"label_fractions": (0.0, 1.0)}, "shares above 0"),
        ({"label_fractions": ()}, "shares above 0"),
        ({"draws": 0}, "at least 1"),
        ({"data": {"label_fraction": 0.5}}, "draws labels itself"),
        ({"data": {"label_seed": 1}}, "draws labels itself"),
    ],
)
def test_settings_that_cannot_be_meant(change, message):
    config = label_efficiency_config.get_config()
    config.update(change)
    with pytest.raises(ConfigError, match=message):
        settings.check(config)


def test_vectors_of_another_program_are_ranked_beside_ours(config, tmp_path):
    """Written in another order and with images of others: the scores are those of the vectors."""
    data = settings.build(DataSettings, config.data)
    split, reader = divide_sources(data), Reader(data)
    images = [*split.train.image_path, *split.test.image_path]
    paths = [*images[::-1], "other.png"]
    extract = Extractor(pixels, batch_size=8, num_threads=1)
    parts = [extract(reader(records)) for records in (split.train, split.test)]
    values = np.concatenate([part.values for part in parts])[::-1]
    values = np.concatenate([values, values[:1]])
    file = tmp_path / "vectors.npz"
    np.savez(file, image_path=paths, values=values)
    config.draws, config.bootstrap_samples = 1, 2
    config.encoders = f"pixels,theirs=features:{file}"
    settings.check(config)
    label_efficiency.run(config, str(tmp_path / "compared"))
    rows = read_draws(tmp_path / "compared")
    half = len(rows) // 2
    assert [r["roc_auc"] for r in rows[:half]] == [r["roc_auc"] for r in rows[half:]]
    assert {r["place"] for r in rows[half:]} == {f"features:{file}"}

    np.savez(file, image_path=paths[1:], values=values[1:])
    with pytest.raises(DataError, match=r"no finite vector of 1 of \d+ images, such as phantom"):
        read_features(str(file), reader(split.test))
    np.savez(file, paths=paths)
    with pytest.raises(DataError, match="arrays image_path"):
        read_features(str(file), reader(split.test))
    config.encoders = "features:/nowhere.npz"
    with pytest.raises(ConfigError, match=r"features:/nowhere\.npz does not exist"):
        settings.check(config)


@pytest.mark.parametrize("encoders", ["pixels,theirs=features:{}", "theirs=features:{},pixels"])
def test_all_encoders_are_scored_on_the_same_images(config, tmp_path, encoders):
    """Vectors of another program are there for an image that cannot be read."""
    rows = [(60 + 2 * i, ("ill", "well")[i % 2]) for i in range(40)]
    config.data.train = write_images(tmp_path, ["label"], rows)
    config.data.on_error = "skip"
    config.label_fractions = (1.0,)
    split = divide_sources(settings.build(DataSettings, config.data))
    images = np.array([*split.train.image_path, *split.test.image_path])
    truth = np.array([*split.train.label, *split.test.label]) == "ill"
    values = np.where(truth, 1.0, -1.0)
    values[list(images).index(split.test.image_path[0])] *= -1  # Wrong on this one alone.
    np.savez(tmp_path / "vectors.npz", image_path=images, values=values[:, None])
    (tmp_path / split.test.image_path[0]).write_bytes(b"no image")
    config.encoders = encoders.format(tmp_path / "vectors.npz")
    label_efficiency.run(config, str(tmp_path / "compared"))
    (theirs,) = [row for row in read_draws(tmp_path / "compared") if row["encoder"] == "theirs"]
    assert theirs["accuracy"] == "1.000000"
    page = (tmp_path / "compared" / "report.html").read_text()
    assert f"Scored on {len(split.test) - 1} images" in page


def test_paths_of_vectors_may_be_relative_to_their_file(tmp_path):
    records = Records.create([str(tmp_path / "a.png"), str(tmp_path / "b.png")], source="s")
    source = ImageSource(records, (), Preprocessing(32))
    file = str(tmp_path / "v.npz")
    np.savez(file, image_path=["b.png", "a.png"], values=np.array([[1.0], [2.0]]))
    assert read_features(file, source).values.tolist() == [[2.0], [1.0]]


def test_files_of_vectors_that_cannot_be_read(tmp_path):
    records = Records.create([str(tmp_path / "a.png")], source="s")
    source = ImageSource(records, (), Preprocessing(32))
    file = tmp_path / "v.npz"
    np.savez(file, image_path=["a.png", "a.png"], values=np.zeros((2, 1)))
    with pytest.raises(DataError, match=r"has several vectors of a\.png; keep one"):
        read_features(str(file), source)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        read_features(str(file), source)
    np.save(tmp_path / "v.npy", np.zeros((2, 1)))
    with pytest.raises(DataError, match="it holds a single array"):
        read_features(str(tmp_path / "v.npy"), source)
