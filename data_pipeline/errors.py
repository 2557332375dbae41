"""Errors that a user can mend: `main.py` prints their one line and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong. The message is one line: what, and how to mend it."""


class DataError(UserError):
    """A data set, manifest or folder cannot be used as it is."""


class UnreadableImage(DataError):
    """One file could not be turned into a radiograph.

    Attributes:
      path: the file, as the data set names it.
      reason: why, without any text from the file's header (names, dates of birth).
    """

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self):  # exceptions with two arguments do not pickle by themselves
        return type(self), (self.path, self.reason)
