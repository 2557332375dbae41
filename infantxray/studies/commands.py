"""A cell is an ordinary run: its settings, and the one command that repeats it."""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import sys

from ml_collections import ConfigDict

from data_pipeline.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def defaults(task: str, size: str) -> ConfigDict:
    """What `--config=configs/<task>.py:<size>` starts from.

    By name and not by import: a study hands these files to other processes, and only reads here
    what it need not repeat on their command lines.
    """
    get_config = importlib.import_module(f"configs.{task}").get_config
    return get_config(size) if inspect.signature(get_config).parameters else get_config()


def compose(task: str, size: str, *overrides: dict) -> ConfigDict:
    """The settings of a run of `task`.

    Args:
      task: name of the run's task.
      size: variant of its configuration file, `cpu` or `paper`.
      overrides: nested dictionaries; later ones win.

    Raises:
      UserError: an override names a setting that the task lacks, or is of another type.
    """
    config = defaults(task, size).lock()
    for override in overrides:
        for key, value in flatten(override).items():
            try:
                config.update_from_flattened_dict({key: value})
            except KeyError:
                raise UserError(
                    f"a variant of the study sets {key} of {task}, which has no such setting"
                ) from None
            except TypeError:
                raise UserError(
                    f"a variant of the study sets {key} of {task} to {value!r}, which is of "
                    "another type than in its configuration file"
                ) from None
    return config


def flatten(values, prefix: str = "") -> dict[str, object]:
    """Nested dictionaries -> `{"optimizer.learning_rate": 0.001}`."""
    result = {}
    for key, value in values.items():
        if isinstance(value, (dict, ConfigDict)):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def arguments(config: ConfigDict, size: str, folder: str) -> list[str]:
    """The command of a run, as a list: only what differs from its configuration file."""
    base = defaults(config.task, size)
    # Variants of a file are named where it has some.
    variant = f":{size}" if size != "cpu" and base != defaults(config.task, "cpu") else ""
    before = flatten(base)
    changed = {k: v for k, v in flatten(config).items() if v != before[k]}
    return [
        sys.executable,
        os.path.join(_ROOT, "main.py"),
        f"--config={os.path.join(_ROOT, 'configs', config.task)}.py{variant}",
        f"--workdir={folder}",
        *(f"--config.{key}={value}" for key, value in changed.items()),
    ]


def printed(command: list[str]) -> str:
    """A command for people: short names, quoted for a shell."""
    short = [part.replace(_ROOT + os.sep, "") for part in command[1:]]
    return shlex.join(["python", *short])
