"""The strictest setting that passes: warnings are errors (pyproject.toml), arrays never change
rank without a word, and there are four devices, so that sharding is always exercised."""

import gc
import os
from importlib import metadata
from pathlib import Path

# Most programs here run a few times only: compile them fast, in this process and in its children.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # Halves the time of compiling; jax 0.11 no longer knows it.
        *(["--xla_cpu_use_fusion_emitters=false"] if metadata.version("jax") < "0.11" else []),
    ]
)

import hypothesis
import jax
import pytest

# The same examples in every run.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parent.parent

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs are shared between tests, test processes and runs.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
os.environ.setdefault("MPLBACKEND", "agg")
# Tracing makes many objects that live long; collecting them often takes 7 % of the time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_modifyitems(items):
    """Runs groups first, and skips tests marked `slow` unless INFANTXRAY_SLOW_TESTS is set.

    A group (`xdist_group`) stays in one process: started last, it would leave the others idle.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    if os.environ.get("INFANTXRAY_SLOW_TESTS"):
        return
    skip = pytest.mark.skip(reason="takes minutes; INFANTXRAY_SLOW_TESTS=1 runs it")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """A folder of real X-rays with manifests, for those who have one; not part of the project."""
    folder = ROOT.parent / "shared" / "xray"
    if not folder.is_dir():
        pytest.skip("no real X-rays beside the checkout (../shared/xray)")
    return folder
