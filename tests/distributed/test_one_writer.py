"""Of several processes the first one writes; the others read what it wrote."""

import types

import numpy as np
import pytest

from data_pipeline import files
from data_pipeline.decode import Preprocessing
from infantxray.evaluation.operating_points import OperatingPoint
from infantxray.reports import run_report
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import self_training, trust_fitting
from infantxray.stage_two.trust import Trust
from infantxray.training import processes

SPEC = ModelSpec("none", "float32", Preprocessing(image_size=32), ("a", "b"))
POINT = OperatingPoint("a", "youden", 0.5, 0.9, 0.9, 20, 30)


@pytest.fixture
def second(monkeypatch):
    """This process is the second one. `first` does, and answers, what the first one would."""
    first = types.SimpleNamespace(answers=lambda: None)
    monkeypatch.setattr(processes, "index", lambda: 1)
    monkeypatch.setattr(processes, "from_main", lambda value: first.answers())
    return first


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_specification(tmp_path, second):
    SPEC.write(str(tmp_path))
    assert contents(tmp_path) == {}


def test_thresholds_and_checksums(tmp_path, second, monkeypatch):
    """A late process must not remove the checksums of the finished report."""
    (tmp_path / "metrics.json").write_text("{}")
    files.write_checksums(tmp_path, ["metrics.json"])
    before = contents(tmp_path)
    monkeypatch.setattr(run_report, "_predict", lambda *args: (None, None))
    monkeypatch.setattr(run_report.diagnostics, "choose_points", lambda *args: [POINT])
    found = run_report._operating_points(
        str(tmp_path),
        str(tmp_path),
        types.SimpleNamespace(spec=SPEC),
        None,
        [0],
        run_report.Review("youden"),
    )
    assert found == [POINT]
    assert contents(tmp_path) == before


def test_calibration(tmp_path, second, monkeypatch):
    trust = Trust(temperature=2.0)
    split = types.SimpleNamespace(train=None, validation=types.SimpleNamespace())
    split.validation.with_patients = lambda ids: None
    monkeypatch.setattr(trust_fitting, "read_split", lambda path: split)
    monkeypatch.setattr(trust_fitting, "reader_of", lambda folder, spec: None)
    monkeypatch.setattr(trust_fitting, "Predictor", lambda *args, **how: None)
    monkeypatch.setattr(trust_fitting, "fit", lambda *args, **how: trust)
    assert trust_fitting.for_workdir(str(tmp_path), SPEC, None) == trust
    assert contents(tmp_path) == {}


def test_soft_labels(tmp_path, second):
    place = tmp_path / "teachers"
    asked = []

    def compute(folder):
        asked.append(folder)
        # From here on the first process answers that it has written its own.
        second.answers = lambda: np.save(place / "soft_labels.npy", np.full((2, 2), 0.25))
        return np.full((2, 2), 0.75)

    found = self_training.soft_labels(str(tmp_path), compute, "origin")
    assert found.tolist() == [[0.25, 0.25]] * 2
    assert set(contents(tmp_path)) == {"soft_labels.npy"}
    second.answers = lambda: True  # They are stored.
    self_training.soft_labels(str(tmp_path), compute, "origin")
    assert len(asked) == 1
