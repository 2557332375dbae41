"""Command line of infantxray.

    python main.py --config=configs/<task>.py [--workdir=DIR] [--config.key=value ...]

The same command again resumes an unfinished run; a finished one says so and stops.
"""

import importlib
import logging
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from data_pipeline.errors import UserError
from infantxray.runs import console, settings

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, such as configs/pretrain.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; runs/<task> where it is left out."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are --config.key=value")
    if _CONFIG.value is None:
        raise UserError("name a task, for example --config=configs/pretrain.py")
    config = _CONFIG.value
    settings.check(config)
    workdir = os.path.abspath(os.path.expanduser(_WORKDIR.value or f"runs/{config.task}"))
    logging.getLogger("infantxray").info("%s in %s", config.task, workdir)
    importlib.import_module(f"infantxray.commands.{config.task}").run(config, workdir)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.task  # A file that failed to load raises here, not above.
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        return _fail(settings.explain_flag_error(error, argv))


def _guarded(argv: list[str]) -> None:
    try:
        main(argv)
    except UserError as error:
        _fail(" ".join(str(error).split()))


if __name__ == "__main__":
    console.setup()
    app.run(_guarded, flags_parser=_parse)
