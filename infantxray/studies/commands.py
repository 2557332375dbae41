"""Commands of runs: the settings of a run, and the command line that repeats it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.processes import ROOT

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What runs of a task start from: `--config=configs/<name>.py<variant>`.

    Attributes:
      name: name of the task.
      variant: of its configuration file, such as `:paper`; empty where the file has none.
      defaults: the settings of that file, nested.
    """

    name: str
    variant: str
    defaults: Mapping[str, Any]

    def compose(self, *overrides: Mapping[str, Any]) -> Settings:
        """The settings of a run, nested.

        Args:
          *overrides: nested settings; later ones win.

        Raises:
          UserError: an override names a setting that the task lacks, or has another type.
        """
        found = flatten(self.defaults)
        for override in overrides:
            for key, value in flatten(override).items():
                if key not in found:
                    raise UserError(
                        f"a variant of the study sets {key} of {self.name}, which has no such "
                        "setting"
                    )
                found[key] = _converted(key, value, found[key], self.name)
        return nest(found)

    def command(self, settings: Mapping[str, Any], folder: str) -> list[str]:
        """The command of a run, as a list, with what differs from its configuration file."""
        before = flatten(self.defaults)
        changed = {k: v for k, v in flatten(settings).items() if v != before[k]}
        return [
            sys.executable,
            "-m",
            "infantxray",
            f"--config={ROOT / 'configs' / self.name}.py{self.variant}",
            f"--workdir={folder}",
            *(f"--config.{key}={value}" for key, value in changed.items()),
        ]


def _converted(key: str, value: object, default: object, task: str) -> object:
    if type(default) is float and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(default):
        raise UserError(
            f"a variant of the study sets {key} of {task} to {value!r}, which is of another type "
            "than in its configuration file"
        )
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested dictionaries -> `{"optimizer.learning_rate": 0.001}`."""
    result: Settings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def nest(values: Mapping[str, Any]) -> Settings:
    """The inverse of `flatten`."""
    result: Settings = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = result
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return result


def printed(command: list[str]) -> str:
    """A command for people: short names, quoted for a shell."""
    program = ["python", "main.py"] if (ROOT / "main.py").is_file() else ["infantxray"]
    short = [part.replace(str(ROOT) + os.sep, "") for part in command[3:]]
    return shlex.join([*program, *short])
