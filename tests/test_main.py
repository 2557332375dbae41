"""The command line as a user meets it: every mistake is one line on stderr and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infantxray.runs import settings

ROOT = Path(__file__).resolve().parents[1]

PRETRAIN = "--config=configs/pretrain.py"
FINETUNE = "--config=configs/finetune.py"


def main(*arguments: str, workdir) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments, f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")},
    )  # fmt: skip


# Arguments, and what the one line must contain: the culprit and the way out.
MISTAKES = {
    "no config": ((), ("--config=configs/",)),
    "no such config": (("--config=configs/pretain.py",), ("configs/pretain.py", "pretrain.py?")),
    "no such variant": ((f"{PRETRAIN}:huge",), ("huge", "paper")),
    "unknown key": ((PRETRAIN, "--config.batchsize=3"), ("batchsize", "batch_size")),
    "unknown nested key": ((PRETRAIN, "--config.data.img=3"), ("data.img",)),
    "key of another group": ((PRETRAIN, "--config.image_size=32"), ("--config.data.image_size?",)),
    "a group": ((PRETRAIN, "--config.data=a.csv"), ("config.data is a group", "data.train")),
    "wrong type": ((PRETRAIN, "--config.batch_size=many"), ("batch_size", "many", "number")),
    "image size": ((PRETRAIN, "--config.data.image_size=100"), ("image_size", "100", "32")),
    "negative alpha": ((FINETUNE, "--config.age_weight=-1"), ("age_weight", "0 or more")),
    "encoder": ((PRETRAIN, "--config.encoder=resnet51"), ("resnet51", "resnet50")),
    "both durations": ((PRETRAIN, "--config.train_epochs=2"), ("train_steps", "train_epochs")),
    "stray word": ((PRETRAIN, "batch_size=3"), ("batch_size=3", "--config")),
    "missing manifest": (
        (PRETRAIN, "--config.data.train=manifest:/nowhere/a.csv"),
        ("/nowhere/a.csv", "does not exist"),
    ),
    "unknown source": ((PRETRAIN, "--config.data.train=dicoms:/data"), ("dicoms", "folder")),
    "no stage one": ((FINETUNE, "--config.pretrained=/nowhere"), ("/nowhere", "pretrain.py")),
    "no torch file": ((FINETUNE, "--config.pretrained=torch:/no.pth"), ("/no.pth", "exist")),
    "no checkpoint to score": (
        ("--config=configs/evaluate.py", "--config.checkpoint=/nowhere"),
        ("/nowhere", "finetune.py"),
    ),
}


# In one process, so that the answers are collected once.
pytestmark = pytest.mark.xdist_group("main")


# Starts every command as the fork of one process, which has loaded the program once.
FORKS = """
import json, os, sys
from infantxray import __main__ as program
from infantxray.commands import evaluate, finetune, pretrain

for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.path.insert(0, ".")
        os.chdir(sys.argv[1])
        sys.argv = ["main.py", *arguments]
        try:
            program.console()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)  # Without taking thousands of modules apart.
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_all(commands, folder) -> list[subprocess.CompletedProcess]:
    """What each command line answers."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(ROOT)], cwd=folder, text=True, timeout=300, check=True,
        input=json.dumps(commands), stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return [
        subprocess.CompletedProcess(
            command,
            int(code),
            *((folder / f"{number}.{name}").read_text() for name in ("stdout", "stderr")),
        )
        for number, (command, code) in enumerate(zip(commands, done.stdout.split(), strict=True))
    ]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    commands = [
        [*arguments, f"--workdir={folder / name}"] for name, (arguments, _) in MISTAKES.items()
    ]
    return dict(zip(MISTAKES, run_all(commands, folder), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(answers, name):
    answer = answers[name]
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert len(errors) == 1, answer.stderr
    assert answer.stderr.splitlines()[-1] == errors[0]
    for part in MISTAKES[name][1]:
        assert part in errors[0]


def test_a_workdir_in_an_object_store_is_refused():
    answer = main(PRETRAIN, workdir="gs://bucket/run")
    assert answer.returncode == 2
    assert answer.stderr == "error: gs://bucket/run is an address; --workdir must be a folder\n"


def test_help_names_every_task():
    command = [sys.executable, "main.py", "--help"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for task in settings.TASKS:
        assert re.search(rf"\b{task}\b", answer.stdout), task


def test_a_mistake_in_the_settings_is_found_without_loading_jax():
    code = "import sys; from infantxray.runs import console, settings; print('jax' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


MANIFESTS = {
    "path,label\na.png,normal\n": "no column 'image_path'",
    "image_path,label\n": "lists no image",
    "image_path,patient_id,label\na.png,p1,normal\nb.png,p2,mass\nc.png,p3,mass\n": "'p1'",
    "image_path,age_months\na.png,two\n": "line 2",
}


def test_a_manifest_that_cannot_be_used_says_why(tmp_path):
    commands = []
    for number, content in enumerate(MANIFESTS):
        manifest = tmp_path / f"{number}.csv"
        manifest.write_text(content)
        places = (f"--config.data.train=manifest:{manifest}", f"--workdir={tmp_path / str(number)}")
        commands.append([FINETUNE, *places])
    for part, answer in zip(MANIFESTS.values(), run_all(commands, tmp_path), strict=True):
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.splitlines()[-1].startswith("error: ")
        assert part in answer.stderr.splitlines()[-1]
