"""Atomic writes and checksums.

A file is replaced as a whole, or stays as it was. JSON files can carry a checksum of their values,
and `SHA256SUMS` lists the checksums of other files, so that damage is noticed when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import DataError

CHECKSUM = "checksum"  # Key of a JSON object that holds the checksum of its other values.
CHECKSUMS = "SHA256SUMS"


def user_cache() -> Path:
    """The folder of this user for what can be computed again, such as compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "infantxray")


def split_places(text: str) -> list[str]:
    """Files, folders or names joined by `+`, which may also be a part of an existing path.

    `"runs/l1+runs/masked_hog+simsiam"` -> `["runs/l1", "runs/masked_hog+simsiam"]` if the second is
    a folder. Spaces around the places are removed; empty places stay.
    """
    pieces, places = text.split("+"), []
    while pieces:
        joined = (len(pieces) - n for n in range(len(pieces) - 1))  # All, ..., 2.
        count = next((n for n in joined if _exists("+".join(pieces[:n]))), 1)
        places.append("+".join(pieces[:count]).strip())
        pieces = pieces[count:]
    return places


def _exists(place: str) -> bool:
    """Whether there is such a file or folder, after a prefix such as `torch:`."""
    prefix, _, path = place.strip().rpartition(":")
    return os.path.exists(os.path.expanduser(path)) and (not prefix or prefix.isalpha())


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    An error or an interruption leaves the old file, and no temporary one. Several processes may
    write the same path at once; the last one wins.

    Args:
      path: the file to replace.
      mode: `"w"` (UTF-8 text) or `"wb"`.
      **options: of `open`, such as `newline=""`.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    temporary = f"{os.fspath(path)}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files in a folder that a killed process left there."""
    for path in Path(folder).glob(f"*.{'[0-9a-f]' * 8}.tmp"):
        path.unlink(missing_ok=True)


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values and, under the key `checksum`, a checksum of them."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return {**values, CHECKSUM: hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}


def without_checksum(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inverse of `with_checksum`; None where the checksum does not fit the values.

    Values without a checksum, such as earlier versions wrote, are returned as they are.
    """
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    return rest if CHECKSUM not in values or with_checksum(rest) == values else None


def write_json(
    path: str | os.PathLike[str], values: Mapping[str, Any], *, checksum: bool = False
) -> None:
    """Writes indented JSON, atomically.

    Args:
      path: the file.
      values: its contents.
      checksum: add the key `checksum`, which `read_json` checks and removes.
    """
    if checksum:
        values = with_checksum(values)
    with replaced(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object, and compares its values with its checksum if it has one.

    Raises:
      DataError: it is not valid JSON, not an object, or was changed since it was written.
      OSError: it cannot be opened.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a JSON object")
    rest = without_checksum(values)
    if rest is None:
        raise DataError(
            f"{path} was changed or damaged since it was written: its values differ from its "
            f"checksum; restore it, or remove the key {CHECKSUM!r} to use it as it is"
        )
    return rest


def write_checksums(
    folder: str | os.PathLike[str], names: Iterable[str | os.PathLike[str]] | None = None
) -> None:
    """Writes `SHA256SUMS`; `sha256sum --check SHA256SUMS` compares the files with it.

    Args:
      folder: where the files are, and where `SHA256SUMS` goes.
      names: the files, relative to the folder; None = all files below it.
    """
    root = Path(folder)
    if names is None:
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        names = sorted(name for name in found if name.name != CHECKSUMS)
    lines = [f"{_sha256(root / name)}  {Path(name).as_posix()}\n" for name in names]
    with replaced(root / CHECKSUMS, errors="surrogateescape") as file:
        file.writelines(lines)


def remove_checksums(folder: str | os.PathLike[str]) -> None:
    """Removes `SHA256SUMS`, before the files that it lists are written again."""
    Path(folder, CHECKSUMS).unlink(missing_ok=True)


def verify_checksums(
    folder: str | os.PathLike[str], names: Iterable[str | os.PathLike[str]] | None = None
) -> None:
    """Compares files with `SHA256SUMS`. Without that file, or a line in it, there is no check.

    Args:
      folder: where the files and `SHA256SUMS` are.
      names: the files to compare; None = all that are listed.

    Raises:
      DataError: a file is missing or was changed, or `SHA256SUMS` is damaged.
    """
    root = Path(folder)
    wanted = None if names is None else {Path(name).as_posix() for name in names}
    try:
        text = (root / CHECKSUMS).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in text.splitlines():
        expected, separator, name = line.partition("  ")
        if len(expected) != 64 or not separator or not name or "\0" in name:
            raise DataError(f"{root / CHECKSUMS} is damaged: {line[:80]!r} is not a checksum")
        if wanted is not None and name not in wanted:
            continue
        path = root / name
        if not path.is_file():
            raise DataError(f"{path} is missing, and {CHECKSUMS} lists it")
        if _sha256(path) != expected:
            raise DataError(
                f"{path} was changed or damaged since it was written: it differs from its checksum "
                f"in {CHECKSUMS}"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
