"""Images a second on one core, by format and size, here and with other readers, to 224 pixels.

From the repository's root, about two minutes:

    python benchmarks/decode.py --output benchmarks/results/decode.md

The other readers, each with the fewest steps to a square grey image:
  Pillow: open, to eight bits of grey, resize (BILINEAR, which anti-aliases).
  pydicom: pixel_array, modality LUT, VOI LUT, inversion, then Pillow's resize.
  torchvision: decode_image as grey, resize with antialias. (Where it and its image codecs import.)
  MONAI: LoadImage with its Pillow or pydicom reader, and area interpolation. (Where it imports.)
None of them inverts MONOCHROME1, limits sizes, or isolates codecs that may crash. All readers take
turns on the same files; a rate is the median over the turns.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data_pipeline")]

import numpy as np  # noqa: E402
import pydicom  # noqa: E402
from image_files import dicom_bytes, jpeg_2000, picture_bytes  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless  # noqa: E402

from data_pipeline.decode import Preprocessing, load_image  # noqa: E402

SIDE = 224
SIZES = (512, 1024, 2048)
TURNS = 5
SECONDS_A_TURN = 0.4


def radiograph(side: int) -> np.ndarray:
    """Twelve bits of smooth shapes and quantum noise, as compressible as a radiograph."""
    random = np.random.default_rng(side)
    coarse = Image.fromarray(random.uniform(300, 3500, (12, 12)).astype(np.float32))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(smooth + random.normal(0, 12, (side, side)), 0, 4095).astype(np.uint16)


def files(side: int) -> dict[str, bytes]:
    pixels = radiograph(side)
    small = (pixels >> 4).astype(np.uint8)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    return {
        "JPEG": picture_bytes(small, "JPEG", quality=90),
        "PNG, 8 bits": picture_bytes(small, "PNG"),
        "PNG, 16 bits": picture_bytes(pixels << 4, "PNG"),
        "TIFF, 16 bits": picture_bytes(pixels << 4, "TIFF"),
        "DICOM, uncompressed": dicom_bytes(pixels, **window),
        "DICOM, run-length": dicom_bytes(pixels, syntax=RLELossless, **window),
        "DICOM, JPEG": dicom_bytes(
            small, syntax=JPEGBaseline8Bit, compressed=picture_bytes(small, "JPEG", quality=90)
        ),
        "DICOM, JPEG 2000": dicom_bytes(
            pixels, syntax=JPEG2000Lossless, compressed=jpeg_2000(pixels), BitsStored=16,
            HighBit=15, **window,
        ),
    }  # fmt: skip


def here(path: str) -> np.ndarray:
    return load_image(path, Preprocessing(SIDE))


def with_pillow(path: str) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray(np.asarray(image).astype(np.float32) / 257)
        else:
            image = image.convert("L")
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.uint8)


def with_pydicom(path: str) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = values.max() - values
    image = Image.fromarray(values.astype(np.float32) / max(values.max(), 1) * 255)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.uint8)


def torchvision_reader():
    """None where torchvision or its image codecs do not import."""
    try:
        import torch

        torch.set_num_threads(1)
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2 import functional

        decode_image(torch.frombuffer(bytearray(files(64)["JPEG"]), dtype=torch.uint8))
    except (ImportError, RuntimeError):
        return None

    def read(path: str) -> np.ndarray:
        image = decode_image(path, ImageReadMode.GRAY)
        return functional.resize(image, [SIDE, SIDE], antialias=True)[0].numpy()

    return read


def monai_reader():
    """None where MONAI does not import."""
    try:
        import torch

        torch.set_num_threads(1)
        from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize
    except ImportError:
        return None

    def pipeline(reader):
        return Compose(
            [
                LoadImage(image_only=True, reader=reader),
                EnsureChannelFirst(channel_dim="no_channel"),
                Resize((SIDE, SIDE), mode="area"),
            ]
        )

    pictures, images = pipeline("PILReader"), pipeline("PydicomReader")

    def read(path: str) -> np.ndarray:
        image = (images if path.endswith(".dcm") else pictures)(path)
        return image.squeeze().numpy()

    return read


def rate(read, path: str) -> float:
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS_A_TURN or count < 2:
        read(path)
        count += 1
    return count / elapsed


def measure(path: str, readers: dict) -> dict[str, float]:
    """Images a second of each reader; those that fail on this file are left out."""
    usable = {}
    for name, read in readers.items():
        try:
            read(path)
            usable[name] = read
        except Exception as error:
            print(f"{name} cannot read {path}: {type(error).__name__}", file=sys.stderr)
    rates = {name: [] for name in usable}
    for _ in range(TURNS):
        for name, read in usable.items():
            rates[name].append(rate(read, path))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Of the other readers.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = {"torchvision": torchvision_reader(), "MONAI": monai_reader()}
    absent = [name for name, read in others.items() if read is None]
    others = {name: read for name, read in others.items() if read is not None}
    names = ["here", "Pillow or pydicom", *others]
    out = io.StringIO()
    print(f"# Decoding to {SIDE} pixels, images a second on one core\n", file=out)
    print(f"{datetime.date.today()}, Python {platform.python_version()}, "
          f"`python {' '.join(sys.argv)}`\n", file=out)  # fmt: skip
    print(f"Did not import: {', '.join(absent) or 'none'}. Other programs may have run: compare "
          "along a row, not down a column.\n", file=out)  # fmt: skip
    print(f"| format | side | {' | '.join(names)} | here / Pillow or pydicom |", file=out)
    print(f"|---|---|{'---|' * (len(names) + 1)}", file=out)
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sizes:
            for kind, data in files(side).items():
                dicom = kind.startswith("DICOM")
                path = os.path.join(folder, "image.dcm" if dicom else "image.png")
                Path(path).write_bytes(data)
                readers = {
                    "here": here,
                    "Pillow or pydicom": with_pydicom if dicom else with_pillow,
                }
                rates = measure(path, readers | others)
                cells = [f"{rates[name]:.1f}" if name in rates else "–" for name in names]
                ratio = rates["here"] / rates["Pillow or pydicom"]
                row = f"| {kind} | {side} | {' | '.join(cells)} | {ratio:.2f} |"
                print(row, flush=True)
                print(row, file=out)
    if options.output:
        Path(options.output).write_text(out.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
