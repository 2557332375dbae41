"""Decoders that crash, hang or eat memory cost the program one file, not its life."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from data_pipeline.decode import isolation
from data_pipeline.decode.radiograph import Refused

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
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
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


def test_a_image_may_take_long_if_it_is_large():
    assert isolation.time_limit(100) <= 5
    assert isolation.time_limit(50_000_000) > 20
