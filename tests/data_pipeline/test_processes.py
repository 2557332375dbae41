"""Child processes start isolated, are told to stop, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_pipeline import processes


def test_the_environment_has_no_relative_entries(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "here", "/there"]))
    found = processes.child_environment()
    assert found["PYTHONSAFEPATH"] == "1"
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(processes.ROOT), "/there"]
    # Again, as in a child of a child.
    assert processes.child_environment(found) == found
    code = "import sys; print(sys.path[0], '' in sys.path)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=found, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(processes.ROOT), "False"]


def test_an_installed_package_is_not_put_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    assert processes.child_environment({})["PYTHONPATH"] == ""


def test_the_own_environment_is_restored(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with processes.isolated_start():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONPATH"] == "before"
    assert "PYTHONSAFEPATH" not in os.environ


def wait_for_stop():
    end = time.monotonic() + 60
    while not processes.stopping() and time.monotonic() < end:
        time.sleep(0.01)
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return processes.stopping(), ignored, sys.flags.safe_path


def test_workers_are_isolated_and_are_told_to_stop():
    assert not processes.stopping()
    with processes.WorkerPool(1) as pool:
        future = pool.submit(wait_for_stop)
        pool.stop()
        assert future.result(60) == (True, True, True)


def test_a_process_ends_with_its_parent(tmp_path):
    (tmp_path / "stub.py").write_text(
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    pid_file = tmp_path / "pid"
    parent = (
        "import subprocess, sys, time; from data_pipeline.processes import *; "
        f"subprocess.Popen(watched([sys.executable, '-m', 'stub', {str(pid_file)!r}]), "
        "env=child_environment()); time.sleep(60)"
    )
    environment = processes.child_environment({**os.environ, "PYTHONPATH": str(tmp_path)})
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment)
    end = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    child = Path("/proc", pid_file.read_text())
    while child.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not child.exists()
