"""The GPU benchmark runs from end to end, on a CPU at its smallest size."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tiny_size_fills_the_page(tmp_path):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "gpu.py",
        "--size=tiny",
        "--seconds=500",
        "--forms=cpu",
    ]
    command += [f"--out={tmp_path / 'page.md'}", f"--cache={ROOT / '.jax_cache' / 'gpu'}"]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    cell = r"[\d,.]+ \| "
    for stage in ("one", "two"):
        # Time, images a second, part of the floor, memory, compilation.
        assert re.search(rf"\| vgg19 \| {stage} \| {5 * cell}", page), page
    assert re.search(rf"vgg19 \| two \| max_pool=lax \| {2 * cell}".strip(), page), page
    assert len(re.findall(r"(?:cold|warm): [\d.]+ s \(vgg19", page)) == 2, page
    assert re.search(r"[\d.]+ ms fed .* [\d.]+ ms resident", page), page
    assert "Not measured" not in page
