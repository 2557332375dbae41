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


def hang():
    time.sleep(60)


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


def run(function, *args, timeout_s=20.0):
    return isolation.run_isolated(f"{HERE}:{function.__name__}", *args, timeout_s=timeout_s)


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


def test_a_hang_ends_in_time():
    run(double, np.ones(1))
    start = time.monotonic()
    with pytest.raises(Refused, match="did not finish within 1 s"):
        run(hang, timeout_s=1.0)
    assert time.monotonic() - start < 4


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


def test_a_film_may_take_long_if_it_is_large():
    assert isolation.time_limit(100) <= 5
    assert isolation.time_limit(50_000_000) > 20
