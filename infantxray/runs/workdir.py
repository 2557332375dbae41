"""The folder of a run: its configuration, and what a checkpoint needs to be used again."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import logging
import os

from data_pipeline.decode import Preprocessing
from data_pipeline.errors import UserError

_log = logging.getLogger(__name__)

# Settings that change how a run goes, not what comes out of it, or what is done where it stopped
# at a file that cannot be read.
_HARMLESS = ("log_every_steps", "data.num_threads", "data.memory_mb", "data.cache", "data.on_error")
# What a run has written before it comes to anything.
_BEGUN = (
    "config.json",
    "split.csv",
    "preprocessing.json",
    "history.jsonl",
    "bad_files.csv",
    "events.out.*",
)
_locks: dict[str, int] = {}  # Of the folders that this process works in, to its end.


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """`preprocessing.json`: what has to travel with a checkpoint for it to be used correctly.

    Attributes:
      encoder: name of the network.
      dtype: it computed in.
      preprocessing: from a file to an image.
      classes: names of the conditions, in the order of the logits; empty in stage one.
      age_mean_months: of the training ages, which the network predicts standardised; None where
        there is no age head.
      age_std_months: likewise.
      age_range_months: lowest and highest age of distribution regression; None for a single number.
      age_film: whether the age modulates the features of the condition head.
    """

    encoder: str
    dtype: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    age_mean_months: float | None = None
    age_std_months: float | None = None
    age_range_months: tuple[float, float] | None = None
    age_film: bool = False

    @property
    def age_range(self) -> tuple[float, float] | None:
        """`age_range_months`, standardised."""
        if self.age_range_months is None:
            return None
        low, high = self.age_range_months
        mean, std = self.age_mean_months, self.age_std_months
        return (low - mean) / std, (high - mean) / std

    def write(self, workdir: str) -> None:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["preprocessing"] = self.preprocessing.to_dict()
        write_json(os.path.join(workdir, "preprocessing.json"), values)

    @classmethod
    def read(cls, workdir: str) -> ModelCard:
        """Raises `UserError` where the folder is not a workdir of stage one or two."""
        values = _read_json(workdir, "preprocessing.json")
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        values["classes"] = tuple(values["classes"])
        if values.get("age_range_months"):
            values["age_range_months"] = tuple(values["age_range_months"])
        return cls(**values)


def prepare(workdir: str, config) -> None:
    """Makes the folder of a run and records the configuration in it.

    A run that ended in an error before it came to anything, such as over a mistyped path, is
    forgotten: what is put right there may be another setting.

    Raises:
      UserError: the folder holds a run with other settings; they are named. Or another process
        is at work in it.
    """
    os.makedirs(workdir, exist_ok=True)
    _lock(workdir)
    if os.path.exists(os.path.join(workdir, "config.json")) and not _has_results(workdir):
        if read_config(workdir)["task"] != config.task:
            raise UserError(
                f"{workdir} holds a run of another task, {read_config(workdir)['task']}; choose "
                "another --workdir"
            )
        for name in _BEGUN:
            for path in glob.glob(os.path.join(glob.escape(workdir), name)):
                os.remove(path)
    changed = changed_settings(workdir, config)
    if changed:
        raise UserError(
            f"{workdir} holds a run with other settings: {', '.join(changed[:3])}"
            + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            + "; choose another --workdir, or delete that folder to start again"
        )
    write_config(workdir, config)


def write_config(workdir: str, config) -> None:
    """Records the configuration in the folder of a run, whatever it held."""
    write_json(os.path.join(workdir, "config.json"), json.loads(config.to_json_best_effort()))


def changed_settings(workdir: str, config) -> list[str]:
    """What a run in this folder was started with that is different now.

    Empty without a run, or where it has not come to anything.
    """
    if not os.path.exists(os.path.join(workdir, "config.json")) or not _has_results(workdir):
        return []
    before, after = _flat(read_config(workdir)), _flat(json.loads(config.to_json_best_effort()))
    return [
        f"{key} ({before.get(key)!r} -> {after.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _HARMLESS
    ]


def _lock(workdir: str) -> None:
    """Keeps other processes out of the folder until this one ends."""
    key = os.path.realpath(workdir)
    if key in _locks:
        return
    descriptor = os.open(os.path.join(workdir, "run.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process is at work in {workdir}; wait for it, or choose another --workdir"
        ) from None
    except OSError:
        pass  # A file system without locks.
    _locks[key] = descriptor


def _has_results(workdir: str) -> bool:
    """Whether a run in this folder has come to anything."""
    if any(os.path.exists(os.path.join(workdir, n)) for n in ("metrics.json", "predictions.csv")):
        return True
    folders = [workdir, *glob.glob(os.path.join(glob.escape(workdir), "teachers", "*"))]
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if any(name.isdigit() for name in os.listdir(os.path.join(folder, "checkpoints"))):
                return True
    return False


def read_config(workdir: str) -> dict:
    """The resolved configuration of a run."""
    config = _read_json(workdir, "config.json")
    if not isinstance(config, dict) or "task" not in config:
        raise UserError(f"config.json in {workdir} is not of a run of this program")
    return config


def _read_json(workdir: str, name: str) -> dict:
    path = os.path.join(os.path.expanduser(workdir), name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the workdir of a run: it has no {name}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


def write_json(path: str, values: dict) -> None:
    """Writes a file of a run, whole or not at all."""
    # Whoever is interrupted here leaves the old file, not half a new one, and several processes of
    # a study may write the same settings at once.
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(temporary, path)


def _flat(values: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
