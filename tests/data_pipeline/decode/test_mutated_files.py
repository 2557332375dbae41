"""Mutated files of every format give an image or one reason, soon, and take little memory.

A few hundred in the tests; more with

    python tests/data_pipeline/decode/test_mutated_files.py 10000 [FOLDER_OF_MORE_IMAGES]
"""

import collections
import contextlib
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from image_files import SECRET, every_format  # noqa: E402

from data_pipeline.adapters.headers import _birth_date  # noqa: E402
from data_pipeline.decode import Preprocessing, load_image  # noqa: E402
from data_pipeline.decode.dicom import read_header  # noqa: E402
from data_pipeline.decode.radiograph import Refused  # noqa: E402
from data_pipeline.errors import UnreadableImage  # noqa: E402

_HEADER = 2048
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 20000)


def mutate(data, random, others):
    """One to three random kinds of damage; most of it near the beginning, where formats live."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        kind = random.integers(8)
        at = int(
            random.integers(max(1, min(len(data), _HEADER if random.random() < 0.6 else 2**40)))
        )
        length = int(2 ** random.uniform(0, 11))
        if kind == 0:  # Bits.
            for _ in range(int(2 ** random.uniform(0, 5))):
                i = int(random.integers(max(1, min(len(data), at + 512))))
                if i < len(data):
                    data[i] ^= 1 << int(random.integers(8))
        elif kind == 1:  # Bytes.
            data[at : at + length] = random.bytes(length)
        elif kind == 2:  # Cut short.
            del data[int(len(data) * random.random()) :]
        elif kind == 3:  # Something missing.
            del data[at : at + length]
        elif kind == 4:  # Something twice.
            data[at:at] = data[at : at + length]
        elif kind == 5:  # A length or size that is a lie.
            number = int(_NUMBERS[random.integers(len(_NUMBERS))])
            width = int(random.choice([1, 2, 4]))
            order = "little" if random.random() < 0.5 else "big"
            data[at : at + width] = (number % 256**width).to_bytes(width, order)
        elif kind == 6:  # Another file's middle.
            other = others[random.integers(len(others))]
            start = int(random.integers(len(other)))
            data[at : at + length] = other[start : start + length]
        else:  # Empty stretches.
            data[at : at + length] = bytes([int(random.choice([0, 255]))]) * length
    return bytes(data)


def attempt(path):
    """`"image"` or the reason for one file, and the seconds it took."""
    start = time.perf_counter()
    image = refusal = None
    try:
        image = load_image(str(path), Preprocessing(64))
    except UnreadableImage as error:
        refusal = error
    seconds = time.perf_counter() - start
    with contextlib.suppress(Refused):
        read_header(path)
    _birth_date(str(path))
    if refusal is None:
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        return "image", seconds
    assert refusal.path == str(path)
    assert refusal.reason
    assert "\n" not in refusal.reason
    assert SECRET.split("^")[0] not in refusal.reason
    return refusal.reason, seconds


def run(count, folder, more=(), seed=0):
    """Mutates and reads `count` files; returns outcomes and the longest time."""
    random = np.random.default_rng(seed)
    files = every_format() | {path.name: path.read_bytes() for path in more}
    names, contents = list(files), list(files.values())
    outcomes, slowest = collections.defaultdict(collections.Counter), 0.0
    path = Path(folder, "image")
    for i in range(count):
        name = names[i % len(names)]
        path.write_bytes(mutate(files[name], random, contents))
        outcome, seconds = attempt(path)
        outcomes[name][outcome] += 1
        slowest = max(slowest, seconds)
    return outcomes, slowest


def test_mutated_files_give_an_image_or_a_reason(tmp_path):
    outcomes, slowest = run(450, tmp_path)
    assert slowest < 5
    assert len(outcomes) == 18
    images = sum(counter["image"] for counter in outcomes.values())
    # Some damage cannot be seen in any format, and some can in each.
    assert 20 < images < 400


def test_unmutated_files_are_read(tmp_path):
    for name, data in every_format().items():
        path = tmp_path / name
        path.write_bytes(data)
        assert attempt(path)[0] == "image", name


def main(argv):
    import tempfile

    count = int(argv[1]) if len(argv) > 1 else 10_000
    more = sorted(Path(argv[2]).iterdir()) if len(argv) > 2 else []
    more = [path for path in more if path.is_file()]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, slowest = run(count, folder, more)
    for name, counter in outcomes.items():
        total = counter.total()
        refusals = counter.most_common(4)
        print(
            f"{name}: {total} files, {counter['image']} images, {total - counter['image']} refused"
        )
        for reason, times in refusals:
            print(f"    {times:6} {reason}")
    total = sum(outcomes.values(), collections.Counter())
    for bad in ("crashed", "did not answer", "processor time", "memory", "does not start"):
        times = sum(count for reason, count in total.items() if bad in reason)
        print(f"decoder: {bad}: {times}")
    images = total["image"]
    reasons = set().union(*outcomes.values()) - {"image"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} files in {time.perf_counter() - start:.0f} s: {images} images, {count - images} "
        f"refused for {len(reasons)} reasons; slowest {slowest:.2f} s; peak memory {peak:.0f} MiB"
    )
    from data_pipeline.decode.isolation import _pool

    _pool.stop()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"largest decoder process {children:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv)
