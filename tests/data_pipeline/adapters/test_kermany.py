"""Kermany's chests of children, in each of their layouts."""

import pytest
from layouts import table, touch

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError


def test_kermany(tmp_path):
    radiographs = {
        "train/NORMAL/IM-0115-0001.jpeg": b"one",
        "train/NORMAL/NORMAL2-IM-0503-0001.jpeg": b"two",
        "train/NORMAL/NORMAL2-IM-0503-0001-0001.jpeg": b"two",
        "train/PNEUMONIA/person1_bacteria_1.jpeg": b"three",
        "train/PNEUMONIA/person1_virus_6.jpeg": b"again",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": b"five5",
        "test/PNEUMONIA/person1_virus_7.jpeg": b"again",
    }
    for name, content in radiographs.items():
        touch(tmp_path / "chest_xray" / name, content)
    records = ADAPTERS["kermany"](f"{tmp_path}:classes=3")
    assert table(records, "patient_id", "label", "split") == {
        "IM-0115-0001.jpeg": ("kermany-train-im-0115", "NORMAL", "train"),
        "NORMAL2-IM-0503-0001-0001.jpeg": ("kermany-train-normal2-im-0503", "NORMAL", "train"),
        "person1_bacteria_1.jpeg": ("kermany-train-person1-bacteria", "BACTERIA", "train"),
        "NORMAL2-IM-1427-0001.jpeg": ("kermany-val-normal2-im-1427", "NORMAL", "validation"),
        # The repeat in training is left out, not the image in test.
        "person1_virus_7.jpeg": ("kermany-test-person1-virus", "VIRUS", "test"),
    }
    assert set(ADAPTERS["kermany"](str(tmp_path)).label) == {"NORMAL", "PNEUMONIA"}
    with pytest.raises(DataError, match="classes is 4"):
        ADAPTERS["kermany"](f"{tmp_path}:classes=4")


def build_original_kermany(root, names):
    for i, name in enumerate(names):
        touch(root / "CellData" / "chest_xray" / f"{name}.jpeg", str(i).encode())
    return str(root)


def test_kermany_as_on_mendeley(tmp_path):
    place = build_original_kermany(
        tmp_path,
        (
            "train/PNEUMONIA/BACTERIA-1008087-0001",
            "train/PNEUMONIA/BACTERIA-1008087-0002",
            "train/PNEUMONIA/VIRUS-40699-0001",
            "train/NORMAL/NORMAL-7422-0001",
            "test/NORMAL/NORMAL-7422-0002",
        ),
    )
    records = ADAPTERS["kermany"](f"{place}:classes=3")
    assert table(records, "patient_id", "label", "split") == {
        "BACTERIA-1008087-0001.jpeg": ("kermany-1008087", "BACTERIA", "train"),
        "BACTERIA-1008087-0002.jpeg": ("kermany-1008087", "BACTERIA", "train"),
        "VIRUS-40699-0001.jpeg": ("kermany-40699", "VIRUS", "train"),
        # One person: the leak is seen when the images are divided.
        "NORMAL-7422-0001.jpeg": ("kermany-7422", "NORMAL", "train"),
        "NORMAL-7422-0002.jpeg": ("kermany-7422", "NORMAL", "test"),
    }
    assert set(ADAPTERS["kermany"](place).label) == {"NORMAL", "PNEUMONIA"}


def test_numbers_of_kermany_that_begin_again_in_every_split(tmp_path):
    """Two splits use one name for different images."""
    names = [
        f"{split}/{kind}-{n}-0001"
        for split in ("train", "test")
        for kind, n in (("PNEUMONIA/VIRUS", 1), ("NORMAL/NORMAL", 2))
    ]
    records = ADAPTERS["kermany"](build_original_kermany(tmp_path, names))
    assert set(records.patient_id) == {f"kermany-{s}-{n}" for s in ("train", "test") for n in "12"}


@pytest.mark.parametrize("name", ["scan1", "person1", "IM0115", "BACTERIA-x-1", "COVID-1-1"])
def test_other_names_than_kermanys_are_refused(tmp_path, name):
    touch(tmp_path / "train" / "NORMAL" / "IM-0115-0001.jpeg", b"x")
    touch(tmp_path / "train" / "NORMAL" / f"{name}.jpeg", b"y")
    with pytest.raises(DataError, match=rf"1 of 2 files are not named as in .*{name}\.jpeg"):
        ADAPTERS["kermany"](str(tmp_path))


def test_files_of_kermany_in_the_wrong_folder_are_named(tmp_path, caplog):
    names = ("train/NORMAL/BACTERIA-1-0001", "train/NORMAL/NORMAL-2-0001")
    ADAPTERS["kermany"](build_original_kermany(tmp_path, names))
    assert "1 files are named like another class than that of their folder" in caplog.text
    assert "BACTERIA-1-0001.jpeg" in caplog.text
