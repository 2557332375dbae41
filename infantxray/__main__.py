"""Command line of infantxray.

    python main.py --config=configs/<task>.py [--workdir=DIR] [--config.key=value ...]

  pretrain, finetune                         stage one, stage two
  evaluate, predict, export                  use a finished stage two
  check_data, prepare, export_phantom        data
  probe, label_efficiency, study, compare    comparisons

Settings and their defaults are documented in configs/<task>.py.

The same command again resumes an unfinished run; a finished one says so and stops.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load ends without a traceback.

from absl import app, flags
from ml_collections import config_flags

import configs
from data_pipeline.errors import UserError
from data_pipeline.remote import is_remote
from infantxray.runs import accidents, flag_errors, runtime, settings
from infantxray.runs import console as messages

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, such as configs/pretrain.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; runs/<task> where it is left out."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Of a run over several processes: host:port that process 0 serves at, or auto = ask the "
    "machine (Cloud TPU). Slurm, Open MPI and GKE with TPUs need none of these three flags.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are --config.key=value")
    if _CONFIG.value is None:
        raise UserError("name a task, for example --config=configs/pretrain.py")
    config = _CONFIG.value
    settings.check(config)
    if is_remote(_WORKDIR.value or ""):
        raise UserError(f"{_WORKDIR.value} is an address; --workdir must be a folder")
    runtime.join(config.task, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    workdir = os.path.abspath(os.path.expanduser(_WORKDIR.value or f"runs/{config.task}"))
    logging.getLogger("infantxray").info("%s in %s", config.task, workdir)
    importlib.import_module(f"infantxray.commands.{config.task}").run(config, workdir)
    runtime.leave()


def _parse(argv: list[str]) -> list[str]:
    argv = [_find_config(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.task  # A file that failed to load raises here, not above.
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        accidents.fail(flag_errors.explain(error, argv))


def _find_config(argument: str) -> str:
    """`--config=configs/x.py` names the installed file where the current folder has none."""
    flag, equals, path = argument.partition("=")
    file, colon, variant = path.partition(":")
    installed = os.path.join(os.path.dirname(configs.__file__ or ""), os.path.basename(file))
    if flag != "--config" or os.path.exists(file) or not os.path.exists(installed):
        return argument
    return f"{flag}{equals}{installed}{colon}{variant}"


def console() -> None:
    """The entry point of `main.py` and of the installed `infantxray`."""
    accidents.open_standard_streams()
    messages.setup()
    sys.modules["__main__"].__doc__ = __doc__  # What absl prints for --help.
    with accidents.signals_raise():
        app.run(_guarded, flags_parser=_parse)


def _guarded(argv: list[str]) -> None:
    try:
        main(argv)
    except BaseException as error:
        workdir = _WORKDIR.value or (f"runs/{_CONFIG.value.task}" if _CONFIG.value else "")
        status = accidents.report(error, os.path.expanduser(workdir))
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # A second Ctrl-C does not wait for threads.
        runtime.abandon(status)
        sys.exit(status)


if __name__ == "__main__":
    console()
