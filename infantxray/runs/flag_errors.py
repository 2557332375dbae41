"""Errors of absl and ml_collections about the command line, as one line each."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infantxray.runs.settings import to_dict

_SIMILAR = 0.75  # Of two names of settings, by difflib's ratio.


def explain(error: BaseException, argv: list[str]) -> str:
    """The error as a sentence that names the argument and, if there is one, the setting meant."""
    text = str(error)
    unknown = re.search(r"^[\\'\"]*(\w+)\\?'\\?n?", text.split("\n")[0])
    if isinstance(error, (AttributeError, KeyError)) and unknown:
        key = unknown.group(1)
        named = [a for a in argv if re.search(rf"[.]{key}\b", a.split("=")[0])]
        # `data` of `supervised.data` is unknown; it is no fault of `data.train`.
        known = [f"--config.{name}" for name in _settings(argv)]
        given = next((a for a in named if a.split("=")[0] not in known), (*named, key)[0])
        meant = _similar_setting(given, argv)
        return f"unknown setting {given}; " + (
            f"did you mean --config.{meant}?" if meant else "see the file in configs/"
        )
    if "No such file" in text:
        name = re.search(r"Attempted \[Relative path\]:\s+(\S+)", text)
        missing = name.group(1) if name else "the --config file"
        return f"{missing} does not exist; configurations are {_available_configs(missing)}"
    if "takes 0 positional arguments" in text:
        return "this configuration has no variants: leave out what follows the colon in --config"
    if "before a value for --config was specified" in text:
        return "--config=configs/<task>.py must come before --config.key=value"
    group = re.search(r"flag --config[.](\S+?)=(.*): Failed to parse .* as a ConfigDict", text)
    if group:
        within = [name for name in _settings(argv) if name.startswith(f"{group[1]}.")]
        within.sort(key=lambda name: name not in ("data.train", "data.test"))  # The usual ones.
        names = ", ".join(f"--config.{name}" for name in within[:3])
        return f"config.{group[1]} is a group of settings, such as {names}: set one of them"
    wrong_type = re.search(r"flag --(\S+?)=(.*?): invalid literal for (\w+)\(\)", text)
    if wrong_type:
        return f"{wrong_type[1]} is {wrong_type[2]!r}; it must be a number ({wrong_type[3]})"
    line = [line for line in text.splitlines() if line.strip()][-1].strip()
    return re.sub(r"^\w*Error: ", "", line)


def _similar_setting(given: str, argv: list[str]) -> str | None:
    """The setting of the same name in another group, or the one that is spelled most like it."""
    wanted = given.split("=")[0].removeprefix("--config.")
    name = wanted.rpartition(".")[2]
    known = _settings(argv)
    same_name = [setting for setting in known if setting.rpartition(".")[2] == name]
    if same_name:
        return same_name[0]
    similar = difflib.get_close_matches(wanted, known, n=1, cutoff=_SIMILAR)
    if similar:
        return similar[0]
    names = {setting.rpartition(".")[2]: setting for setting in reversed(known)}
    similar = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)
    return names[similar[0]] if similar else None


def _settings(argv: list[str]) -> list[str]:
    """Names of all settings of the `--config` file, without `config.`; empty if it has errors."""
    given = next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "")
    file, _, variant = given.partition(":")
    with contextlib.suppress(Exception):
        spec = importlib.util.spec_from_file_location("named_config", file)
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(variant) if variant else module.get_config()
            return list(_names(to_dict(config)))
    return []


def _names(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _available_configs(wanted: str) -> str:
    folder = str(Path(__file__).resolve().parents[2] / "configs")
    names = sorted(
        f"configs/{name}"
        for name in os.listdir(folder)
        if name.endswith(".py") and name not in ("__init__.py", "common.py")
    )
    close = difflib.get_close_matches(wanted, names, n=1)
    return f"{', '.join(names)}" + (f"; did you mean {close[0]}?" if close else "")
