"""Parity of exported programs and checkpoints, for all encoders.

    python -m benchmarks.export_parity [--output=benchmarks/results/export_parity.md]

Weights and statistics are perturbed: zero-initialised residual scales would hide a wrong branch.
ONNX runs in ONNX Runtime, StableHLO in a process that imports JAX and NumPy alone, and the
checkpoint through `predict_function`. It takes 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from data_pipeline.decode import Preprocessing
from infantxray.export.graph import answer_function
from infantxray.export.onnx import session, to_onnx
from infantxray.export.stablehlo import to_stablehlo
from infantxray.models import ENCODERS
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference

_SIZE, _BATCHES = 64, (1, 2, 5)
_CLASSES = ("normal", "intussusception", "constipation")
_PLAIN = """
import sys, jax, numpy as np
call = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **{f"{n}_{i}": x for n in images for i, x in enumerate(call(images[n]))})
assert not {"flax", "infantxray"} & set(sys.modules)
"""


def perturbed(path: tuple, x: jax.Array, rng: np.random.Generator) -> np.ndarray:
    """A parameter or statistic away from its initial value."""
    name, x = path[-1].key, np.asarray(x)
    noise = rng.normal(size=x.shape).astype(np.float32)
    if name == "var":
        return x * np.exp(0.3 * noise)
    if name == "kernel":
        grown = 20 if path[-2].key == "logits" else 1  # Else all probabilities are the same.
        return grown * (x + 0.1 * x.std() * noise)
    return x + 0.1 * noise


def compare(encoder: str, folder: Path) -> tuple[dict[str, float], np.ndarray]:
    """Largest difference by program and output, and the probabilities of five images."""
    spec = ModelSpec(encoder, "float32", Preprocessing(image_size=_SIZE), _CLASSES, 18.0, 10.0)
    rng = np.random.default_rng(0)
    model = inference.build_model(spec)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: perturbed(path, x, rng),
        inference.init_variables(model, _SIZE, jax.random.key(0)),
    )
    names = answer_function(spec, variables)[1]

    def function():
        return answer_function(spec, variables)[0]

    images = {str(n): rng.integers(0, 256, (n, _SIZE, _SIZE, 1), np.uint8) for n in _BATCHES}
    (folder / "model.stablehlo").write_bytes(to_stablehlo(function(), _SIZE))
    np.savez(folder / "images.npz", **images)
    files = [str(folder / name) for name in ("model.stablehlo", "images.npz", "found.npz")]
    subprocess.run([sys.executable, "-c", _PLAIN, *files], check=True)
    plain = np.load(folder / "found.npz")
    run = session(to_onnx(function(), names, _SIZE))
    exact, checkpoint = jax.jit(function()), jax.jit(inference.predict_function(spec))
    worst: dict[str, float] = {}
    for n, image in images.items():
        predicted = checkpoint(variables, image)
        stored = {
            "probabilities": predicted["probabilities"],
            "age_months": spec.age_in_months(predicted["age"]),
            "features": predicted["features"],
        }
        expected = dict(zip(names, exact(image), strict=True)) | stored
        onnx = run.run(list(names), {"image": image})
        for i, name in enumerate(names):
            truth = np.asarray(expected[name])
            scale = 1.0 if name == "probabilities" else max(1.0, float(np.abs(truth).max()))
            for program, found in (("ONNX", onnx[i]), ("StableHLO", plain[f"{n}_{i}"])):
                assert found.shape == truth.shape, (program, name, found.shape)
                key = f"{program} {name}"
                difference = float(np.abs(found - truth).max()) / scale
                worst[key] = max(worst.get(key, 0.0), difference)
    return worst, np.asarray(stored["probabilities"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--output", help="Markdown file to write.")
    args = parser.parse_args()
    outputs = ("probabilities", "age_months", "features", "saliency")
    keys = [f"{program} {name}" for program in ("ONNX", "StableHLO") for name in outputs]
    lines = [
        "# Exported programs against the checkpoint",
        "",
        f"Largest difference over batches of {', '.join(map(str, _BATCHES))} images of {_SIZE} px,"
        " perturbed weights and statistics: absolute for probabilities, relative to the largest "
        "value for the others. Saliency is compared with the same function in JAX. Where "
        "probabilities are saturated, ages and features are the check. jax "
        f"{jax.__version__}, CPU. `python -m benchmarks.export_parity`.",
        "",
        f"| encoder | {' | '.join(keys)} | range of the probabilities |",
        f"|---|{'---|' * (len(keys) + 1)}",
    ]
    for encoder in args.encoders.split(","):
        with tempfile.TemporaryDirectory() as folder:
            worst, p = compare(encoder, Path(folder))
        assert max(worst.values()) <= 1e-4, (encoder, worst)
        cells = " | ".join(f"{worst[key]:.1e}" for key in keys)
        lines.append(f"| {encoder} | {cells} | {p.min():.3f} to {p.max():.3f} |")
        print(lines[-1], flush=True)
    if args.output:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
