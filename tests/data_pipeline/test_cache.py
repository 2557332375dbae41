"""Decoded images come back as they would be decoded, and never for another preprocessing."""

import fcntl
import json
import logging
import os
import threading
import time

import numpy as np
import pytest
from image_files import picture_bytes, ramp

from data_pipeline import cache_writing
from data_pipeline.cache import (
    cache_folder,
    find_cache,
    open_cache,
    path_keys,
    read_keys,
    to_decode,
)
from data_pipeline.cache_writing import create_folder, sweep, write_shard
from data_pipeline.decode import DECODER_VERSION, Preprocessing, load_image
from data_pipeline.errors import UserError
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records

HOW = Preprocessing(32)


@pytest.fixture
def radiographs(tmp_path):
    paths = []
    for i in range(7):
        path = tmp_path / f"image{i}.png"
        path.write_bytes(picture_bytes(np.roll(ramp() << 4, 5 * i, axis=1), "PNG"))
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_come_back(tmp_path, radiographs, dtype):
    folder = create_folder(tmp_path / "cache", HOW, np.dtype(dtype).type)
    missing = str(tmp_path / "none.png")
    assert write_shard(folder, [*radiographs[:3], missing], HOW, dtype) == (
        3,
        [(missing, "the file does not exist")],
    )
    assert write_shard(folder, radiographs[3:6], HOW, dtype) == (3, [])
    assert write_shard(folder, [missing], HOW, dtype)[0] == 0
    cache = find_cache(tmp_path / "cache", HOW)
    assert len(cache) == 6
    assert cache.lookup(radiographs[6]) is None
    for path in radiographs[:6]:
        row = cache.lookup(path)
        difference = cache.read(row).astype(int) - load_image(path, HOW)
        assert np.abs(difference).max() <= (0 if dtype == "uint8" else 1)
        assert cache.read(row).dtype == np.uint8
        wide = cache.read(row, np.uint16)
        if dtype == "uint16":
            np.testing.assert_array_equal(wide, load_image(path, HOW, np.uint16))
    images = np.full((4, 32, 32), 77, np.uint8)
    chosen = [radiographs[4], radiographs[6], radiographs[0], radiographs[4]]
    assert cache.read_into(chosen, images).tolist() == [True, False, True, True]
    assert (images[1] == 77).all()
    for i in (0, 2, 3):
        np.testing.assert_array_equal(images[i], cache.read(cache.lookup(chosen[i])))


def test_another_preprocessing_is_refused_with_the_difference(tmp_path, radiographs, caplog):
    write_shard(create_folder(tmp_path / "cache", HOW), radiographs, HOW, "uint8")
    assert find_cache(tmp_path / "cache", Preprocessing(64, "crop")) is None
    assert "image_size is 32 there and 64 here; resize is 'pad' there and 'crop' here" in (
        caplog.text
    )
    cache, reason = open_cache(tmp_path / "none", HOW)
    assert cache is None
    assert "does not exist" in reason
    (tmp_path / "empty").mkdir()
    assert "holds no decoded images" in open_cache(tmp_path / "empty", HOW)[1]
    with pytest.raises(UserError, match="as uint8, not uint16"):
        create_folder(tmp_path / "cache", HOW, np.uint16)


def test_another_version_of_the_decoder_is_refused(tmp_path, radiographs, monkeypatch):
    write_shard(create_folder(tmp_path / "cache", HOW), radiographs, HOW, "uint8")
    monkeypatch.setattr("data_pipeline.decode.preprocessing.DECODER_VERSION", 999)
    reason = open_cache(tmp_path / "cache", HOW)[1]
    assert f"decoder_version is {DECODER_VERSION} there and 999 here" in reason


def test_an_interrupted_shard_does_not_count(tmp_path, radiographs):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs[:3], HOW, "uint8")
    write_shard(folder, radiographs[3:], HOW, "uint8")
    keys = sorted(folder.glob("*.keys.npy"))
    left = np.load(keys[1])
    keys[0].unlink()
    ((_, found),) = read_keys(folder, set())
    np.testing.assert_array_equal(found["key"], left["key"])
    cache = find_cache(tmp_path / "cache", HOW)
    assert len(cache) == len(left)
    for path in radiographs:
        row = cache.lookup(path)
        if row is not None:
            np.testing.assert_array_equal(cache.read(row), load_image(path, HOW))


def test_a_miss_is_said_once(tmp_path, radiographs, caplog):
    write_shard(create_folder(tmp_path / "cache", HOW), radiographs[:2], HOW, "uint8")
    cache = find_cache(tmp_path / "cache", HOW)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.lookup(radiographs[5]) is None
    assert caplog.text.count("not in the cache") == 1


def decoded(paths):
    return np.stack([load_image(path, HOW) for path in paths])


def read_all(cache, paths):
    """Images by `read_into`, and which of them it filled in."""
    images = np.zeros((len(paths), 32, 32), np.uint8)
    return images, cache.read_into(paths, images)


def test_a_changed_file_is_read_again(tmp_path, radiographs, caplog):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs, HOW, "uint8")
    before = decoded(radiographs)
    with open(radiographs[2], "wb") as file:
        file.write(picture_bytes(ramp()[::-1] << 4, "PNG"))
    os.utime(radiographs[4], ns=(0, 1_000_000_000))  # A backup of the same size, perhaps.
    os.remove(radiographs[5])
    cache = find_cache(tmp_path / "cache", HOW)
    images, here = read_all(cache, radiographs)
    assert here.tolist() == [True, True, False, True, False, True, True]
    np.testing.assert_array_equal(images[here], before[here])
    assert cache.get(radiographs[2]) is None
    assert caplog.text.count("changed since it was prepared") == 1
    assert radiographs[2] in caplog.text
    source = ImageSource(Records.create(radiographs, source="x"), (), HOW, cache=tmp_path / "cache")
    np.testing.assert_array_equal(source[2]["image"][..., 0], load_image(radiographs[2], HOW))
    # Prepared again, the newer record counts.
    todo = to_decode(folder, np.array(radiographs, object), set())
    assert todo.tolist() == [radiographs[2], radiographs[4]]
    write_shard(folder, todo, HOW, "uint8")
    assert len(to_decode(folder, np.array(radiographs, object), set())) == 0
    cache = find_cache(tmp_path / "cache", HOW)
    assert len(cache) == 7
    np.testing.assert_array_equal(cache.get(radiographs[2]), load_image(radiographs[2], HOW))


def test_a_cache_of_an_earlier_version_is_read(tmp_path, radiographs, caplog):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs, HOW, "uint8")
    (path,) = folder.glob("*.keys.npy")
    np.save(path, np.load(path)["key"])
    with caplog.at_level(logging.INFO):
        cache = find_cache(tmp_path / "cache", HOW)
    assert "before sizes and times of files were recorded" in caplog.text
    images, here = read_all(cache, radiographs)
    assert here.all()
    np.testing.assert_array_equal(images, decoded(radiographs))
    assert len(to_decode(folder, np.array(radiographs, object), set())) == 0


def damage(path, how, rng):
    content = bytearray(path.read_bytes())
    if how == "bit":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif how == "cut":
        del content[rng.integers(len(content)) :]
    else:
        content = bytearray(rng.bytes(len(content)))
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["array_record", "keys.npy"])
@pytest.mark.parametrize("how", ["bit", "cut", "noise"])
def test_a_damaged_shard_gives_no_wrong_image(tmp_path, radiographs, caplog, kind, how):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs[:4], HOW, "uint8")
    write_shard(folder, radiographs[4:], HOW, "uint8")
    expected = decoded(radiographs)
    rng = np.random.default_rng(0)
    path = sorted(folder.glob(f"shard-*.{kind}"))[0]
    whole = path.read_bytes()
    for _ in range(20):
        path.write_bytes(whole)
        damage(path, how, rng)
        cache = find_cache(tmp_path / "cache", HOW)
        images, here = read_all(cache, radiographs)
        np.testing.assert_array_equal(images[here], expected[here])
        assert here.sum() >= 3  # The other shard.
        for i, image_path in enumerate(radiographs):
            image = cache.get(image_path)
            assert image is None or np.array_equal(image, expected[i])
        for on_error in ("raise", "skip"):
            records = Records.create(radiographs, source="x")
            source = ImageSource(records, (), HOW, on_error=on_error, cache=tmp_path / "cache")
            batch = source.read_batch(np.arange(7))
            np.testing.assert_array_equal(batch["image"][..., 0], expected)
            assert batch["mask"].all()
    if how != "bit" or kind == "array_record":
        assert f"{path} is damaged" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_damaged_description_is_one_line(tmp_path, radiographs):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs, HOW, "uint8")
    description = folder / "preprocessing.json"
    for text in ("{", "[]", json.dumps({"dtype": "none"})):
        description.write_text(text)
        with pytest.raises(UserError, match=r"preprocessing\.json is damaged; delete"):
            find_cache(tmp_path / "cache", HOW)


def test_a_cache_is_read_while_it_grows(tmp_path, radiographs):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs[:3], HOW, "uint8")
    cache = find_cache(tmp_path / "cache", HOW)
    for path in radiographs[3:]:
        write_shard(folder, [path], HOW, "uint8")
        images, here = read_all(cache, radiographs)
        assert here.tolist() == [True] * 3 + [False] * 4
        np.testing.assert_array_equal(images[:3], decoded(radiographs[:3]))
    assert len(find_cache(tmp_path / "cache", HOW)) == 7


def test_unfinished_shards_of_the_dead_alone_are_swept(tmp_path, radiographs):
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, radiographs, HOW, "uint8")
    assert sweep(folder) == 0
    host = cache_writing._host()
    dead, alive = (folder / f".{host}-shard-{i}.array_record" for i in range(2))
    elsewhere, old = (folder / f".other-shard-{i}.array_record" for i in range(2))
    for path in (dead, alive, elsewhere, old):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 100_000,) * 2)
    with open(alive, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(folder) == 2
    assert [p.exists() for p in (dead, alive, elsewhere, old)] == [False, True, True, False]
    assert len(find_cache(tmp_path / "cache", HOW)) == 7


def test_a_writer_that_fails_leaves_nothing(tmp_path, radiographs, monkeypatch):
    folder = create_folder(tmp_path / "cache", HOW)

    def full(path, keys):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_writing.np, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(folder, radiographs, HOW, "uint8")
    assert [path.name for path in folder.iterdir()] == ["preprocessing.json"]


def test_threads_read_at_the_same_time(tmp_path, radiographs):
    folder = create_folder(tmp_path / "cache", HOW)
    for path in radiographs:
        write_shard(folder, [path], HOW, "uint8")
    expected = {path: load_image(path, HOW) for path in radiographs}
    cache = find_cache(tmp_path / "cache", HOW)
    wrong = []

    def work(seed):
        random = np.random.default_rng(seed)
        for path in random.choice(radiographs, 300):
            if not np.array_equal(cache.read(cache.lookup(path)), expected[path]):
                wrong.append(path)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_names_are_stable():
    """A change here would orphan every cache that users have."""
    assert path_keys(["/data/a.png"]).tolist() == [1798152750269355206]
    assert cache_folder("/c", Preprocessing(224)).name == Preprocessing(224).fingerprint()
