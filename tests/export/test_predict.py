"""`predict`: what it takes, what it writes, and that memory stays bounded."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from members import CLASSES, SIZE, make_member
from PIL import Image

import infantxray
from configs import predict as predict_config
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.commands import predict
from infantxray.evaluation.outliers import fit_detector
from infantxray.export import dicom_out
from infantxray.runs import settings
from infantxray.stage_two.answers import Answerer
from infantxray.stage_two.trust import Trust

pytestmark = pytest.mark.xdist_group("export")


def write_images(folder, n=3):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (70, 50), np.uint8)).save(folder / f"{i}.png")
    return folder


def run(finetuned, place, out, **changes):
    config = predict_config.get_config()
    config.checkpoint, config.data.test = str(finetuned), str(place)
    config.batch_size = 4
    config.update(changes)
    settings.check(config)
    predict.run(config, str(out))
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_image_needs_no_folder_of_its_own(finetuned, tmp_path):
    images = write_images(tmp_path / "images")
    (row,) = run(finetuned, images / "1.png", tmp_path / "out", json=True, pictures=True)
    assert row["image_path"] == str(images / "1.png")
    assert row["predicted"] in row["conditions"].split("|")
    assert float(row["age_low_months"]) <= float(row["age_predicted_months"])
    (name,) = os.listdir(tmp_path / "out" / "json")
    answer = json.loads((tmp_path / "out" / "json" / name).read_text())
    assert answer["predicted"] == row["predicted"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    reached = {
        name
        for name, limit in answer["thresholds"]["youden"].items()
        if answer["probabilities"][name] >= limit
    }
    assert set(answer["positive_youden"]) == reached
    assert row["positive_youden"].split("|") == answer["positive_youden"] or not reached
    page = (tmp_path / "out" / "predictions.html").read_text()
    assert "not a medical device" in page
    assert page.count("<img") == 2


def test_calibration_can_be_switched_off(finetuned, tmp_path):
    images = write_images(tmp_path / "images")
    # After four steps the validation images determine no temperature.
    trust = dataclasses.replace(Trust.read(str(finetuned)), temperature=2.0)
    finetuned = shutil.copytree(finetuned, tmp_path / "run")
    trust.write(str(finetuned))
    (on, *_) = run(finetuned, images, tmp_path / "on")
    (off, *_) = run(finetuned, images, tmp_path / "off", calibrate=False)
    assert "conditions" in on
    assert "conditions" not in off
    assert on["p_normal"] != off["p_normal"]
    assert on["predicted"] == off["predicted"]


def test_a_bad_file_names_the_setting_that_skips_it(finetuned, tmp_path):
    images = write_images(tmp_path / "images")
    (images / "2_broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2_broken\.png.*config\.data\.on_error=skip"):
        run(finetuned, images, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.parametrize("calibrate", [True, False])
def test_images_of_one_grey_value_are_named(finetuned, tmp_path, calibrate):
    images = write_images(tmp_path / "images", 1)
    Image.fromarray(np.full((1, 1), 255, np.uint8)).save(images / "1_white.png")
    Image.new("RGBA", (40, 40), (200, 10, 10, 0)).save(images / "2_transparent.png")
    rows = run(finetuned, images, tmp_path / "out", calibrate=calibrate, augmentations=1)
    assert ["of one grey value" in row["note"] for row in rows] == [False, True, True]


def test_several_models_are_averaged(finetuned, tmp_path):
    images = write_images(tmp_path / "images")
    one = run(finetuned, images, tmp_path / "one")
    two = run(f"{finetuned},{finetuned}", images, tmp_path / "two")
    assert [row["p_normal"] for row in one] == [row["p_normal"] for row in two]
    assert [row["positive_youden"] for row in one] == [row["positive_youden"] for row in two]
    found = infantxray.load([finetuned, finetuned]).predict(sorted(images.iterdir()))
    assert [f"{p:.7g}" for p in found.probabilities[:, found.classes.index("normal")]] == [
        row["p_normal"] for row in one
    ]
    moved = run(finetuned, images, tmp_path / "moved", augmentations=2)
    assert [row["p_normal"] for row in one] != [row["p_normal"] for row in moved]
    with pytest.raises(UserError, match="the folder nowhere does not exist"):
        run(f"{finetuned},nowhere", images, tmp_path / "three")


def test_an_age_outside_training_is_said(small):
    trust = Trust(age_range_months=(0.0, 1.0))
    answerer = Answerer([make_member(small)])
    member = answerer.members[0]
    answerer.members = (type(member)(member.spec, member.variables, trust),)
    records = Records.create(["a.png"], source="s", age_months=[40.0])
    outputs = [
        {
            "features": np.zeros((1, 8), np.float32),
            "probabilities": np.full((1, 3), 1 / 3, np.float32),
            "age": np.zeros(1, np.float32),
        }
    ]
    answers = answerer.answers(outputs, records, np.array([-1]))
    (row,) = predict.row_values(answers, records, answerer)
    assert "age 40.0 months is outside the training range, 0.0 to 1.0" in row["note"]
    assert row["age_low_months"] is None


def test_what_was_not_fitted_is_not_an_answer(small):
    """No outlier detector, as with few validation images, does not mean an image like others."""
    member = make_member(small)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float32)
    fitted = Trust(detector=fit_detector(features, features, max_neighbours=20))
    outputs = {
        "features": np.stack([np.zeros(8), np.full(8, 90)]).astype(np.float32),
        "probabilities": np.full((2, 3), 1 / 3, np.float32),
        "age": np.zeros(2, np.float32),
    }
    records = Records.create(["a.png", "b.png"], source="s")
    for trusts, expected in (
        ((fitted, fitted), [False, True]),
        ((Trust(), Trust()), [None, None]),
        ((fitted, Trust()), [None, None]),
    ):
        answerer = Answerer([dataclasses.replace(member, trust=trust) for trust in trusts])
        answers = answerer.answers([outputs] * 2, records, np.array([-1, -1]))
        rows = predict.row_values(answers, records, answerer)
        assert [row["unlike_training"] for row in rows] == expected
        assert [row["distance"] is None for row in rows] == [e is None for e in expected]
        assert [bool(row["note"]) for row in rows] == [bool(e) for e in expected]
    model = infantxray.Model(dataclasses.replace(member, trust=Trust()))
    result = model.predict(np.zeros((1, SIZE, SIZE), np.uint8))
    assert result.unlike_training is None


class Fake(Answerer):
    """Predicts nothing, at once."""

    def __init__(self, member, batch):
        super().__init__([member], batch_size=batch)
        self._functions = [lambda variables, image, context: self.found(len(image))]

    def found(self, n):
        return {
            "features": np.zeros((n, 4), np.float32),
            "probabilities": np.full((n, len(CLASSES)), 1 / 3, np.float32),
            "age": np.zeros(n, np.float32),
        }


def test_a_model_of_ages_alone_has_nothing_to_explain(small):
    model = infantxray.Model(dataclasses.replace(make_member(small), trust=Trust()))
    assert "3 conditions" in repr(model)
    member = make_member(small, multi_label=True)
    assert "3 findings" in repr(infantxray.Model(member))
    spec = dataclasses.replace(member.spec, classes=(), multi_label=False)
    model = infantxray.Model(dataclasses.replace(member, spec=spec))
    with pytest.raises(UserError, match="this one predicts ages alone"):
        model.explain(np.zeros((SIZE, SIZE), np.uint8))


def test_memory_does_not_grow_with_the_number_of_images(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageSource, "_decode", lambda self, row: np.zeros((32, 32), np.uint8))
    peaks = []
    fake = Fake(make_member(small), 64)
    for n in (256, 4096):
        records = Records.create([f"{i}.png" for i in range(n)], source="s")
        source = ImageSource(records, CLASSES, Preprocessing(image_size=32))
        extras = predict.Extras(str(tmp_path), fake, json=False, pages=False, dicom=False)
        tracemalloc.start()
        assert predict.write_rows(str(tmp_path / f"{n}.csv"), fake, source, extras) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**20  # The images alone are 4 MiB.
    assert len((tmp_path / "4096.csv").read_text().splitlines()) == 4097


def test_dicom_output_opens(finetuned, tmp_path):
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    images = write_images(tmp_path / "images", 1)
    (row,) = run(finetuned, images, tmp_path / "out", dicom=True)
    report, saliency = sorted(os.listdir(tmp_path / "out" / "dicom"))
    assert (report[-10:-4], saliency[-12:-4]) == ("report", "saliency")
    report = pydicom.dcmread(tmp_path / "out" / "dicom" / report)
    assert report.Modality == "SR"
    text = str(report)
    assert row["predicted"] in text
    assert "step 4" in text
    picture = pydicom.dcmread(tmp_path / "out" / "dicom" / saliency)
    assert picture.pixel_array.shape == (SIZE, SIZE, 3)
    assert picture.StudyInstanceUID == report.StudyInstanceUID


@pytest.mark.parametrize("predicted", ["no finding", "mass|normal"])
def test_the_saliency_of_several_findings_names_the_one_it_shows(tmp_path, predicted):
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    answer = {
        "predicted": predicted, "probabilities": {"normal": 0.2, "mass": 0.4}, "note": "",
        "age_predicted_months": None, "unlike_training": None, "conditions": [],
    }  # fmt: skip
    image, heat = np.zeros((32, 32), np.uint8), np.ones((32, 32), np.float32)
    dicom_out.write(str(tmp_path), "a", "a.png", answer, image, heat, model="a model")
    capture = pydicom.dcmread(tmp_path / "a_saliency.dcm")
    assert capture.SeriesDescription.startswith("Saliency: mass,")


def test_dicom_output_is_valid(finetuned, tmp_path):
    """By dciodvfy (Debian's dicom3tools) and dicom-validator, whose tables are downloaded once."""
    pytest.importorskip("highdicom")
    standard = Path.home() / "dicom-validator"
    commands = [["dciodvfy"]] * (shutil.which("dciodvfy") is not None)
    if importlib.util.find_spec("dicom_validator") and list(standard.glob("*/json/iod_info.json")):
        module = "dicom_validator.validate_iods"
        commands.append([sys.executable, "-m", module, "--edition", "local"])
    if not commands:
        pytest.skip("neither dciodvfy nor the tables of dicom-validator are here")
    run(finetuned, write_images(tmp_path / "images", 1), tmp_path / "out", dicom=True)
    for file in (tmp_path / "out" / "dicom").iterdir():
        for command in commands:
            done = subprocess.run([*command, str(file)], capture_output=True, text=True)
            said = done.stdout + done.stderr
            assert done.returncode == 0, said
            assert not re.search("^Error", said, re.MULTILINE), said
