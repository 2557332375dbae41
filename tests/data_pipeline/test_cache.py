"""Decoded images come back as they would be decoded, and never for another preprocessing."""

import logging
import threading

import numpy as np
import pytest
from image_files import picture_bytes, ramp

from data_pipeline.cache import (
    cache_folder,
    cached_keys,
    create_folder,
    find_cache,
    open_cache,
    path_keys,
    write_shard,
)
from data_pipeline.decode import DECODER_VERSION, Preprocessing, load_image
from data_pipeline.errors import UserError

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
    assert cache.missing(radiographs) == 1
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
    np.testing.assert_array_equal(cached_keys(folder), np.sort(left))
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
