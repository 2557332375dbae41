"""Checkpoints: the latest and the best are kept, and a part of one can be restored."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from data_pipeline.errors import UserError

PyTree = Any


class CheckpointError(UserError):
    """There is no checkpoint, or it belongs to another network."""


class _LatestAndBest:
    """Which checkpoints Orbax keeps.

    Its own `BestN` forgets, when a run is resumed, the metrics of earlier checkpoints; what the
    loop's progress calls best must be what is kept.
    """

    best_step = 0

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        latest = max(checkpoint.step for checkpoint in checkpoints)
        return [checkpoint.step in (latest, self.best_step) for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: of the run; they lie in `checkpoints/` below it.
    """

    def __init__(self, workdir: str):
        self._policy = _LatestAndBest()
        self._manager = ocp.CheckpointManager(
            os.path.join(workdir, "checkpoints"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                # The state is donated to the next step, and on the CPU a background writer
                # would read buffers that this step overwrites.
                enable_async_checkpointing=False,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, progress: dict) -> None:
        """Saves the training state and, beside it as JSON, the progress of everything else.

        Of the earlier checkpoints that of `progress["best_step"]` is kept.

        Raises:
          RuntimeError: the checkpoint was not written.
        """
        self._policy.best_step = progress["best_step"]
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )
        if not saved:
            raise RuntimeError(f"Checkpoint {step} was not written: {self.latest_step} is there.")

    def restore(self, abstract_state: PyTree) -> tuple[PyTree, dict]:
        """The latest state and progress; `abstract_state` carries shapes and shardings."""
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    item=abstract_state,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
                ),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored.state, restored.progress

    def close(self) -> None:
        self._manager.close()


def checkpoint_steps(workdir: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending; empty where there are none."""
    folder = os.path.join(os.path.expanduser(workdir), "checkpoints")
    if not os.path.isdir(folder):
        return []
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def read_progress(workdir: str) -> dict:
    """The progress saved with the latest checkpoint; empty where there is none."""
    steps = checkpoint_steps(workdir)
    if not steps:
        return {}
    with _open(workdir) as manager:
        restored = manager.restore(
            steps[-1], args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        )
    return restored.progress


def _open(workdir: str) -> ocp.CheckpointManager:
    """The checkpoints of a run, for reading."""
    return ocp.CheckpointManager(
        os.path.join(os.path.abspath(os.path.expanduser(workdir)), "checkpoints"),
        item_names=("state", "progress"),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(create=False),
    )


def is_finished(workdir: str) -> bool:
    """Whether training has come to its end."""
    return read_progress(workdir).get("finished", False)


def best_step(workdir: str) -> int:
    """The step whose checkpoint was best on the validation images, the latest where none was."""
    return read_progress(workdir)["best_step"] or checkpoint_steps(workdir)[-1]


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What became of each array when a part of a checkpoint was put into a model.

    Attributes:
      restored: names taken over.
      new: names of the model that the checkpoint lacks; they keep their fresh values.
      left_over: names of the checkpoint that the model has no use for.
    """

    restored: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        def part(names):
            roots = sorted({"/".join(name.split("/")[:2]) for name in names})
            return f"{len(names)} ({', '.join(roots)})" if names else "0"

        return (
            f"restored {part(self.restored)}; new {part(self.new)}; "
            f"left over {part(self.left_over)}"
        )


def restore_variables(workdir: str, step: int, variables: PyTree, *, only: str = "") -> tuple:
    """Restores variables (`params`, `batch_stats`) from a run's checkpoint.

    Args:
      workdir: of the run.
      step: one of its checkpoints.
      variables: `{"params": ..., "batch_stats": ...}` of the model, arrays or abstract.
      only: restore this subtree alone, such as `"encoder"`; the rest stays as it is.

    Returns:
      The variables, with what was restored as NumPy arrays, and a `RestoreReport`.

    Raises:
      CheckpointError: the checkpoint is of another network: it names what differs.
    """
    manager = _open(workdir)
    path = os.path.join(manager.directory, str(step))
    try:
        metadata = manager.item_metadata(step).state.tree
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise CheckpointError(f"no readable checkpoint in {path}: {error}") from None
    saved = _flatten({name: metadata.get(name) or {} for name in variables})
    if metadata.get("ema_params"):
        # Whoever asked for a moving average wants its weights.
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
    tree: dict = {}
    for name in common:
        _put(tree, saved_names[name], jax.ShapeDtypeStruct(wanted[name].shape, wanted[name].dtype))
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restore = ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True)
    loaded = _flatten(manager.restore(step, args=ocp.args.Composite(state=restore)).state)
    manager.close()
    result: dict = {}
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


def _explain_mismatch(path, saved, wanted, wrong, missing, only) -> str:
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


def _put(tree: dict, name: str, value) -> None:
    *folders, last = name.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = value
