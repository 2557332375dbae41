"""`main.py` with a narrow encoder, `small`, for tests that start it as several processes.

python program.py NUM_DEVICES --config=... [--coordinator_address=... ...]
"""

import functools
import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax

from infantxray.__main__ import console
from infantxray.models import ENCODERS
from infantxray.models.encoders import resnet

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(sys.argv.pop(1)))
    stages = tuple(
        resnet.Stage(f"conv{n}", 1, 8, strides)
        for n, strides in zip(range(2, 6), (1, 2, 2, 2), strict=True)
    )
    ENCODERS["small"] = functools.partial(resnet.ResNet, stages=stages)
    console()
