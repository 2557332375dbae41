"""Milliseconds from an image to its answer: JAX, ONNX Runtime, PyTorch and OpenVINO.

    python -m benchmarks.latency [--encoder=resnet50] [--image_size=224] \
        [--torch_python=PYTHON] [--output=benchmarks/results/latency.md]

The network with its heads, from random weights, on batches of 1 and 32 images in memory; then one
file of 2,000 x 2,000 pixels through the decoder to the answer. Times are the shortest of warm
calls: wall-clock time and processor time, which other work on the machine disturbs less. PyTorch
(torchvision's network of the same name, with its one head) and OpenVINO run in the environment of
`--torch_python`, which has torch, torchvision and openvino; this project does not require them.
`python benchmarks/reader.py` measures the page.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_BATCHES = (1, 32)
_OTHERS = """
from __future__ import annotations

import sys, time
import numpy as np, openvino, torch, torchvision

MILLISECONDS
encoder, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(int(sys.argv[4]))
network = getattr(torchvision.models, encoder)(weights=None).eval()
core = openvino.Core()
core.set_property("CPU", {"INFERENCE_NUM_THREADS": int(sys.argv[4])})
compiled = core.compile_model(path, "CPU")
with torch.inference_mode():
    for n in (1, 32):
        x = torch.rand(n, 3, size, size)
        repeats = max(3, 30 // n)
        name = f"PyTorch {torch.__version__}"
        print(name, n, *milliseconds(lambda: network(x), repeats), sep=",")
        last = x.to(memory_format=torch.channels_last)
        print(name + " channels_last", n, *milliseconds(lambda: network(last), repeats), sep=",")
for n in (1, 32):
    image = np.random.default_rng(0).integers(0, 256, (n, size, size, 1), np.uint8)
    run = lambda: compiled([image])
    name = f"OpenVINO {openvino.__version__.split('-')[0]}"
    print(name, n, *milliseconds(run, max(3, 30 // n)), sep=",")
"""


def milliseconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Shortest wall clock and processor time of the calls after the first."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return 1000 * min(wall for wall, _ in times), 1000 * min(cpu for _, cpu in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--torch_python", help="of an environment with torch and openvino")
    parser.add_argument("--output", help="Markdown file to write.")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # Before XLA starts.

    import jax
    import numpy as np
    import onnxruntime
    from PIL import Image

    import infantxray
    from data_pipeline.decode import Preprocessing
    from data_pipeline.phantom import CLASSES, render
    from infantxray.export.graph import answer_function
    from infantxray.export.onnx import session, to_onnx
    from infantxray.runs import runtime
    from infantxray.runs.model_spec import ModelSpec
    from infantxray.stage_two import inference
    from infantxray.stage_two.answers import Member

    runtime.setup()
    size, cores = args.image_size, args.cores
    spec = ModelSpec(args.encoder, "float32", Preprocessing(image_size=size), CLASSES, 18.0, 10.0)
    variables = inference.init_variables(inference.build_model(spec), size, jax.random.key(0))
    function, names = answer_function(spec, variables)
    onnx = to_onnx(function, names, size)
    run = session(onnx)
    model = infantxray.Model(Member(spec, variables))
    predict = jax.jit(inference.predict_function(spec))
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    rng = np.random.default_rng(0)
    for n in _BATCHES:
        image = rng.integers(0, 256, (n, size, size, 1), np.uint8)
        repeats = max(3, 30 // n)
        for name, call in (
            (f"JAX {jax.__version__}", lambda: jax.block_until_ready(predict(variables, image))),  # noqa: B023
            (f"ONNX Runtime {onnxruntime.__version__}", lambda: run.run(None, {"image": image})),  # noqa: B023
        ):
            rows.setdefault(name, {})[n] = milliseconds(call, repeats)
            print(name, n, rows[name][n], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        address = "phantom:infant:seed=0:site=a:split=test:film=3"
        picture = Image.fromarray(render(address, 1000)).resize((2000, 2000))
        files = {}
        for suffix in ("png", "jpg"):
            picture.save(path := f"{folder}/image.{suffix}")
            files[suffix.upper()] = milliseconds(lambda: model.predict(path), 20)
            print(suffix, files[suffix.upper()], flush=True)
        if args.torch_python:
            Path(folder, "model.onnx").write_bytes(onnx)
            program = _OTHERS.replace("MILLISECONDS", inspect.getsource(milliseconds))
            command = [args.torch_python, "-c", program, args.encoder, str(size)]
            done = subprocess.run(
                [*command, f"{folder}/model.onnx", str(cores)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            for line in done.stdout.splitlines():
                name, n, wall, cpu = line.split(",")
                rows.setdefault(name, {})[int(n)] = float(wall), float(cpu)
    lines = [
        "# Latency of predictions",
        "",
        f"{datetime.date.today()}, {args.encoder} at {size} px, {cores} CPU core(s), load of the "
        f"machine at the start {load:.1f}, `python -m benchmarks.latency --cores={cores}`. Warm, "
        "float32, shortest of the calls. PyTorch runs torchvision's network on three channels.",
        "",
        "| program | 1 image, ms: clock, processor | 32 images, ms: clock, processor |",
        "|---|---|---|",
        *(
            f"| {k} | {v[1][0]:.0f}, {v[1][1]:.0f} | {v[32][0]:.0f}, {v[32][1]:.0f} |"
            for k, v in rows.items()
        ),
        "",
        "`infantxray.load(...).predict(file)`, 2,000 x 2,000 pixels, file to answer: "
        + ", ".join(f"{k} {v[0]:.0f}, {v[1]:.0f} ms" for k, v in files.items())
        + ".",
    ]
    print("\n".join(lines))
    if args.output:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
