import json
import subprocess

import numpy as np
import pytest

from data_pipeline import files
from data_pipeline.errors import DataError

VALUES = {"b": [1, 2.5, None], "a": {"text": "äß"}, "n": 3}


def test_json_with_a_checksum_comes_back_equal_and_in_order(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, VALUES, checksum=True)
    assert files.read_json(path) == VALUES
    assert list(json.loads(path.read_text())) == ["b", "a", "n", "checksum"]
    files.write_json(path, VALUES)
    assert json.loads(path.read_text()) == VALUES
    assert files.read_json(path) == VALUES


def test_every_changed_bit_of_the_values_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, VALUES, checksum=True)
    content = path.read_bytes()
    silent = []
    for at in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            path.write_bytes(bytes(changed))
            try:
                if files.read_json(path) != VALUES:
                    silent.append((at, bit))
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017
    # A damaged key "checksum" is a key more, and no checksum: the reader refuses unknown keys.
    start = content.index(b"checksum")
    assert all(start <= at < start + 8 for at, _ in silent)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b'{"a": ', b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "list", "cut", "bytes", "deep"],
)
def test_what_is_not_a_json_object_is_an_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not"):
        files.read_json(path)


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.npy").write_bytes(np.arange(9).tobytes())
    (tmp_path / "ä.txt").write_text("hello")
    files.write_checksums(tmp_path)
    files.verify_checksums(tmp_path)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.count(": OK") == 2


def test_changed_missing_and_unlisted_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files.verify_checksums(tmp_path)  # Nothing to compare with.
    files.write_checksums(tmp_path, ["a", "b"])
    (tmp_path / "a").write_text("A")
    files.verify_checksums(tmp_path, ["b", "c"])
    with pytest.raises(DataError, match=r"a was changed or damaged"):
        files.verify_checksums(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(DataError, match=r"a is missing, and SHA256SUMS lists it"):
        files.verify_checksums(tmp_path, ["a"])
    (tmp_path / "SHA256SUMS").write_text("no sums")
    with pytest.raises(DataError, match=r"SHA256SUMS is damaged"):
        files.verify_checksums(tmp_path)


def test_what_a_killed_process_left_is_swept(tmp_path):
    for name in ("a.csv.0123abcd.tmp", "mine.tmp", "a.csv"):
        (tmp_path / name).touch()
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "mine.tmp"]


def test_places_joined_by_a_plus_that_names_may_contain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hog+simsiam").mkdir()
    (tmp_path / "x+y+z.pth").touch()
    assert files.split_places("l1 + hog+simsiam+b") == ["l1", "hog+simsiam", "b"]
    assert files.split_places("~/hog+simsiam+torch:x+y+z.pth") == [
        "~/hog+simsiam",
        "torch:x+y+z.pth",
    ]
    assert files.split_places("a+b") == ["a", "b"]
    assert files.split_places("a") == ["a"]
    assert files.split_places("a+") == ["a", ""]
    assert files.split_places("") == [""]
