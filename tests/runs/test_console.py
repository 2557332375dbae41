import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import logging, sys, threading
from infantxray.runs import console
console.setup()
def fail(error):
    raise error
for error in (OSError(28, "No space left on device"), KeyError("bug")):
    thread = threading.Thread(target=fail, args=(error,))
    thread.start()
    thread.join()
try:
    raise ValueError("it is raised as well")
except ValueError:
    logging.getLogger("absl").exception("saving failed")
logging.getLogger("absl").error("no error at hand")
class Closed:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)
Closed("Event loop is closed")
Closed("another")
"""


def test_threads_and_libraries_print_no_traceback_of_what_the_command_reports():
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "[Errno 28] No space left on device" in done.stderr.splitlines()
    assert "no error at hand" in done.stderr
    assert "RuntimeError: another" in done.stderr
    assert "KeyError: 'bug'" in done.stderr
    for text in ("saving failed", "raised as well", "Event loop is closed"):
        assert text not in done.stderr
    assert done.stderr.count("Traceback") == 2  # Of the bug, and of the other destructor.
