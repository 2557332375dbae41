"""The study for one GPU: its commands are understood, and its page says what was not run."""

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_study.py"


@pytest.fixture(scope="module")
def script():
    sys.modules.pop("gpu_study", None)
    return argparse.Namespace(**runpy.run_path(str(SCRIPT), run_name="gpu_study"))


def arguments(out):
    return argparse.Namespace(
        adults="phantom:adult", children="phantom:infant", out=str(out), threads=2,
        given_splits="keep",
    )  # fmt: skip


def test_commands_are_understood_and_arms_have_one_length(script, tmp_path):
    size = script.SIZES["full"]
    prepare, planned = script.commands(size, 224, arguments(tmp_path))
    assert "--config.data.image_size=224" in prepare
    result = subprocess.run(
        [*planned, "--config.study.dry_run=True"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert "8 runs, 0 finished" in result.stderr + result.stdout
    for arm in script.ARMS:
        assert result.stdout.count(f" {arm} ") == 2


def test_the_page_lists_what_was_not_run(script, tmp_path):
    size = script.SIZES["tiny"]
    folder = tmp_path / "study32" / "finetune" / "vgg19" / "random" / "fraction1" / "seed0"
    folder.mkdir(parents=True)
    metrics = {"roc_auc": 0.75, "accuracy": 0.5, "ci95": {"roc_auc": [0.7, 0.8]}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "study_run.json").write_text(json.dumps({"seconds": 90.0}))
    page = script.page(size, tmp_path, 3.0)
    assert "| 32 | 100% | random | 0.750 [0.700, 0.800] | 0.500 | 1.5 |" in page
    assert "Not run: 32 px, 100%, paper; 32 px, 100%, best." in page


@pytest.mark.slow
def test_tiny_size_runs_from_end_to_end(tmp_path):
    command = [sys.executable, str(SCRIPT), "--size=tiny", f"--out={tmp_path}", "--threads=1"]
    command += ["--adults=phantom:adult:films=44", "--children=phantom:infant:films=44"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.count("| 32 | 100% |") == 3
    assert "Not run: nothing" in page
