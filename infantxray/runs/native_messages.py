"""Filter of what native libraries write to stderr while several processes run.

When a process of a run dies, XLA ends the others with a stack trace of a few hundred lines, and
gives Python no way to do it otherwise. So file descriptor 2 goes through a filter, a small child
process; `sys.stderr` of Python still goes to the terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

LOST = "another process of this run has ended; run the same command again on all machines to resume"
_FATAL = "JAX distributed service detected fatal errors"
_NOISE = ("coordination_service", "preemption_sync_manager", "CoordinationService", "grpc_status")


def say_lost() -> None:
    """Prints once that another process has ended."""
    os.write(2, f"{LOST}\n".encode())


def filter_stderr() -> None:
    """Puts the filter between the native libraries of this process and its stderr."""
    terminal = os.dup(2)
    child = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,  # A signal to the group must not end it before this process.
    )
    assert child.stdin is not None
    sys.stderr.flush()
    sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    child.returncode = 0  # It ends with this process: nobody waits for it.


def _main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    for line in sys.stdin:
        if _FATAL in line or LOST in line:
            print(f"error: {LOST}", flush=True)
            break
        if line.strip() and not any(word in line for word in _NOISE):
            print(line, end="", flush=True)
    for _ in sys.stdin:  # The stack trace.
        pass


if __name__ == "__main__":
    _main()
