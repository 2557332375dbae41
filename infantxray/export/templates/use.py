"""python use.py image.png: reads an image with the exported model (onnxruntime and pillow)."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_image(path, how):
    """An 8-bit picture, bright = dense, as the square image [S, S] that the model expects.

    `how` is `preprocessing` of model.json. infantxray and the page read DICOM and 16 bits too.
    """
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        sys.exit(f"{path} has more than 8 bits a pixel: use infantxray or reader.html")
    image = image.convert("L")
    if how["trim_borders"]:
        pixels = np.asarray(image, np.float32)
        left, right, top, bottom = map(_margin, (pixels.T, pixels.T[::-1], pixels, pixels[::-1]))
        image = image.crop((left, top, image.width - right, image.height - bottom))
    size = how["image_size"]
    inner = (size, size)
    if how["resize"] == "pad":  # Fill up with black; "squash" stretches.
        scale = size / max(image.size)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    elif how["resize"] == "crop":  # Cut the longer side at both ends.
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    square = Image.new("L", (size, size))
    corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
    square.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    return np.asarray(square)


def _margin(lines):
    """How many of the first lines [N, M] are uniform margin, at most two fifths."""
    near = np.abs(lines[: 2 * len(lines) // 5] - np.median(lines[0])) <= 0.04 * 255
    return int(np.append(near.mean(axis=1) >= 0.98, False).argmin())


def main():
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
    image = read_image(sys.argv[1], model["preprocessing"])
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {"image": image[None, ..., None]})
    found = {node.name: values for node, values in zip(session.get_outputs(), outputs, strict=True)}
    for k in np.argsort(-found["probabilities"][0]) if model["classes"] else ():
        print(f"{found['probabilities'][0, k]:.3f} {model['classes'][k]}")
    if "age_months" in found:
        print(f"age {found['age_months'][0]:.1f} months")


if __name__ == "__main__":
    main()
