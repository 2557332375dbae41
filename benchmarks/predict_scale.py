"""Memory and images a second of `predict` over many images, with calibration and outliers.

    python -m benchmarks.predict_scale [--images=100000] [--output=FILE.md]

PNG files of 32 pixels, a narrow ResNet, calibration, prediction sets, thresholds and outlier
detection; rows are written as `configs/predict.py` writes them. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from data_pipeline.decode import Preprocessing
from data_pipeline.loader import ImageSource
from data_pipeline.manifest import Records
from infantxray.commands import predict
from infantxray.evaluation.conformal import ConformalSets
from infantxray.evaluation.operating_points import OperatingPoint
from infantxray.evaluation.outliers import fit_detector
from infantxray.models import ENCODERS
from infantxray.models.encoders import resnet
from infantxray.runs import runtime
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference
from infantxray.stage_two.answers import Answerer, Member
from infantxray.stage_two.trust import Trust

_SIZE, _BATCH, _CLASSES = 32, 64, ("normal", "intussusception", "constipation")


def member() -> Member:
    """A narrow network with random weights, with calibration and outlier detection."""
    stages = tuple(resnet.Stage(f"conv{n}", 1, 8, 1 if n == 2 else 2) for n in range(2, 6))
    ENCODERS["narrow"] = lambda **options: resnet.ResNet(stages=stages, **options)
    spec = ModelSpec("narrow", "float32", Preprocessing(image_size=_SIZE), _CLASSES, 18.0, 10.0)
    variables = inference.init_variables(inference.build_model(spec), _SIZE, jax.random.key(0))
    features = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    points = tuple(OperatingPoint(name, "youden", 0.3, 0.9, 0.9, 9, 9) for name in _CLASSES)
    trust = Trust(
        temperature=1.5,
        sets=ConformalSets("lac", 0.9, (0.8,) * 3, by_class=False),
        age_half_width_months=5.0,
        age_range_months=(0.0, 36.0),
        points=points,
        detector=fit_detector(features[:150], features[150:]),
    )
    return Member(spec, variables, trust, points=points)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--output", help="Markdown file to write.")
    args = parser.parse_args()
    runtime.setup()
    rng, samples, ended = np.random.default_rng(0), [], threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(200):
            pixels = rng.integers(0, 256, (40, 30), np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{i}.png")
        paths = [f"{folder}/{i % 200}.png" for i in range(args.images)]
        answerer = Answerer([member()], batch_size=_BATCH, num_threads=2)
        spec = answerer.members[0].spec
        source = ImageSource(Records.create(paths, source="s"), _CLASSES, spec.preprocessing)
        extras = predict.Extras(folder, answerer, json=False, pages=False, dicom=False)

        def sample() -> None:
            partial = Path(folder, "predictions.csv.partial")
            while not ended.wait(0.25):
                if partial.exists():
                    samples.append((partial.stat().st_size, resident_mb()))

        thread = threading.Thread(target=sample)
        thread.start()
        start = time.perf_counter()
        count = predict.write_rows(f"{folder}/predictions.csv", answerer, source, extras)
        seconds = time.perf_counter() - start
        ended.set()
        thread.join()
        size = os.path.getsize(f"{folder}/predictions.csv")
    at = [
        max(mb for bytes_, mb in samples if low * size < bytes_ <= high * size)
        for low, high in ((0.05, 0.2), (0.4, 0.6), (0.8, 1.0))
    ]
    lines = [
        "# Memory of predictions",
        "",
        f"{datetime.date.today()}, `python -m benchmarks.predict_scale --images={args.images}`: "
        f"files of {_SIZE} px, a narrow ResNet, all of trust.",
        "",
        "| images | images a second | resident MB at 5-20 % | at 40-60 % | at 80-100 % |",
        "|---|---|---|---|---|",
        f"| {count:,} | {count / seconds:.0f} | {' | '.join(f'{mb:.0f}' for mb in at)} |",
    ]
    print(lines[-1])
    if args.output:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
