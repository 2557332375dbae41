"""configs/prepare.py: every image once, resumable, bad files listed."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from configs.prepare import get_config
from data_pipeline.cache import find_cache
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import DataError, UserError
from infantxray.commands.prepare import run


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(random.integers(0, 255, (40, 50), np.uint8)).save(folder / f"{i}.png")
    return folder


def settings(images, **changes):
    config = get_config()
    config.data.train = f"folder:{images}:labels=none"
    config.data.image_size = 32
    config.num_processes = 2
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        setattr(config[part] if part else config, name, value)
    return config


def test_decodes_resumes_and_lists_bad_files(images, tmp_path, caplog):
    workdir = tmp_path / "cache"
    (images / "bad.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"1 of 11 images could not be read.*on_error=skip"):
        run(settings(images), str(workdir))
    rows = list(csv.reader((workdir / "bad_files.csv").read_text().splitlines()))
    assert rows == [
        ["image_path", "reason"],
        [str(images / "bad.png"), "neither DICOM, PNG, JPEG nor TIFF"],
    ]
    before = sorted(path.name for path in workdir.rglob("*.array_record"))
    run(settings(images, data__on_error="skip"), str(workdir))
    assert "1 of 11 images could not be read" in caplog.text
    assert sorted(path.name for path in workdir.rglob("*.array_record")) == before
    # Mended, and one more image.
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(images / "bad.png")
    Image.fromarray(np.full((9, 9), 9, np.uint8)).save(images / "new.png")
    run(settings(images), str(workdir))
    assert not (workdir / "bad_files.csv").exists()
    cache = find_cache(workdir, Preprocessing(32))
    assert len(cache) == 12
    for path in sorted(images.iterdir()):
        image = cache.read(cache.lookup(str(path)))
        np.testing.assert_array_equal(image, load_image(str(path), Preprocessing(32)))


def test_phantom_images_in_one_process_with_sixteen_bits(tmp_path):
    config = settings("", bits=16, num_processes=1)
    config.data.train = "phantom:infant:films=20"
    run(config, str(tmp_path))
    cache = find_cache(tmp_path, Preprocessing(32))
    assert len(cache) >= 20


def test_impossible_settings(images, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"config\.bits is 12"):
        run(settings(images, bits=12), str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install ray=="):
        run(settings(images, ray_address="auto"), str(tmp_path))


def test_on_a_ray_cluster(images, tmp_path):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    run(settings(images, ray_address="local"), str(tmp_path / "cache"))
    assert len(find_cache(tmp_path / "cache", Preprocessing(32))) == 10
