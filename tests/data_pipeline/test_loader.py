import csv

import grain
import numpy as np
import pytest
from PIL import Image

from data_pipeline import tables
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.decode import Preprocessing
from data_pipeline.errors import DataError, UnreadableImage, UserError
from data_pipeline.loader import (
    BadFiles,
    ImageSource,
    Part,
    evaluation_batches,
    mixed_batches,
    training_batches,
)
from data_pipeline.manifest import Records

SIDE = 8
HOW = Preprocessing(image_size=SIDE)
CLASSES = ("mass", "normal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images; image `i` has the grey level `10 * i` throughout, image 3 is damaged."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        Image.fromarray(np.full((SIDE, SIDE), 10 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return folder


def records(folder, rows):
    labels = ["mass", "normal", "", "other"]
    return Records.create(
        [str(folder / f"{i}.png") for i in rows],
        source="s",
        label=[labels[i % 4] for i in rows],
        age_months=[np.nan if i % 2 else float(i) for i in rows],
    )


def source(folder, rows=(0, 1, 2, 4, 5, 6, 7), **options):
    return ImageSource(records(folder, rows), CLASSES, HOW, **options)


def images(batch):
    """Which images are in a batch, by their grey level."""
    return (batch["image"][:, 0, 0, 0] // 10).tolist()


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_contract_of_a_batch(folder):
    (batch,) = evaluation_batches(source(folder, (0, 1, 2, 7)), 4, num_threads=2)
    assert {name: (v.dtype, v.shape) for name, v in batch.items()} == {
        "image": (np.uint8, (4, SIDE, SIDE, 1)),
        "label": (np.int32, (4,)),
        "age_months": (np.float32, (4,)),
        "mask": (np.float32, (4,)),
    }
    assert images(batch) == [0, 1, 2, 7]
    # Unknown, and of no class that is asked for.
    assert batch["label"].tolist() == [0, 1, -1, -1]
    np.testing.assert_array_equal(batch["age_months"], np.float32([0, np.nan, 2, np.nan]))
    assert batch["mask"].tolist() == [1, 1, 1, 1]


def test_training_batches_have_the_same_contract(folder):
    batch = next(training_batches(source(folder), 4, seed=0, num_threads=2))
    assert {name: (v.dtype, v.shape) for name, v in batch.items()} == {
        "image": (np.uint8, (4, SIDE, SIDE, 1)),
        "label": (np.int32, (4,)),
        "age_months": (np.float32, (4,)),
        "mask": (np.float32, (4,)),
    }


def test_evaluation_sees_every_image_once_in_order_and_pads(folder):
    batches = list(evaluation_batches(source(folder), 4, num_threads=3))
    assert [b["image"].shape[0] for b in batches] == [4, 4]
    assert images(batches[0]) + images(batches[1])[:3] == [0, 1, 2, 4, 5, 6, 7]
    padding = {name: value[3:] for name, value in batches[1].items()}
    assert padding["mask"].tolist() == [0.0]
    assert padding["label"].tolist() == [-1]
    assert np.isnan(padding["age_months"]).all()
    assert batches[1]["label"].dtype == np.int32
    assert batches[1]["mask"].dtype == np.float32


def test_every_epoch_is_a_permutation_of_its_own(folder):
    batches = take(training_batches(source(folder), 7, seed=0, num_threads=2), 4)
    orders = [images(b) for b in batches]
    assert all(sorted(order) == [0, 1, 2, 4, 5, 6, 7] for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_hangs_on_the_seed_and_not_on_the_threads(folder):
    def order(seed, num_threads):
        iterator = training_batches(source(folder), 3, seed=seed, num_threads=num_threads)
        return [images(b) for b in take(iterator, 6)]

    assert order(0, 1) == order(0, 4)
    assert order(0, 1) != order(1, 1)


def test_batches_larger_than_the_data_are_filled(folder):
    batch = next(training_batches(source(folder, (0, 1, 2)), 8, seed=0, num_threads=1))
    assert sorted(images(batch)[:3]) == [0, 1, 2]
    assert len(images(batch)) == 8


def test_state_resumes_exactly(folder):
    whole = training_batches(source(folder), 3, seed=5, num_threads=4)
    take(whole, 5)
    state = whole.get_state()
    expected = take(whole, 6)
    again = training_batches(source(folder), 3, seed=5, num_threads=1)
    again.set_state(state)
    for a, b in zip(take(again, 6), expected, strict=True):
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_damaged_file_stops_with_its_path(folder):
    with pytest.raises(UnreadableImage, match=r"3\.png") as caught:
        source(folder, (2, 3))[1]
    assert caught.value.path == str(folder / "3.png")
    batches = evaluation_batches(source(folder, (2, 3)), 2, num_threads=1)
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        list(batches)
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        take(training_batches(source(folder, (2, 3)), 2, seed=0, num_threads=2), 2)


def test_skipping_in_training_takes_the_next_image_with_its_own_label(folder, caplog):
    bad = BadFiles()
    images_source = source(folder, (0, 3, 5), on_error="skip", substitute=True, bad_files=bad)
    example = images_source[1]
    assert example["image"][0, 0, 0] == 50
    assert example["label"] == 1  # That of image 5.
    assert example["mask"] == 1
    assert len(bad) == 1
    # The last image's next is the first.
    wrapped = source(folder, (0, 3), on_error="skip", substitute=True, bad_files=bad)[1]
    assert wrapped["image"][0, 0, 0] == 0
    assert caplog.text.count("skipped") == 1  # Once a file, not once an epoch.


def test_skipping_in_evaluation_keeps_the_place_with_mask_zero(folder):
    bad = BadFiles()
    (batch,) = evaluation_batches(
        source(folder, (2, 3, 4, 5), on_error="skip", bad_files=bad), 4, num_threads=2
    )
    assert batch["mask"].tolist() == [1, 0, 1, 1]
    assert images(batch) == [2, 0, 4, 5]
    assert len(bad) == 1


def test_a_set_without_a_readable_file_ends(folder):
    images_source = source(folder, (3, 3), on_error="skip", substitute=True)
    with pytest.raises(DataError, match="could not be read"):
        images_source[0]


def test_bad_files_csv(folder, tmp_path):
    bad = BadFiles()
    bad.write(tmp_path / "bad_files.csv")
    assert not (tmp_path / "bad_files.csv").exists()
    source(folder, (3,), on_error="skip", bad_files=bad)[0]
    bad.add("/x/a, b.png", "too dark")
    bad.write(tmp_path / "bad_files.csv")
    with open(tmp_path / "bad_files.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_path", "reason"]
    assert [row[0] for row in rows[1:]] == sorted([str(folder / "3.png"), "/x/a, b.png"])
    assert all(len(row) == 2 and row[1] for row in rows)


def test_a_mixed_batch_needs_two_images(folder):
    with pytest.raises(UserError, match=r"batch_size \(1\) must be at least 2"):
        mixed_batches(source(folder, (0, 2)), 1, num_labelled=0, seed=0, num_threads=1)


def test_bad_files_of_a_run_that_was_stopped_stay_listed(tmp_path):
    path = tmp_path / "bad_files.csv"
    first, second = BadFiles(), BadFiles()
    first.add("/x/=a.png", "empty")
    first.write(path, extend=True)
    second.add("/x/b.png", "too dark")
    second.write(path, extend=True)
    _, rows = tables.read_csv(path)
    assert list(rows) == [["/x/=a.png", "empty"], ["/x/b.png", "too dark"]]
    path.write_text('image_path,reason\n"torn')
    second.write(path, extend=True)
    assert list(tables.read_csv(path)[1]) == [["/x/b.png", "too dark"]]
    first.write(path)
    assert list(tables.read_csv(path)[1]) == [["/x/=a.png", "empty"]]


@pytest.mark.parametrize(("memory_mb", "decodes"), [(1, 7), (0, 14)])
def test_images_stay_in_memory_where_they_fit(folder, monkeypatch, memory_mb, decodes):
    from data_pipeline import loader

    calls = []
    decode = loader.load_image
    monkeypatch.setattr(loader, "load_image", lambda *a: calls.append(a) or decode(*a))
    how = Preprocessing(image_size=16)
    images_source = ImageSource(
        records(folder, (0, 1, 2, 4, 5, 6, 7)), CLASSES, how, memory_mb=memory_mb
    )
    first = [images_source[i]["image"].copy() for i in range(len(images_source))]
    second = [images_source[i]["image"] for i in range(len(images_source))]
    np.testing.assert_array_equal(first, second)
    # Threads of earlier tests may still read ahead, at another size.
    assert sum(call[1] == how for call in calls) == decodes


def test_readers_of_a_run_decode_an_image_once(folder, monkeypatch):
    from data_pipeline import loader

    calls = []
    decode = loader.load_image
    monkeypatch.setattr(loader, "load_image", lambda *a: calls.append(a) or decode(*a))
    how = Preprocessing(image_size=24)
    reader = Reader(DataSettings(train="", image_size=24, memory_mb=1), CLASSES, how)
    first, again = reader(records(folder, (0, 1, 2))), reader(records(folder, (1, 2, 4)))
    other = reader.with_classes(())(records(folder, (4, 0)))
    images = [[part[i]["image"] for i in range(len(part))] for part in (first, again, other)]
    assert sum(call[1] == how for call in calls) == 4
    np.testing.assert_array_equal(images[0][1:], images[1][:2])
    np.testing.assert_array_equal(images[2], [images[1][2], images[0][0]])


def test_memory_is_not_taken_where_the_images_do_not_fit(folder):
    paths = [str(folder / "0.png")] * 300
    how = Preprocessing(image_size=64)  # 300 images of 4 KiB: 1.17 MiB.
    many = Records.create(paths, source="s")
    assert ImageSource(many, (), how, memory_mb=1)._memory is None
    assert ImageSource(many, (), how, memory_mb=2)._memory is not None


def test_a_damaged_file_in_memory_is_still_damaged_the_second_time(folder):
    images_source = source(folder, (0, 3), on_error="skip", memory_mb=1)
    for _ in range(2):
        assert images_source[1]["mask"] == 0


def test_the_iterator_is_one_that_can_be_checkpointed(folder):
    iterator = training_batches(source(folder), 2, seed=0, num_threads=1)
    assert isinstance(iterator, grain.DatasetIterator)
    take(iterator, 3)
    assert (
        iterator.get_state()
        != training_batches(source(folder), 2, seed=0, num_threads=1).get_state()
    )


class TestStudentBatches:
    """Labelled images first, then any images by their soft labels."""

    def source(self, folder, rows=(0, 1, 2, 4, 5, 6, 7), **options):
        images = source(folder, rows, **options)
        images.soft_labels = np.stack([[i / 10, 1 - i / 10] for i in rows]).astype(np.float32)
        return images

    def batches(self, images, n=6, seed=0):
        iterator = mixed_batches(images, 5, num_labelled=2, seed=seed, num_threads=2)
        return iterator, take(iterator, n)

    def test_who_is_where(self, folder):
        _, batches = self.batches(self.source(folder))
        for batch in batches:
            assert (batch["label"][:2] >= 0).all()
            known = np.isin(images(batch), [0, 1, 4, 5])
            np.testing.assert_array_equal(batch["label"] >= 0, known)
            assert set(images(batch)[:2]) <= {0, 1, 4, 5}
            np.testing.assert_allclose(batch["soft_label"][:, 0], np.array(images(batch)) / 10)
        # Eighteen draws of the others: every image came, labelled or not.
        assert {image for batch in batches for image in images(batch)[2:]} == {0, 1, 2, 4, 5, 6, 7}

    def test_state_resumes_exactly(self, folder):
        iterator, _ = self.batches(self.source(folder), n=3)
        state = iterator.get_state()
        expected = [images(batch) for batch in take(iterator, 4)]
        again, _ = self.batches(self.source(folder), n=1)
        again.set_state(state)
        assert [images(batch) for batch in take(again, 4)] == expected

    def test_a_substitute_brings_its_own_soft_label(self, folder):
        images_with_damage = self.source(folder, (0, 3, 4), on_error="skip", substitute=True)
        _, batches = self.batches(images_with_damage)
        for batch in batches:
            assert 3 not in images(batch)
            np.testing.assert_allclose(batch["soft_label"][:, 0], np.array(images(batch)) / 10)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_evaluation_batches_are_the_same_in_parts_and_blocks(folder, count, blocks):
    """Seven images in batches of eight and sixteen: whole blocks are padding."""
    for size in (8, 16):
        (whole,) = evaluation_batches(source(folder), size, num_threads=1)
        parts = [
            list(
                evaluation_batches(
                    source(folder), size, num_threads=2, part=Part(i, count), blocks=blocks
                )
            )
            for i in range(count)
        ]
        for name, value in whole.items():
            joined = np.concatenate([batch[name] for (batch,) in parts])
            np.testing.assert_array_equal(joined, value)
    with pytest.raises(ValueError, match="3 equal blocks"):
        list(evaluation_batches(source(folder), 8, num_threads=1, blocks=3))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_parts_of_several_processes_are_the_batches_of_one(folder, count, mixed):
    def batches(*part):
        options = {"seed": 1, "num_threads": 1, "part": Part(*part)}
        if mixed:
            return mixed_batches(source(folder), 4, num_labelled=1, **options)
        return training_batches(source(folder), 4, **options)

    whole = batches()
    before = take(whole, 3)
    parts = [batches(i, count) for i in range(count)]
    for expected in before:
        found = [next(part) for part in parts]
        for name, value in expected.items():
            joined = np.concatenate([batch[name] for batch in found])
            np.testing.assert_array_equal(joined, value)
    # The position is that of the run: another number of processes goes on from it.
    assert all(part.get_state() == whole.get_state() for part in parts)
    again = batches(1, 2)
    again.set_state(parts[0].get_state())
    assert images(next(again)) == images(next(whole))[2:]


def test_the_parts_of_an_evaluation_are_padded_alike(folder):
    (whole, last) = evaluation_batches(source(folder), 6, num_threads=1)
    parts = [list(evaluation_batches(source(folder), 6, num_threads=1, part=Part(i, 3)))
             for i in range(3)]  # fmt: skip
    for i, expected in enumerate((whole, last)):  # The last batch has one image of six.
        assert [len(part[i]["mask"]) for part in parts] == [2, 2, 2]
        for name, value in expected.items():
            joined = np.concatenate([part[i][name] for part in parts])
            np.testing.assert_array_equal(joined, value)


def test_a_batch_that_processes_cannot_share_is_refused(folder):
    with pytest.raises(UserError, match=r"batch_size \(4\).*3 processes"):
        training_batches(source(folder), 4, seed=0, num_threads=1, part=Part(0, 3))
