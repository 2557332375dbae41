"""A process that keeps freed memory takes no new pages for the same work again."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from infantxray.runs.cpu_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import numpy as np

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_second_use_needs_no_new_pages():
    def second_use(mode):
        command = [sys.executable, "-c", SCRIPT, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert second_use("keep") < 100
    assert second_use("default") > 10 * second_use("keep")
