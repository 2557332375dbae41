"""configs/prepare.py: every image once, resumable, bad files listed."""

import contextlib
import csv
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

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


ROOT = Path(__file__).resolve().parents[2]
PLANTED = "import os, sys; open(os.path.join({!r}, os.path.basename(__file__)), 'w'); sys.exit(9)"


def start(images, workdir, *more, cwd=None):
    """Prepares in another process, as a user would."""
    settings = {"data.train": f"folder:{images}:labels=none", "data.image_size": 32}
    settings |= {"num_processes": 2, "images_per_shard": 4}
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/prepare.py"),
            *(f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in settings.items()), *more),
        ],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid):
    """Process ids of the living descendants of a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def many(images, number=600):
    """Enough images to be interrupted in the middle: links to a large one."""
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(0, 255, (1000, 1000), np.uint8)).save(images / "0.png")
    for i in range(10, number):
        os.link(images / "0.png", images / f"{i}.png")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interruption_leaves_no_process_and_no_unfinished_shard(images, tmp_path, how):
    many(images)
    workdir = tmp_path / "cache"
    process = start(images, workdir)
    wait_until(lambda: len(list(workdir.glob("*/shard-*.keys.npy"))) >= 2)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    before = len(find_cache(workdir, Preprocessing(32)))
    assert 8 <= before < 600
    if how != signal.SIGKILL:
        assert process.returncode == 2
        last = output.strip().splitlines()[-1]
        assert re.fullmatch(r"error: stopped with \d+ of 600 .* the same command resumes", last)
        assert "Traceback" not in output
        assert not list(workdir.glob("*/.*"))
    else:
        run(settings(images), str(workdir))
        assert len(find_cache(workdir, Preprocessing(32))) == 600
    assert not list(workdir.glob("*/.*"))


def test_nothing_in_the_working_folder_is_executed(images, tmp_path):
    here, seen = tmp_path / "here", tmp_path / "seen"
    for folder in (here, seen):
        folder.mkdir()
    for name in ("numpy", "multiprocessing", "pickle", "sitecustomize", "json", "PIL"):
        for folder in (here, images):
            (folder / f"{name}.py").write_text(PLANTED.format(str(seen)))
    process = start(images, tmp_path / "cache", cwd=here)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert not list(seen.iterdir())
    assert len(find_cache(tmp_path / "cache", Preprocessing(32))) == 10


def test_two_machines_fill_the_same_folder(images, tmp_path):
    many(images, 200)
    workdir = tmp_path / "cache"
    both = [start(images, workdir) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    cache = find_cache(workdir, Preprocessing(32))
    assert len(cache) == 200
    records = sum(len(np.load(path)) for path in workdir.glob("*/shard-*.keys.npy"))
    assert 200 <= records < 400  # They share the work.
    expected = load_image(str(images / "0.png"), Preprocessing(32))
    np.testing.assert_array_equal(cache.get(str(images / "150.png")), expected)


def test_a_changed_image_is_prepared_again(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(settings(images), str(tmp_path / "cache"))
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(images / "3.png")
    caplog.clear()
    run(settings(images), str(tmp_path / "cache"))
    assert "10 images, 1 of them to decode" in caplog.text
    image = find_cache(tmp_path / "cache", Preprocessing(32)).get(str(images / "3.png"))
    np.testing.assert_array_equal(image, load_image(str(images / "3.png"), Preprocessing(32)))


def test_on_a_ray_cluster(images, tmp_path):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    run(settings(images, ray_address="local"), str(tmp_path / "cache"))
    assert len(find_cache(tmp_path / "cache", Preprocessing(32))) == 10
