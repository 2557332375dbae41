"""Several processes of one run (`jax.distributed`): which one this is, and how they agree.

Every process runs the same command and the same loop; the first one alone writes. With one process
nothing here communicates. Processes exchange a few bytes through the service that process 0 hosts,
never through the devices, so that a process can wait as long as another one works.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # The key-value store has no public name yet.

from data_pipeline.errors import UserError
from data_pipeline.loader import Part

_WAIT_MS = 7 * 24 * 3600 * 1000  # A process that dies ends the others through its heartbeat.
_names = itertools.count()


def count() -> int:
    """Number of processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Number of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes logs, predictions and reports."""
    return index() == 0


def part() -> Part:
    """The part of every batch that this process reads."""
    return Part(index(), count())


def from_main(value: Any) -> Any:
    """The value that process 0 has, on all processes; JSON, so floats keep all digits."""
    if count() == 1:
        return value
    client, key = distributed.global_state.client, f"infantxray/{next(_names)}"
    assert client is not None
    if is_main():
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, _WAIT_MS))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Process 0 executes the block first, then all others; they share a file system.

    Raises:
      UserError: process 0 raised it.
    """
    if not is_main():
        failure = from_main(None)
        if failure is not None:
            raise UserError(f"process 0: {failure}")
        yield
        return
    try:
        yield
    except UserError as error:
        from_main(str(error))
        raise
    from_main(None)


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes must call it at the same step."""
    if count() == 1:
        return flag
    client, key = distributed.global_state.client, f"infantxray/{next(_names)}"
    assert client is not None
    client.key_value_set(f"{key}/{index()}", str(int(flag)))
    # Each is waited for, although one may be enough: none can be far ahead of the others.
    others = [client.blocking_key_value_get(f"{key}/{i}", _WAIT_MS) for i in range(count())]
    return "1" in others


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    if count() > 1:
        assert distributed.global_state.client is not None
        distributed.global_state.client.wait_at_barrier(f"infantxray/{next(_names)}", _WAIT_MS)
