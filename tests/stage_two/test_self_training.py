"""Self-training: whose labels a student learns from."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import self_training
from infantxray.training.loop import LoopSettings

HOW = Preprocessing(image_size=32)
SPEC = ModelSpec("none", "float32", HOW, ("a", "b"))
LABELS = ("a", "b", "", "a")


def source(paths="0123", labels=LABELS, ages=(1, 2, 3, np.nan), findings=None):
    records = Records.create(
        [f"{path}.png" for path in paths], source="s", label=labels, age_months=ages
    )
    return ImageSource(records, SPEC.classes, HOW, findings=findings)


def fingerprint(images=None, spec=SPEC, teaching=None, pretrained="", seed=0):
    return self_training.fingerprint(
        images or source(),
        spec,
        teaching or self_training.Teaching(linear_probe=True),
        pretrained=pretrained,
        seed=seed,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"images": source(paths="1023")},
        {"images": source(labels=("a", "", "", "a"))},
        {"images": source(ages=(1, 2, 4, np.nan))},
        {"images": source(findings=np.zeros((4, 2), np.float32))},
        {"spec": dataclasses.replace(SPEC, classes=("b", "a"))},
        {"spec": dataclasses.replace(SPEC, preprocessing=Preprocessing(image_size=64))},
        {"teaching": self_training.Teaching(linear_probe=True, committee="runs/l1")},
        {"pretrained": "runs/l1"},
        {"seed": 1},
    ],
)
def test_labels_follow_from_images_and_settings(changes):
    assert fingerprint() == fingerprint(source())
    assert fingerprint(**changes) != fingerprint()


def test_labels_are_stored_and_asked_again_where_something_else_was(tmp_path):
    asked = []

    def ask(value):
        def compute(place):
            asked.append(value)
            return np.full((4, 2), value, np.float32)

        return compute

    def labels(value, origin, round_number=1):
        found = self_training.soft_labels(str(tmp_path), ask(value), origin, round_number)
        return float(found[0, 0])

    assert labels(0.1, "first") == labels(0.2, "first") == np.float32(0.1)
    assert labels(0.3, "first", 2) == np.float32(0.3)
    listed = (tmp_path / "teachers" / "SHA256SUMS").read_text()
    assert "soft_labels.npy" in listed
    assert "soft_labels_2.npy" in listed
    # Teachers of other settings must not be resumed.
    for name in ("0", "student1"):
        (tmp_path / "teachers" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "teachers" / "mine").mkdir()
    assert labels(0.4, "second") == labels(0.5, "second") == np.float32(0.4)
    assert asked == [0.1, 0.3, 0.4]
    assert {path.name for path in (tmp_path / "teachers").iterdir()} == {
        "mine", "soft_labels.npy", "soft_labels.json", "SHA256SUMS",
    }  # fmt: skip
    # Earlier versions did not record what their labels follow from.
    (tmp_path / "teachers" / "soft_labels.json").unlink()
    assert labels(0.6, "second") == np.float32(0.6)
    (tmp_path / "teachers" / "soft_labels.json").write_text(json.dumps({"checksum": "0"}))
    assert labels(0.7, "second") == np.float32(0.7)
    (tmp_path / "teachers" / "soft_labels.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"soft_labels\.npy was changed or damaged"):
        labels(0.8, "second")


def test_students_do_not_learn_from_the_teacher_of_more_labels(tmp_path):
    """The labels of 90 % of the images, left by a run that died, in a run with 25 % of them."""

    def teach(images):
        self_training.teach_students(
            str(tmp_path),
            lambda place: np.full((4, 2), images.has_condition.mean(), np.float32),
            images,
            spec=SPEC,
            teaching=self_training.Teaching(linear_probe=True),
            pretrained="",
            predictor=None,
            loop_settings=LoopSettings(total_steps=1, batch_size=1, seed=0),
            fit=None,
            batches=None,
        )
        return float(images.soft_labels[0, 0])

    assert teach(source()) == 0.75
    assert teach(source(labels=("a", "", "", ""))) == 0.25
