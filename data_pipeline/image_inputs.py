"""Images as the Python API takes them: files, and arrays of grey levels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

Path = str | os.PathLike[str]
Images = Path | Iterable[Path] | np.ndarray | Iterable[np.ndarray]

_EXPECTED = "expected files, or uint8 arrays [B, H, W] or [H, W] of grey levels"
_CHANNELS = (1, 3, 4)


def listed(images: Images) -> Sequence[str] | Sequence[np.ndarray]:
    """Checks images, and lists them one by one.

    Args:
      images: a file or several; uint8 `[B, H, W]` or `[H, W]`; or several arrays `[H, W]`.

    Returns:
      Paths, or arrays uint8 `[H, W]`.

    Raises:
      ValueError: there are none, or they are something else, such as an array of colours.
    """
    if isinstance(images, str | os.PathLike):
        return [os.path.expanduser(os.fspath(images))]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        stack = images[None] if images.ndim == 2 else images
        _check(stack)
        return list(stack)
    if not isinstance(images, Iterable):
        raise ValueError(f"{_EXPECTED}; got {type(images).__name__}")
    items = list(images)
    if not items:
        raise ValueError("no images were given")
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if len(arrays) == len(items):
        for array in arrays:
            _check(array[None])
        return arrays
    paths = [item for item in items if isinstance(item, str | os.PathLike)]
    if len(paths) < len(items):
        others = {type(item).__name__ for item in items if not isinstance(item, str | os.PathLike)}
        raise ValueError(f"{_EXPECTED}; got {', '.join(sorted(others))} in {type(images).__name__}")
    return [os.path.expanduser(os.fspath(path)) for path in paths]


def _check(stack: np.ndarray) -> None:
    """Raises `ValueError` if an array is not uint8 `[B, H, W]`."""
    shape = f"{stack.dtype} {list(stack.shape)}"
    if stack.ndim == 4 or (stack.ndim == 3 and stack.shape[-1] in _CHANNELS):
        raise ValueError(
            f"{_EXPECTED}; got {shape}, which seems to have channels: take one of them, or convert "
            "colours to grey"
        )
    if stack.dtype != np.uint8 or stack.ndim != 3 or not all(stack.shape[1:]):
        raise ValueError(f"{_EXPECTED}; got {shape}")
    if not len(stack):
        raise ValueError("no images were given")


def are_arrays(items: Sequence[str] | Sequence[np.ndarray]) -> bool:
    """Whether the images of `listed` are arrays."""
    return isinstance(items[0], np.ndarray)
