"""Images a second that `prepare` decodes at 224 pixels, and the time for 312,000 of them.

    python benchmarks/prepare.py JPEG=/data/images DICOM=/data/dicom \
        --output benchmarks/results/prepare.md

Files are linked under new names until there are `--images` of each kind. Unreadable files are
skipped and not counted. Images a second are by wall-clock time, including the start of the workers.
Processor time is that of one process and its decoders, without the start; it is more reliable on a
shared machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from configs.prepare import get_config  # noqa: E402
from data_pipeline.cache import find_cache  # noqa: E402
from data_pipeline.decode import Preprocessing  # noqa: E402
from infantxray.commands import prepare  # noqa: E402

_SIDE = 224
_EXTRAPOLATED = 312_000
_SAMPLE = 1000  # Images that processor time is measured on.
_SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".tif", ".tiff")


_SHARD = """
import sys
from data_pipeline.cache_writing import create_folder, write_shard
from data_pipeline.decode import Preprocessing
how = Preprocessing(int(sys.argv[2]))
print(write_shard(create_folder(sys.argv[1], how), sys.argv[3:], how, "uint8")[0])
"""


def shard_seconds(paths: list[str]) -> tuple[int, float]:
    """Images of a shard, and processor seconds to write it, decoder processes included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", _SHARD, cache, str(_SIDE), *paths]
        done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(done.stdout), seconds


def measure(source: str, images: int, processes: int) -> tuple[int, int, float, float]:
    """Different files, images decoded, seconds on the clock, processor seconds an image."""
    files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in _SUFFIXES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        for i, file in enumerate(itertools.islice(itertools.cycle(files), images)):
            os.symlink(file.resolve(), folder / f"{i:06d}{file.suffix}")
        _, start_up = shard_seconds([])
        written, seconds = shard_seconds([str(p) for p in sorted(folder.iterdir())[:_SAMPLE]])
        config = get_config()
        config.data.train = f"folder:{folder}:labels=none"
        config.data.image_size = _SIDE
        config.data.on_error = "skip"
        config.num_processes = processes
        start = time.perf_counter()
        prepare.run(config, f"{temporary}/cache")
        clock = time.perf_counter() - start
        cache = find_cache(f"{temporary}/cache", Preprocessing(_SIDE))
        return min(len(files), images), len(cache), clock, (seconds - start_up) / written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", help="Markdown file to write.")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = [
        f"# Decoding into the cache at {_SIDE} pixels",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores that other work used as well, Python "
        f"{platform.python_version()}, {options.processes} processes, `python "
        "benchmarks/prepare.py NAME=FOLDER …`.",
        "",
        "| kind | files | images | images a second | processor ms an image | "
        f"{_EXTRAPOLATED:,} images on 2 cores, by processor time | on 64 cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, _, folder in (source.partition("=") for source in options.sources):
        files, images, clock, processors = measure(folder, options.images, options.processes)
        hours = processors * _EXTRAPOLATED / 3600
        lines.append(
            f"| {name} | {files:,} | {images:,} | {images / clock:,.0f} | "
            f"{1000 * processors:.1f} | {hours / 2:.2f} h | {60 * hours / 64:.1f} min |"
        )
        print(lines[-1], flush=True)
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
