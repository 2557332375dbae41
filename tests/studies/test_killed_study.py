"""A study that is killed at random moments and started again ends with the same tables.

One kill in the tests; ten, of all three variants, with

    python tests/studies/test_killed_study.py 10
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    "--config.study.encoders=('shufflenet',)",
    "--config.study.seeds=(0,)",
    "--config.study.frozen=False",
    "--config.study.pretrain_data=phantom:infant:films=60",
    "--config.data.train=phantom:infant:films=60",
    "--config.data.image_size=32",
    "--config.bootstrap_samples=200",
    "--config.finetune.bootstrap_samples=0",
    *(
        f"--config.{stage}.{setting}"
        for stage in ("pretrain", "finetune")
        for setting in (
            "train_steps=6",
            "batch_size=8",
            "eval_every_steps=3",
            "checkpoint_every_steps=2",
            "log_every_steps=2",
        )
    ),
]


def start(folder, variants):
    """Starts a study in a process group of its own."""
    names = ", ".join(repr(name) for name in variants)
    command = [
        sys.executable, "main.py", "--config=configs/study.py", f"--workdir={folder}",
        f"--config.study.variants=({names},)", *SMALL,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder, variants):
    process = start(folder, variants)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def kill(process, how):
    """Ends a study: everything at once, the study alone, or politely."""
    if how == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "study":
        process.kill()  # What it was running lives on.
    else:
        process.terminate()
    process.communicate(timeout=120)


def run(kills, folder, variants, seed=0):
    """Runs a study in one go, and another with kills; returns what was killed, and both tables."""
    rng = random.Random(seed)
    whole, killed = Path(folder, "whole"), Path(folder, "killed")
    started = time.monotonic()
    finish(whole, variants)
    duration = time.monotonic() - started
    moments = []
    while len(moments) < kills:
        process = start(killed, variants)
        # Later kills find less to do, and must not always come too late.
        moment = rng.uniform(0, duration / (1 + len(moments) / 4))
        how = rng.choice(["all", "study", "politely"])
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            kill(process, how)
            moments.append(f"{how} after {moment:.1f} s")
        else:
            break  # It was quicker.
    finish(killed, variants)
    return moments, tables(whole), tables(killed)


def tables(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").iterdir())}


def test_a_killed_study_ends_with_the_same_tables(tmp_path):
    moments, whole, killed = run(1, tmp_path, ["full"])
    assert len(moments) == 1
    assert len(whole) >= 12
    assert whole == killed


def main(argv):
    kills = int(argv[1]) if len(argv) > 1 else 10
    seed = int(argv[2]) if len(argv) > 2 else 0
    variants = ["without_pretraining", "without_apn", "full"]
    with tempfile.TemporaryDirectory() as folder:
        moments, whole, killed = run(kills, folder, variants, seed)
    print("\n".join(moments))
    different = [name for name in whole if killed.get(name) != whole[name]]
    print(f"{len(moments)} kills; {len(whole)} files of tables, different: {different or 'none'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv)
