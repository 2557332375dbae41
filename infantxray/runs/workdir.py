"""The workdir of a run: its configuration, its lock, and whether it may be used again."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from data_pipeline import files
from data_pipeline.errors import UserError
from infantxray.training import processes

# Settings that do not change the result of a run, and the policy for unreadable files, which may be
# corrected where it stopped the run.
_HARMLESS = (
    "resume",
    "log_every_steps",
    "data.num_threads",
    "data.memory_mb",
    "data.cache",
    "data.on_error",
)
# Settings that earlier versions did not have, with values that change none of their results.
_LATER = {
    "labels": "single",
    "condition_on": "",
    "data.label_map": "",
    "data.normal_names": "normal,no finding,no findings",
    "data.uncertain": "ignore",
    "coverage": 0.9,
    "operating_points": "sensitivity:0.95,youden",
    "prevalence": "",
    "subgroups": "sex,age,view,site",
    "calibrate": True,
    "augmentations": 0,
    "json": False,
    "pictures": False,
    "dicom": False,
    "pretrained": "",
    "teacher_momentum": 0.99,
    "self_training.committee": "",
    "self_training.rounds": 1,
    "mixup": 0.0,
    "consistency": 0.0,
    "batch_norm_images": 0,
}
_LATER_GROUPS = ("weights.", "supervised.")  # Without effect on what earlier versions could do.
# What a run leaves that a later one in its folder would read, or a user take for its results.
_LEFT = (
    "config.json",
    "split.csv",
    "split.csv.sha256",
    "model.json",
    "preprocessing.json",
    "history.jsonl",
    "bad_files*.csv",
    "events.out.*",
    "SHA256SUMS",
    "teachers/soft_labels*",
    "teachers/SHA256SUMS",
    "teachers/[0-9]*",
    "teachers/student[0-9]*",
    "trust.json",
    "trust.npz",
    "operating_points.json",
    "reconstruction.json",
    "predictions.csv.partial",
    f"json/{'[0-9]' * 6}_*.json",
    f"dicom/{'[0-9]' * 6}_*.dcm",
)
_locks: dict[str, int] = {}  # Held until this process ends.


def prepare(workdir: str, config: Mapping[str, Any]) -> None:
    """Makes the folder of a run, locks it for its processes, and records the configuration in it.

    A run that failed before its first checkpoint, such as over a mistyped path, is removed, so that
    its command can be corrected.

    Args:
      workdir: the folder.
      config: every setting, nested, as `settings.to_dict` gives them.

    Raises:
      UserError: the folder holds a run of another task, or with other settings (the message names
        them), is used by another process, or cannot be written to.
    """
    with processes.main_first():
        if processes.is_main():
            _prepare(workdir, config)


def _prepare(workdir: str, config: Mapping[str, Any]) -> None:
    _make_folder(workdir)
    _lock(workdir)
    _sweep(workdir)
    # First: nobody shall be told to delete a model because its folder was named by mistake.
    check_task(workdir, config["task"])
    if os.path.exists(os.path.join(workdir, "config.json")) and not _has_results(workdir):
        _remove_left(workdir)
    changed = changed_settings(workdir, config)
    if changed:
        raise UserError(
            f"{workdir} holds a run with other settings: {', '.join(changed[:3])}"
            + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            + "; choose another --workdir, or delete that folder to start again"
        )
    write_config(workdir, config)


def check_task(workdir: str, task: str) -> None:
    """Raises `UserError` if the folder holds a run of another task."""
    if os.path.exists(os.path.join(workdir, "config.json")):
        found = read_config(workdir)["task"]
        if found != task:
            raise UserError(
                f"{workdir} holds a run of another task, {found}; choose another --workdir"
            )


def _remove_left(workdir: str) -> None:
    """Removes what a run that came to nothing left."""
    for name in _LEFT:
        for path in glob.glob(os.path.join(glob.escape(workdir), name)):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)


def write_config(workdir: str, config: Mapping[str, Any]) -> None:
    """Records the configuration of a run as `config.json`."""
    files.write_json(os.path.join(workdir, "config.json"), config, checksum=True)


def changed_settings(workdir: str, config: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the run in this folder, with both values.

    Empty without a run, or where it failed before its first checkpoint. A setting that an earlier
    version lacked counts only if it differs from the default.
    """
    if not os.path.exists(os.path.join(workdir, "config.json")) or not _has_results(workdir):
        return []
    before, after = _flat(read_config(workdir)), _flat(json.loads(json.dumps(config)))
    later = {key: value for key, value in _LATER.items() if key in after}
    later |= {key: value for key, value in after.items() if key.startswith(_LATER_GROUPS)}
    before = later | before
    return [
        f"{key} ({before.get(key)!r} -> {after.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _HARMLESS
    ]


def _make_folder(workdir: str) -> None:
    # Orbax reads these as patterns: nothing that it saves there could be opened again.
    strange = sorted(set(workdir) & set("[]*?\\"))
    if strange:
        raise UserError(
            f"--workdir={workdir} holds {' '.join(strange)}, which checkpoints cannot be read back "
            "from; choose a name without"
        )
    try:
        os.makedirs(workdir, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"--workdir={workdir} is a file, or lies below one; name a folder"
        ) from None
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made ({error.strerror})") from None


def _lock(workdir: str) -> None:
    """Keeps other processes out of the folder until this one ends."""
    key = os.path.realpath(workdir)
    if key in _locks:
        return
    try:
        descriptor = os.open(os.path.join(workdir, "run.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to ({error.strerror})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process uses {workdir}; wait for it, or choose another --workdir"
        ) from None
    except OSError:
        pass  # A file system without locks.
    _locks[key] = descriptor


def _sweep(workdir: str) -> None:
    """Removes temporary files that a killed process left."""
    for below in ("", "figures", "tables", "teachers"):
        files.sweep(os.path.join(workdir, below))


def _has_results(workdir: str) -> bool:
    """Whether a run in this folder has saved a checkpoint or a result."""
    if any(os.path.exists(os.path.join(workdir, n)) for n in ("metrics.json", "predictions.csv")):
        return True
    folders = [workdir, *glob.glob(os.path.join(glob.escape(workdir), "teachers", "*"))]
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if any(name.isdigit() for name in os.listdir(os.path.join(folder, "checkpoints"))):
                return True
    return False


def read_config(workdir: str) -> dict[str, Any]:
    """The resolved configuration of a run."""
    config = read_json(workdir, "config.json")
    if not isinstance(config, dict) or "task" not in config:
        raise UserError(f"config.json in {workdir} was not written by this program")
    return config


def read_json(workdir: str, name: str) -> dict[str, Any]:
    """Reads a JSON file of a run.

    Raises:
      UserError: it does not exist, is not a JSON object, or differs from its checksum.
    """
    path = os.path.join(os.path.expanduser(workdir), name)
    try:
        files.verify_checksums(os.path.dirname(path), [name])
        return files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{workdir} is not the workdir of a run: it has no {name}") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
