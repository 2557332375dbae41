"""python use.py image.png: reads an image with the exported model (onnxruntime and pillow)."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) != 2:
    sys.exit(__doc__)
folder = Path(__file__).parent
sums = folder / "SHA256SUMS"
for line in sums.read_text(errors="replace").splitlines() if sums.exists() else ():
    digest, _, name = line.partition("  ")
    if name in ("model.json", "model.onnx"):
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            sys.exit(f"{path} is damaged: it differs from its checksum in SHA256SUMS")
model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
size = model["preprocessing"]["image_size"]
# An 8-bit picture, bright = dense, padded to a square; infantxray and the page read DICOM too.
image = ImageOps.pad(Image.open(sys.argv[1]).convert("L"), (size, size), Image.Resampling.BOX)
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
outputs = session.run(None, {"image": np.asarray(image)[None, ..., None]})
found = {node.name: values for node, values in zip(session.get_outputs(), outputs, strict=True)}
for k in np.argsort(-found["probabilities"][0]) if model["classes"] else ():
    print(f"{found['probabilities'][0, k]:.3f} {model['classes'][k]}")
if "age_months" in found:
    print(f"age {found['age_months'][0]:.1f} months")
