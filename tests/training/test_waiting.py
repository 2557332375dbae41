"""Long work tells that it goes on."""

import contextlib
import logging
import threading
import time

import pytest

from infantxray.training import waiting as module
from infantxray.training.waiting import waiting


@pytest.fixture(autouse=True)
def soon(monkeypatch, caplog):
    monkeypatch.setattr(module, "SECONDS", 0.01)
    caplog.set_level(logging.INFO)


def until(caplog, text):
    for _ in range(500):
        if text in caplog.text:
            return
        time.sleep(0.01)
    pytest.fail(f"{text!r} was not logged")


def test_what_goes_on_is_told_until_it_ends(caplog):
    done = 0
    with waiting(lambda: f"{done} of 3"):
        until(caplog, "0 of 3 (0 s)")
        done = 2
        until(caplog, "2 of 3")
    assert not any(thread.name == "waiting" for thread in threading.enumerate())


def test_of_nested_work_the_inner_one_is_told(caplog):
    with waiting("outer"):
        until(caplog, "outer")
        with waiting("inner"):
            until(caplog, "inner")
            caplog.clear()
            until(caplog, "inner")
            assert "outer" not in caplog.text
        until(caplog, "outer")


def test_work_that_fails_is_told_no_more(caplog):
    with pytest.raises(ValueError, match="broken"), waiting("work"):
        raise ValueError("broken")
    assert module._open == []


def test_silence_is_counted_over_blocks(caplog, monkeypatch):
    """Many short blocks, one after another or within one, are not silent for longer than one."""
    monkeypatch.setattr(module, "SECONDS", 0.2)
    monkeypatch.setattr(module, "_PAUSE", 5.0)
    for nested in (True, False):
        caplog.clear()
        begun = time.monotonic()
        while "short" not in caplog.text:
            with waiting("outer") if nested else contextlib.nullcontext(), waiting("short"):
                time.sleep(0.03)
            assert time.monotonic() - begun < 5


def test_a_pause_begins_a_new_silence(caplog, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 5.0)
    long_ago = time.monotonic() - 10  # Such as training, with its progress bar.
    monkeypatch.setattr(module._last_line, "time", long_ago)
    monkeypatch.setattr(module._last_line, "block", long_ago)
    with waiting("short"):
        time.sleep(0.05)
    assert "short" not in caplog.text


def test_other_lines_end_a_silence(monkeypatch):
    """Also where the console's loggers do not propagate."""
    logger = logging.getLogger("infantxray.elsewhere")
    monkeypatch.setattr(logging.getLogger("infantxray"), "propagate", False)
    monkeypatch.setattr(module, "SECONDS", 60.0)
    with waiting("work"):
        monkeypatch.setattr(module._last_line, "time", 0.0)
        logger.info("a line")
        assert module._last_line.time > 0
