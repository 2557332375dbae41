import numpy as np
import pytest
from PIL import Image

from data_pipeline.dataset import (
    DataSettings,
    Reader,
    check_listed,
    divide_sources,
    open_role,
    open_split,
)
from data_pipeline.errors import DataError
from data_pipeline.loader import evaluation_batches
from data_pipeline.repeats import check_repeats
from data_pipeline.splits import check_unseen


def write(folder, rows):
    """A manifest of images; images with the same number have the same content."""
    folder.mkdir(exist_ok=True)
    lines = ["image_path,patient_id,label,split"]
    for name, number, patient, label, split in rows:
        pixels = np.full((40, 40), 10 + number, np.uint8)
        pixels[number, 7] = 200
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{patient},{label},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return DataSettings(train=f"manifest:{folder / 'manifest.csv'}")


def plain(number, label="a", split="train"):
    return f"{number}.png", number, f"p{number}", label, split


ROWS = [plain(i, "ab"[i % 2]) for i in range(8)]
ROWS += [plain(8, "a", "test"), plain(9, "b", "test"), plain(10, "a", "validation")]


def messages(caplog):
    return [
        r.getMessage()
        for r in caplog.records
        if r.name in ("data_pipeline.repeats", "data_pipeline.contents")
    ]


def test_images_that_differ_are_not_mentioned(tmp_path, caplog):
    open_split(write(tmp_path / "data", ROWS), str(tmp_path))
    assert messages(caplog) == []


def test_the_same_content_in_two_splits_is_named(tmp_path, caplog):
    rows = [*ROWS, ("copy.png", 3, "p50", "b", "test")]
    open_split(write(tmp_path / "data", rows), str(tmp_path))
    (message,) = messages(caplog)
    assert "the same image is in several splits" in message
    assert "3.png (train)" in message
    assert "copy.png (test)" in message


def test_the_same_content_with_two_labels_is_named(tmp_path, caplog):
    rows = [*ROWS, ("copy.png", 3, "p50", "a", "train")]
    open_split(write(tmp_path / "data", rows), str(tmp_path))
    assert messages(caplog)[0].startswith("the same image has several labels (a, b): ")


def test_repeats_within_training_are_counted(tmp_path, caplog):
    rows = [*ROWS, ("copy.png", 3, "p50", "b", "train"), ("again.png", 3, "p51", "b", "train")]
    open_split(write(tmp_path / "data", rows), str(tmp_path))
    (message,) = messages(caplog)
    assert message.startswith("2 images for train repeat another one")


def test_one_file_with_two_labels_is_refused(tmp_path):
    rows = [*ROWS, ("3.png", 3, "p3", "a", "train")]
    with pytest.raises(DataError, match=r"3\.png is listed 2 times with different labels: a, b"):
        open_split(write(tmp_path / "data", rows), str(tmp_path))


def test_one_file_twice_with_one_label_is_a_repeat(tmp_path, caplog):
    open_split(write(tmp_path / "data", [*ROWS, plain(3, "b")]), str(tmp_path))
    assert messages(caplog)[0].startswith("1 images for train repeat")


def test_the_limit_is_said(tmp_path, caplog):

    split = divide_sources(write(tmp_path / "data", [*ROWS, ("copy.png", 3, "p50", "b", "test")]))
    check_repeats(split, max_bytes=0)
    assert "looked for among 1 of" in messages(caplog)[0]


def test_images_of_one_grey_value_are_named_and_counted(tmp_path, caplog):
    folder = tmp_path / "data"
    write(folder, ROWS)
    for number in (2, 5):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / f"{number}.png")
    settings = DataSettings(train=f"manifest:{folder / 'manifest.csv'}", image_size=32)
    reader = Reader(settings, ("a", "b"))
    for _ in evaluation_batches(reader(divide_sources(settings).train), 4, num_threads=1):
        pass
    reader.write_bad_files(str(tmp_path))
    found = [r.getMessage() for r in caplog.records if "grey value" in r.getMessage()]
    assert len(found) == 2
    assert "2 images are of one grey value" in found[1]
    assert not (tmp_path / "bad_files.csv").exists()


def test_copies_of_training_images_are_named_before_they_are_scored(tmp_path, caplog):
    write(tmp_path / "data", ROWS)
    settings = DataSettings(train=f"manifest:{tmp_path / 'data' / 'manifest.csv'}")
    open_split(settings, str(tmp_path))
    other = [
        ("x.png", 3, "q1", "b", ""),
        ("y.png", 12, "q2", "a", ""),
        ("z.png", 12, "q3", "a", ""),
    ]
    records = open_role(write(tmp_path / "other", other).train, settings)
    check_listed(records)
    assert "1 images for test repeat another one, such as" in messages(caplog)[-1]
    check_unseen(tmp_path / "split.csv", records, "shared", "this model was trained on")
    (message,) = [r.getMessage() for r in caplog.records if r.name == "data_pipeline.splits"]
    assert message.startswith("this model was trained on copies of 1 of these images under other")
    assert "x.png" in message
