"""A study that is killed at random moments and started again ends with the same tables.

Too long for every test run: real studies, each in its own processes. Two kills, or ten of all three
variants, with

    INFANTXRAY_SLOW_TESTS=1 python -m pytest tests/studies/test_killed_study.py
    python tests/studies/test_killed_study.py 10
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}
SMALL = {
    "study.encoders": "shufflenet",
    "study.seeds": "0,",
    "study.frozen": "False",
    "study.pretrain_data": "phantom:infant:films=60",
    "data.train": "phantom:infant:films=60",
    "data.image_size": "32",
    "bootstrap_samples": "200",
    "finetune.bootstrap_samples": "0",
}
for stage in ("pretrain", "finetune"):
    SMALL[f"{stage}.train_steps"] = "4"
    SMALL[f"{stage}.batch_size"] = "8"
    SMALL[f"{stage}.eval_every_steps"] = "2"
    SMALL[f"{stage}.checkpoint_every_steps"] = "1"
    SMALL[f"{stage}.log_every_steps"] = "1"


def start(folder, variants):
    """Starts a study in a process group of its own."""
    settings = {**SMALL, "study.variants": ",".join(variants)}
    return subprocess.Popen(
        [
            *(sys.executable, "main.py", "--config=configs/study.py", f"--workdir={folder}"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
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
    if how == "everything":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "the study alone":
        process.kill()  # Its runs notice, save and end.
    else:
        process.terminate()
    process.communicate(timeout=120)


def run(kills, folder, variants, seed=0):
    """Kills studies at random moments and lets them finish.

    A study that is quicker than the next kill is followed by another one.

    Returns:
      What was killed when, and the tables of each study; the first was never killed.
    """
    rng = random.Random(seed)
    finish(Path(folder, "0"), variants)
    moments, ended = [], [tables(Path(folder, "0"))]
    started = time.monotonic()
    finish(Path(folder, "1"), variants)  # The first one also compiled.
    duration = time.monotonic() - started
    ended.append(tables(Path(folder, "1")))
    while len(moments) < kills:
        studied = Path(folder, str(len(ended)))
        moment = rng.uniform(0, duration / 3)
        process = start(studied, variants)
        try:
            process.communicate(timeout=moment)
            ended.append(tables(studied))
        except subprocess.TimeoutExpired:
            how = rng.choice(["everything", "the study alone", "politely"])
            kill(process, how)
            moments.append(f"study {len(ended)}: {how}, after {moment:.1f} s")
    if not Path(folder, str(len(ended)), "tables").exists():
        finish(Path(folder, str(len(ended))), variants)
        ended.append(tables(Path(folder, str(len(ended)))))
    return moments, ended


def running_in(folder):
    """Command lines of the processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [text] if str(folder) in text else []
    return found


def tables(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["everything", "the study alone"])
def test_a_killed_study_ends_with_the_same_tables(tmp_path, how):
    variants = ["without_pretraining"]
    process = start(tmp_path / "killed", variants)
    tuned = tmp_path / "killed" / "finetune/shufflenet/without_pretraining/fraction1/seed0"
    # In the middle of training.
    while process.poll() is None and not (tuned / "checkpoints" / "1").exists():
        time.sleep(0.02)
    kill(process, how)
    until = time.monotonic() + 90
    while (alive := running_in(tmp_path / "killed")) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive
    assert not (tuned / "metrics.json").exists()
    finish(tmp_path / "killed", variants)
    assert "resumed at step" in (tuned / "study_run.log").read_text()
    finish(tmp_path / "whole", variants)
    whole = tables(tmp_path / "whole")
    assert len(whole) >= 12
    assert tables(tmp_path / "killed") == whole


def main(argv):
    kills = int(argv[1]) if len(argv) > 1 else 10
    seed = int(argv[2]) if len(argv) > 2 else 0
    variants = ["without_pretraining", "without_apn", "full"]
    with tempfile.TemporaryDirectory() as folder:
        moments, ended = run(kills, folder, variants, seed)
    print("\n".join(moments))
    different = [i for i, one in enumerate(ended) if one != ended[0]]
    print(
        f"{len(moments)} kills of {len(ended) - 2} studies, each with {len(ended[0])} files of "
        f"tables; studies that differ from an uninterrupted one: {different or 'none'}"
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv)
