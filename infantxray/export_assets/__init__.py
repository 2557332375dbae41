"""The reader page, built by `make reader`, as the export command copies it."""

from __future__ import annotations

from pathlib import Path

BUILD_COMMAND = "make reader"


def reader_assets() -> Path | None:
    """The folder with `reader.html` and `reader/`, in a checkout or an installed package.

    Returns:
      None where the page has not been built.
    """
    built = Path(__file__).resolve().parent / "built"
    return built if (built / "reader.html").is_file() else None
