"""Checkpoints: saved with digests, checked when they are read, restored as a whole."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import xxhash
from orbax.checkpoint._src.path import atomicity

from data_pipeline.errors import UserError

PyTree = Any

DIGESTS = "digests.xxh128"
_ITEMS = ("state", "progress")
_DAMAGED = ".damaged"  # Ends the name of a checkpoint that was set aside.
# Orbax writes these after the digests; their contents do not affect the restored values.
_NOT_DIGESTED = (DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt")

_REMOVALS, _SECONDS_BETWEEN_REMOVALS = 8, 0.1  # Of a checkpoint that could not be written.

_log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint is missing or damaged, or belongs to another network."""


class _LatestAndBest:
    """Keeps the latest and the best checkpoint, or the one before where the latest is the best.

    So a run has two checkpoints once two were saved: if one is damaged, the other remains. Orbax's
    own `BestN` forgets the metrics of earlier checkpoints when a run is resumed; the progress of
    the loop decides which checkpoint is the best.
    """

    best_step = 0

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        earlier = steps[:-1]
        kept = self.best_step if self.best_step in earlier else (earlier or steps)[-1]
        return [checkpoint.step in (steps[-1], kept) for checkpoint in checkpoints]


class _TemporaryFolder(atomicity.AtomicRenameTemporaryPath):
    """The folder of an unfinished checkpoint; its digests are written before it is renamed."""

    async def finalize(self) -> None:
        if (Path(self.get()) / "state").is_dir():  # Not one of its items.
            write_digests(Path(self.get()))
        await super().finalize()


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: workdir of the run; they are in `checkpoints/` below it.

    Attributes:
      workdir: workdir of the run.
    """

    def __init__(self, workdir: str):
        self.workdir = workdir
        self._policy = _LatestAndBest()
        self._manager = ocp.CheckpointManager(
            os.path.join(workdir, "checkpoints"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                temporary_path_class=_TemporaryFolder,
                # The state is donated to the next step, and on the CPU a background writer
                # would read buffers that this step overwrites.
                enable_async_checkpointing=False,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, progress: dict[str, Any]) -> None:
        """Saves the training state and, beside it as JSON, the progress of everything else.

        Of the earlier checkpoints that of `progress["best_step"]` is kept, or the latest of them.

        Raises:
          RuntimeError: the checkpoint was not written.
        """
        self._policy.best_step = progress["best_step"]
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress)
                ),
            )
        except BaseException:  # Such as a full disk.
            self._remove_unfinished(step)
            raise
        if not saved:
            raise RuntimeError(f"Checkpoint {step} was not written: {self.latest_step} is there.")

    def restore(self, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The latest state and progress; `abstract_state` carries shapes and shardings.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        step = self.latest_step
        check(self.workdir, step)
        with _reading(self.workdir, step):
            restored = self._manager.restore(
                step,
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

    def _remove_unfinished(self, step: int) -> None:
        """Removes a partial checkpoint, also what threads that are still writing add to it."""
        for _ in range(_REMOVALS):
            for unfinished in checkpoint_folder(self.workdir).glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            time.sleep(_SECONDS_BETWEEN_REMOVALS)


def checkpoint_folder(workdir: str) -> Path:
    """The folder of a run's checkpoints."""
    return Path(os.path.abspath(os.path.expanduser(workdir)), "checkpoints")


def checkpoint_steps(workdir: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending; empty where there are none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(
            int(name) for name in os.listdir(checkpoint_folder(workdir)) if name.isdigit()
        )
    return []


def write_digests(folder: Path) -> None:
    """Writes `digests.xxh128`: digests of all files below a folder, as `xxhsum -H2` prints them."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _NOT_DIGESTED)
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def find_damage(workdir: str, step: int, *, only: str = "") -> str:
    """Compares the files of a checkpoint with their digests.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint.
      only: look at this item alone, `"state"` or `"progress"`.

    Returns:
      The first file that is missing or changed, in words; empty where all is well. Checkpoints of
      earlier versions have no digests: of them only the presence of both items is checked.
    """
    folder = checkpoint_folder(workdir) / str(step)
    for item in [only] if only else _ITEMS:
        if not any((folder / item).glob("*")):
            return f"{folder / item} is missing"
    try:
        lines = (folder / DIGESTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        return f"{folder / DIGESTS} is damaged"
    for line in lines:
        expected, _, name = line.partition("  ")
        if only and not name.startswith(f"{only}/"):
            continue
        path = folder / name
        if "\0" in name or not path.is_file():
            return f"{path!s} is missing".replace("\0", "?")
        if _digest(path) != expected:
            return f"{path} differs from its digest in {DIGESTS}"
    return ""


def check(workdir: str, step: int | None, *, only: str = "") -> None:
    """Raises `CheckpointError` where a checkpoint is damaged; it names what can be used instead."""
    damage = "" if step is None else find_damage(workdir, step, only=only)
    if damage:
        raise CheckpointError(_explain_damage(workdir, step, damage))


def _explain_damage(workdir: str, step: int | None, damage: str) -> str:
    whole = [s for s in checkpoint_steps(workdir) if s != step and not find_damage(workdir, s)]
    if whole:
        way_out = (
            f"the newest whole checkpoint is step {whole[-1]}: to continue from it, train with "
            "--config.resume=last_good"
        )
    else:
        way_out = f"no other checkpoint of this run is whole; delete {workdir} to start again"
    return f"checkpoint {step} is damaged: {damage}; {way_out}"


@contextlib.contextmanager
def _reading(workdir: str, step: int | None) -> Iterator[None]:
    """Turns what Orbax raises on a damaged checkpoint into a `CheckpointError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        words = " ".join(str(error).split())[:200]
        path = checkpoint_folder(workdir) / str(step)
        damage = f"{path} cannot be read ({type(error).__name__}: {words})"
        raise CheckpointError(_explain_damage(workdir, step, damage)) from error


def set_aside_damaged(workdir: str) -> None:
    """Renames damaged checkpoints, so that a run continues from the last good one.

    Raises:
      CheckpointError: none is whole.
    """
    steps = checkpoint_steps(workdir)
    damage = {step: find_damage(workdir, step) or _find_unreadable(workdir, step) for step in steps}
    whole = [step for step in steps if not damage[step]]
    if len(whole) == len(steps):
        return
    if not whole:
        raise CheckpointError(_explain_damage(workdir, steps[-1], damage[steps[-1]]))
    for step in steps:
        if damage[step]:
            source = checkpoint_folder(workdir) / str(step)
            target = source.with_name(source.name + _DAMAGED)
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
            _log.warning("checkpoint %d is damaged: %s; renamed to %s", step, damage[step], target)
    _log.warning("continuing from the checkpoint of step %d (config.resume=last_good)", whole[-1])


def _find_unreadable(workdir: str, step: int) -> str:
    """The damage of a checkpoint without digests, found by reading it as a whole."""
    if (checkpoint_folder(workdir) / str(step) / DIGESTS).exists():
        return ""
    try:
        with _reading(workdir, step), _open_to_read(workdir) as manager:
            as_numpy = _as_numpy(manager.item_metadata(step).state.tree)
            restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
            manager.restore(step, args=ocp.args.Composite(state=restore))
        _read_progress(workdir, step)
    except CheckpointError as error:
        return str(error).partition("; ")[0]
    return ""


def read_progress(workdir: str) -> dict[str, Any]:
    """The progress saved with the latest checkpoint; empty where there is none.

    Raises:
      CheckpointError: it is damaged.
    """
    steps = checkpoint_steps(workdir)
    return _read_progress(workdir, steps[-1]) if steps else {}


def _read_progress(workdir: str, step: int) -> dict[str, Any]:
    check(workdir, step, only="progress")
    path = checkpoint_folder(workdir) / str(step) / "progress" / "metadata"
    with _reading(workdir, step):
        progress = json.loads(path.read_text(encoding="utf-8"))
        progress["best_step"]  # A KeyError or TypeError where it is something else.
    return progress


def _open_to_read(workdir: str) -> ocp.CheckpointManager:
    """The checkpoints of a run, for reading."""
    return ocp.CheckpointManager(
        checkpoint_folder(workdir),
        item_names=_ITEMS,
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(create=False),
    )


def read_structure(workdir: str, step: int) -> dict[str, Any]:
    """The arrays of a checkpoint, by their shapes: a tree with `params` and what else was saved.

    Raises:
      CheckpointError: it cannot be read, or has no parameters.
    """
    with _reading(workdir, step), _open_to_read(workdir) as manager:
        tree: dict[str, Any] = manager.item_metadata(step).state.tree
        if not tree.get("params"):
            raise ValueError("it has no parameters")
    return tree


def read_arrays(workdir: str, step: int, tree: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint that `tree` names, as NumPy arrays.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint.
      tree: a part of its structure, with a `jax.ShapeDtypeStruct` for each array.

    Raises:
      CheckpointError: it cannot be read.
    """
    restore = ocp.args.PyTreeRestore(item=tree, restore_args=_as_numpy(tree), partial_restore=True)
    with _reading(workdir, step), _open_to_read(workdir) as manager:
        found: dict[str, Any] = manager.restore(step, args=ocp.args.Composite(state=restore)).state
    return found


def _as_numpy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def is_finished(workdir: str) -> bool:
    """Whether training has ended."""
    return read_progress(workdir).get("finished", False)


def best_step(workdir: str) -> int:
    """The step of the best checkpoint on the validation images, or the latest if there is none.

    Raises:
      CheckpointError: that checkpoint is missing.
    """
    best = read_progress(workdir)["best_step"]
    steps = checkpoint_steps(workdir)
    if best in steps:
        return best
    if best and not is_set_aside(workdir, best):
        damage = f"{checkpoint_folder(workdir) / str(best)} is missing"
        raise CheckpointError(_explain_damage(workdir, best, damage))
    if best:
        _log.warning("the best checkpoint, step %d, was damaged: using step %d", best, steps[-1])
    return steps[-1]


def is_set_aside(workdir: str, step: int) -> bool:
    """Whether `set_aside_damaged` renamed the checkpoint of this step."""
    return (checkpoint_folder(workdir) / f"{step}{_DAMAGED}").exists()
