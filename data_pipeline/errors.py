"""Exceptions for mistakes of the user: `main.py` prints their one line and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """An input of the user is wrong. The message is one line: the error and what to do."""


class DataError(UserError):
    """A data set, manifest or folder cannot be used."""


class UnreadableImage(DataError):
    """A file that cannot be decoded to a radiograph.

    Attributes:
      path: the file, as the data set names it.
      reason: why, without text of the file's header (names, dates of birth).
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        # Exceptions with two arguments do not pickle otherwise.
        return type(self), (self.path, self.reason)
