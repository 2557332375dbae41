"""Manifests and images in an object store: fsspec's `memory://` stands for `gs://` and `s3://`."""

import io
import os
import re

import fsspec
import numpy as np
import pytest
from PIL import Image

from data_pipeline import remote
from data_pipeline.audit import measure
from data_pipeline.cache import find_cache
from data_pipeline.cache_writing import create_folder, write_shard
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import DataError, UnreadableImage
from data_pipeline.extras import install_line
from data_pipeline.loader import ImageSource, training_batches
from data_pipeline.manifest import read_manifest
from data_pipeline.sources import open_sources

HOW = Preprocessing(image_size=32)


@pytest.fixture
def bucket():
    """Four images and a manifest; one image is named by its whole address."""
    store = fsspec.filesystem("memory")
    rng = np.random.default_rng(0)
    for i in range(4):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(content, "png")
        store.pipe_file(f"/bucket/images/{i}.png", content.getvalue())
    rows = ["a/../images/0.png", "images/1.png", "images/2.png", "memory://bucket/images/3.png"]
    lines = ["image_path,label", *(f"{row},{'ab'[i % 2]}" for i, row in enumerate(rows))]
    store.pipe_file("/bucket/manifest.csv", "\n".join(lines).encode())
    yield store
    store.rm("/bucket", recursive=True)


def test_a_manifest_and_its_images(bucket):
    records = open_sources("manifest:memory://bucket/manifest.csv")
    paths = [f"memory://bucket/images/{i}.png" for i in range(4)]
    assert records.image_path.tolist() == paths
    assert records.source[0] == "manifest:memory://bucket/manifest.csv"
    expected = {load_image(path, HOW).tobytes() for path in paths}
    assert len(expected) == 4
    batch = next(training_batches(ImageSource(records, ("a", "b"), HOW), 4, seed=0, num_threads=2))
    assert {image.tobytes() for image in batch["image"]} == expected


def test_images_of_a_local_manifest_and_their_cache(bucket, tmp_path):
    path = "memory://bucket/images/1.png"
    (tmp_path / "manifest.csv").write_text(f"image_path\n{path}\n")
    assert read_manifest(tmp_path / "manifest.csv").image_path.tolist() == [path]
    assert measure([path], num_processes=1).readable.all()
    image = load_image(path, HOW)
    assert write_shard(create_folder(tmp_path / "cache", HOW), [path], HOW, "uint8") == (1, [])
    bucket.rm("/bucket/images/1.png")
    np.testing.assert_array_equal(find_cache(tmp_path / "cache", HOW).get(path), image)


def test_a_cache_in_a_store_is_copied_once(bucket, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="data_pipeline")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = "memory://bucket/images/1.png"
    image = load_image(path, HOW)
    folder = create_folder(tmp_path / "cache", HOW)
    write_shard(folder, [path], HOW, "uint8")
    for name in folder.iterdir():
        bucket.pipe_file(f"/bucket/decoded/{folder.name}/{name.name}", name.read_bytes())
    bucket.pipe_file("/bucket/decoded/other/shard-1.array_record", b"of another preprocessing")
    bucket.rm("/bucket/images/1.png")
    np.testing.assert_array_equal(find_cache("memory://bucket/decoded/", HOW).get(path), image)
    copies = {p.name for p in (tmp_path / "home").rglob("*") if p.is_file()}
    assert copies == {name.name for name in folder.iterdir()} | {".lock"}
    assert caplog.text.count("copying memory://bucket/decoded") == 1
    find_cache("memory://bucket/decoded", HOW)
    assert caplog.text.count("copying memory://bucket/decoded") == 1
    # A copy that was cut is made again.
    (shard,) = (tmp_path / "home").rglob("*.array_record")
    shard.write_bytes(shard.read_bytes()[:10])
    np.testing.assert_array_equal(find_cache("memory://bucket/decoded", HOW).get(path), image)
    # As with a folder, the log says why a cache is not used.
    assert find_cache("memory://bucket/decoded", Preprocessing(96)) is None
    assert "was prepared differently: image_size is 32 there and 96 here" in caplog.text
    for _ in range(2):
        assert find_cache("memory://bucket/nothing", HOW) is None
    assert caplog.text.count("memory://bucket/nothing holds no decoded images") == 1


def test_what_is_not_there_is_said(bucket):
    with pytest.raises(UnreadableImage, match=r"memory://bucket/9\.png: the file does not exist"):
        load_image("memory://bucket/9.png", HOW)
    with pytest.raises(
        DataError, match=r"memory://bucket/no\.csv cannot be read \(there is no such"
    ):
        read_manifest("memory://bucket/no.csv")
    bucket.pipe_file("/bucket/empty.png", b"")
    with pytest.raises(UnreadableImage, match="the file is empty"):
        load_image("memory://bucket/empty.png", HOW)


@pytest.mark.parametrize(("protocol", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_package_is_named(protocol, extra, tmp_path, monkeypatch):
    def missing(path):
        raise ImportError("Please install it")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    path = f"{protocol}://bucket/a.png"
    with pytest.raises(DataError, match=re.escape(install_line(extra))):
        read_manifest(path)
    with pytest.raises(DataError, match=re.escape(install_line(extra))) as caught:
        load_image(path, HOW)
    assert not isinstance(caught.value, UnreadableImage)  # Never skipped as a bad file.


def test_gcsfs_does_not_ask_for_the_kind_of_bucket(monkeypatch):
    monkeypatch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", raising=False)
    asked = []

    def url_to_fs(path):
        asked.append(os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"])
        raise ImportError

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    for chosen in ("false", "true"):
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", chosen)
        with pytest.raises(DataError):
            remote.read("gs://bucket/a.png")
    monkeypatch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
    with pytest.raises(DataError):
        remote.read("gs://bucket/a.png")
    assert asked == ["false", "true", "false"]


def test_errors_of_a_library_are_those_of_a_file(monkeypatch):
    class Store:
        def cat_file(self, name, start=None, end=None):
            raise RuntimeError("no such\nbucket")

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda path: (Store(), path))
    with pytest.raises(UnreadableImage, match=r"cannot be opened \(RuntimeError: no such bucket\)"):
        load_image("gs://bucket/a.png", HOW)


def test_other_addresses_are_paths():
    assert not remote.is_remote("https://example.org/a.png")
    assert not remote.is_remote("/data/gs:/a.png")
    assert remote.normpath("/data/../a//b") == "/a/b"
    assert remote.normpath("gs://bucket/a/../b//c.png") == "gs://bucket/b/c.png"
