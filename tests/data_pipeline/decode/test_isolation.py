"""A decoder that crashes, hangs or eats memory costs one file; planted modules are not executed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import every_format

from data_pipeline.decode import isolation
from data_pipeline.decode.radiograph import Refused

FOLDER = Path(__file__).resolve().parent
HERE = __name__


def double(array):
    return 2 * array


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(seconds=60.0):
    time.sleep(seconds)
    return "awake"


def hang_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        time.sleep(60)
    return "at last"


def spin():
    while True:
        pass


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def eat():
    return np.ones(2**28)


def fail():
    raise ValueError("Geheim^Patient")


def refuse():
    raise Refused("not today")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers find this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])]))
    isolation._pool.stop()
    yield
    isolation._pool.stop()


def run(function, *args, cpu_s=20.0):
    return isolation.run_isolated(f"{HERE}:{function.__name__}", *args, cpu_s=cpu_s)


def test_results_come_back():
    array = np.arange(10**6, dtype=np.uint16)
    np.testing.assert_array_equal(run(double, array), 2 * array)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (die, "crashed"),
        (eat, "ran out of memory"),
        (fail, r"damaged or not what its format says \(ValueError\)"),
        (refuse, "not today"),
    ],
)
def test_failures_become_a_reason_and_the_next_call_works(function, reason):
    with pytest.raises(Refused, match=reason) as caught:
        run(function)
    assert "Geheim" not in str(caught.value)
    assert run(double, np.ones(1)) == 2


def test_a_decoder_that_never_ends_is_stopped_by_its_processor_time():
    run(double, np.ones(1))
    with pytest.raises(Refused, match="more than 1 s of processor time"):
        run(spin, cpu_s=0.6)
    assert run(double, np.ones(1)) == 2


def test_the_clock_of_a_busy_machine_does_not_count():
    assert run(hang, 1.0, cpu_s=0.3) == "awake"


def test_processor_time_is_counted_for_each_call():
    for _ in range(3):
        assert run(work, 0.3, cpu_s=0.5) == "done"


def test_a_decoder_that_waits_for_ever_is_tried_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "_WALL_TIMES", 0.25)
    assert run(hang_once, str(tmp_path / "begun"), cpu_s=20.0) == "at last"
    start = time.monotonic()
    with pytest.raises(Refused, match="did not answer, 2 times"):
        run(hang, cpu_s=2.0)
    assert time.monotonic() - start >= 1
    assert run(double, np.ones(1)) == 2


def test_the_last_resort_is_generous():
    assert isolation._WALL_TIMES * isolation.time_limit(100) >= 60


def test_threads_do_not_mix_up_answers():
    wrong = []

    def work(k):
        for _ in range(20):
            if run(double, np.full(1000, k)).tolist() != [2 * k] * 1000:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_image_may_take_long_if_it_is_large():
    assert isolation.time_limit(100) <= 5
    assert isolation.time_limit(50_000_000) > 20


ROOT = FOLDER.parents[2]
DECODE = """
import sys
sys.path.append(sys.argv[1])
from data_pipeline.decode import read_radiograph
from data_pipeline.processes import WorkerPool

def read(name):
    return read_radiograph(name).pixels.shape

if __name__ == "__main__":
    names = sys.argv[2:]
    shapes = [read(name) for name in names]
    with WorkerPool(2) as pool:
        assert list(pool.map(read, names)) == shapes
    print(shapes)
"""
# Modules that Python, the pools, the workers and the codecs import.
PLANTED = ("numpy", "multiprocessing", "signal", "threading", "struct", "pickle", "PIL", "gdcm")
PLANTED += ("openjpeg", "jpeg_ls", "data_pipeline", "sitecustomize", "concurrent", "subprocess")


@pytest.mark.parametrize("path", ["", "."])
def test_nothing_beside_the_images_is_executed(tmp_path, path):
    images = tmp_path / "images"
    images.mkdir()
    for name in PLANTED:
        (images / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    formats = every_format()
    names = ["jpeg_2000", "jpeg_ls", "jpeg_lossless", "tiff_lzw", "rle"]
    for name in names:
        (images / name).write_bytes(formats[name])
    script = tmp_path / "script.py"
    # Set by the program, because it must not be started with such a path itself.
    script.write_text(f"import os; os.environ['PYTHONPATH'] = {path!r}\n{DECODE}")
    result = subprocess.run(
        [sys.executable, str(script), str(ROOT), *names],
        cwd=images,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.count("(60, 80)") == len(names), result.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


ORPHANS = r"""
import os, sys, time
sys.path.append(sys.argv[1])
from data_pipeline.decode import isolation, read_radiograph
from data_pipeline.processes import WorkerPool

def sleep(_):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(120)

if __name__ == "__main__":
    read_radiograph(sys.argv[2])
    os.write(1, b"%d\n" % isolation._pool._idle[0]._process.pid)
    with WorkerPool(2) as pool:
        list(pool.map(sleep, range(2)))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "image").write_bytes(every_format()["jpeg_2000"])
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    command = [sys.executable, str(script), str(ROOT), str(tmp_path / "image")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(process.stdout.readline()) for _ in range(3)]
        assert all(alive(worker) for worker in workers)
        process.kill()
    end = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)
