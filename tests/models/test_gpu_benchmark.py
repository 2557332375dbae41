"""The GPU benchmark runs from end to end, on a CPU at its smallest size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL = r"[\d,.]+ \| "
# Time, images a second, part of the floor, memory, compilation.
ROW = rf"\| vgg19 \| %s \| {5 * CELL}"


def run_tiny(tmp_path, *arguments: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--size=tiny", "--forms=cpu"]
    command += ["--seconds=500", f"--out={tmp_path / 'page.md'}"]
    command += [f"--cache={ROOT / '.jax_cache' / 'gpu'}", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Not measured" not in page
    return page


def test_each_form_is_compared_with_the_default(tmp_path):
    page = run_tiny(tmp_path, "--each-form")
    assert re.search(ROW % "two", page), page
    assert re.search(rf"vgg19 \| two \| max_pool=lax \| {2 * CELL}".strip(), page), page


@pytest.mark.slow
def test_tiny_size_fills_the_page(tmp_path):
    page = run_tiny(tmp_path)
    for stage in ("one", "two"):
        assert re.search(ROW % stage, page), page
    assert len(re.findall(r"(?:cold|warm): [\d.]+ s \(vgg19", page)) == 2, page
    assert re.search(r"[\d.]+ ms fed .* [\d.]+ ms resident", page), page
