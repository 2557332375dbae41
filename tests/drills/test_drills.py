"""Short forms of the drills. All of them run with INFANTXRAY_SLOW_TESTS=1, in minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from soak import LIMITS

ROOT = Path(__file__).resolve().parents[2]

DRILLS = Path(__file__).parent


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(DRILLS / script), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")},
    )  # fmt: skip


def test_memory_threads_and_files_stay_flat(tmp_path):
    answer = run("soak.py", "--steps=400", f"--output={tmp_path / 'soak.json'}")
    found = json.loads((tmp_path / "soak.json").read_text())
    assert [row["step"] for row in found["rows"][-8:]] == list(range(50, 401, 50)), answer.stderr
    for name, value in found["growth"].items():
        measure = name.rpartition(" ")[0]
        if measure != "cpu_ms_a_step":  # Too noisy in so few steps.
            assert value <= LIMITS[measure], found["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("kill.py", "--count=4", "pretrain", "prepare"),
        ("bitflips.py", "--count=10"),
        ("signals.py", "--count=3", "pretrain", "export_phantom"),
        ("disk_full.py", "--count=2", "pretrain", "export_phantom"),
    ],
    ids=lambda command: command[0],
)
def test_drill(command):
    if command[0] == "disk_full.py" and os.geteuid():
        pytest.skip("mounting a small disk needs root")
    answer = run(*command)
    assert answer.returncode == 0, answer.stdout + answer.stderr
