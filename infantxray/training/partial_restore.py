"""Restores a part of a checkpoint, such as the encoder of a stage one, into another model."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax

from infantxray.training.checkpoints import (
    CheckpointError,
    check,
    checkpoint_folder,
    read_arrays,
    read_structure,
)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """The result of restoring a part of a checkpoint into a model, by array.

    Attributes:
      restored: names taken over.
      new: names of the model that the checkpoint lacks; they keep their fresh values.
      left_over: names of the checkpoint that the model has no use for.
    """

    restored: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        def part(names: tuple[str, ...]) -> str:
            roots = sorted({"/".join(name.split("/")[:2]) for name in names})
            return f"{len(names)} ({', '.join(roots)})" if names else "0"

        return (
            f"restored {part(self.restored)}; new {part(self.new)}; "
            f"left over {part(self.left_over)}"
        )


def restore_variables(
    workdir: str, step: int, variables: PyTree, *, only: str = ""
) -> tuple[PyTree, RestoreReport]:
    """Restores variables (`params`, `batch_stats`) from a run's checkpoint.

    Args:
      workdir: workdir of the run.
      step: one of its checkpoints.
      variables: `{"params": ..., "batch_stats": ...}` of the model, arrays or abstract.
      only: restore this subtree alone, such as `"encoder"`; the rest stays as it is.

    Returns:
      The variables, with what was restored as NumPy arrays, and a `RestoreReport`.

    Raises:
      CheckpointError: the checkpoint is damaged, or of another network: it names what differs.
    """
    path = os.path.join(checkpoint_folder(workdir), str(step))
    if not os.path.isdir(path):
        raise CheckpointError(f"no readable checkpoint in {path}: it does not exist")
    check(workdir, step)
    metadata = read_structure(workdir, step)
    saved = _flatten({name: metadata.get(name) or {} for name in variables})
    if metadata.get("ema_params"):
        # A run with a moving average is used with the averaged weights.
        ema = _flatten({"ema_params": metadata["ema_params"]})
        saved_names = {name: name.replace("params/", "ema_params/", 1) for name in saved}
        saved_names = {
            name: source if source in ema else name for name, source in saved_names.items()
        }
    else:
        saved_names = {name: name for name in saved}
    wanted = _flatten(variables)
    in_scope = [n for n in wanted if not only or n.split("/")[1] == only]
    common = [name for name in in_scope if name in saved]
    wrong = [name for name in common if tuple(saved[name].shape) != tuple(wanted[name].shape)]
    missing = [name for name in in_scope if name not in saved]
    if wrong or (only and missing) or not common:
        raise CheckpointError(_explain_mismatch(path, saved, wanted, wrong, missing, only))
    tree: dict[str, Any] = {}
    for name in common:
        _put(tree, saved_names[name], jax.ShapeDtypeStruct(wanted[name].shape, wanted[name].dtype))
    loaded = _flatten(read_arrays(workdir, step, tree))
    result: dict[str, Any] = {}
    for name, value in wanted.items():
        _put(result, name, loaded[saved_names[name]] if name in common else value)
    for name in variables:
        result.setdefault(name, {})
    report = RestoreReport(
        restored=tuple(common),
        new=tuple(name for name in wanted if name not in common),
        left_over=tuple(name for name in saved if name not in common),
    )
    return result, report


def _explain_mismatch(
    path: str,
    saved: dict[str, Any],
    wanted: dict[str, Any],
    wrong: list[str],
    missing: list[str],
    only: str,
) -> str:
    what = f"the {only} of " if only else ""
    if wrong:
        name = wrong[0]
        detail = f"{name}: checkpoint {tuple(saved[name].shape)} vs model {wanted[name].shape}"
        count = len(wrong)
    else:
        name = (missing or [only])[0]
        detail = f"{name} is not in the checkpoint"
        count = len(missing)
    more = f" and {count - 1} more" if count > 1 else ""
    return (
        f"{what}the checkpoint {path} does not fit this model: {detail}{more}; is config.encoder "
        "the one it was trained with?"
    )


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Nested dictionaries -> `{"params/encoder/...": leaf}`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in leaves}


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *folders, last = name.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = value
