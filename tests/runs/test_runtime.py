"""How a process finds the others of its run; that they agree is tested in tests/distributed."""

import types

import jax
import pytest

from data_pipeline.errors import UserError
from infantxray.runs import native_messages, runtime

LAUNCHERS = {
    "Slurm": {"SLURM_STEP_NUM_TASKS": "2"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4"},
    "GKE": {"TPU_WORKER_HOSTNAMES": "a,b"},
}


@pytest.fixture
def calls(monkeypatch):
    """What `jax.distributed.initialize` is called with."""
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **_: found.append(a))
    monkeypatch.setattr(native_messages, "filter_stderr", lambda: None)
    for variables in LAUNCHERS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_are_recognised(launcher, calls, monkeypatch):
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    runtime.join("pretrain")
    assert calls == [(None, None, None)]


@pytest.mark.parametrize("environment", [
    {}, {"SLURM_STEP_NUM_TASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"SLURM_STEP_NUM_TASKS": "2", "INFANTXRAY_ALONE": "1"},
])  # fmt: skip
def test_a_process_alone_stays_alone(environment, calls, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.join("pretrain")
    assert not calls


def test_flags_come_first(calls, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    runtime.join("pretrain", num_processes=1)
    assert not calls
    runtime.join("finetune", "host:1234", 4, 3)
    runtime.join("finetune", "auto")
    assert calls == [("host:1234", 4, 3), (None, None, None)]
    runtime.join("study")  # Started by a launcher, and runs in one process.
    assert len(calls) == 2


def test_mistakes_are_explained(calls):
    with pytest.raises(UserError, match="--process_id together"):
        runtime.join("pretrain", "host:1234", 2)
    with pytest.raises(UserError, match="study runs in one process"):
        runtime.join("study", "host:1234", 2, 0)
    assert not calls


def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    def devices():
        raise AssertionError  # As JAX does for a plugin that is not installed.

    config = types.SimpleNamespace(jax_platforms="cuda", jax_compilation_cache_dir="/xla")
    monkeypatch.setattr(runtime, "jax", types.SimpleNamespace(devices=devices, config=config))
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda, but JAX finds no such device"):
        runtime.setup()
    config.jax_platforms = None
    with pytest.raises(UserError, match="JAX finds no device"):
        runtime.setup()
