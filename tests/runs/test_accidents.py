import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, UserError
from infantxray.runs import accidents, workdir

ROOT = Path(__file__).resolve().parents[2]
EXPORT = (
    "--config=configs/export_phantom.py",
    "--config.data.train=phantom:infant:films=6",
    "--config.data.image_size=256",
)


def chained(cause, text="it failed"):
    error = RuntimeError(text)
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.npy")
# An error, the exit code, and what the line says.
ERRORS = {
    "full disk": (FULL, 2, "/data/a.npy: the disk is full; free some space"),
    "full disk beneath": (chained(FULL), 2, "/data/a.npy: the disk is full"),
    "in words": (ValueError("UNKNOWN: write: No space left on device [/x]"), 2, "the disk is full"),
    "quota": (OSError(errno.EDQUOT, "x"), 2, "the disk quota is used up; free some space"),
    "quota in words": (RuntimeError("Disk quota exceeded"), 2, "the disk quota is used up"),
    "read-only": (OSError(errno.EROFS, "x", "/a"), 2, "/a: the file system is read-only"),
    "permission": (PermissionError(errno.EACCES, "x", "/a"), 2, "/a: permission denied"),
    "stale": (OSError(errno.ESTALE, "x", "/a"), 2, "/a: the network file system lost the file"),
    "descriptors": (OSError(errno.EMFILE, "x"), 2, "too many open files; raise the limit"),
    "any other": (IsADirectoryError(errno.EISDIR, "x", "/a"), 2, "/a: is a directory"),
    "GPU memory": (
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.\n  at"),
        1,
        "memory ran out; lower config.batch_size, or keep it and raise config.accumulate_steps",
    ),
    "memory": (MemoryError(), 1, "memory ran out"),
    "user": (DataError("no images"), 2, "no images"),
    "internal": (KeyError("x"), 1, "KeyError: 'x'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_an_exit_code_and_the_details_in_a_file(name, tmp_path, capsys):
    error, code, part = ERRORS[name]
    with pytest.raises(type(error)) as caught:
        raise error
    assert accidents.report(caught.value, str(tmp_path)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {part}")
    if name == "user":
        assert not list(tmp_path.iterdir())
    else:
        log = tmp_path / "error.log"
        assert line.endswith(f"the details are in {log}")
        assert "Traceback" in log.read_text()
        assert os.listdir(tmp_path) == ["error.log"]


def test_without_a_workdir_only_the_unknown_has_a_traceback(tmp_path, capsys):
    accidents.report(FULL, str(tmp_path / "none"))
    assert len(capsys.readouterr().err.splitlines()) == 1
    accidents.report(KeyError("x"), None)
    assert capsys.readouterr().err.splitlines()[0] == "error: KeyError: 'x'"


@pytest.fixture
def _hangups_are_heeded():
    """Also where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangups_are_heeded")
def test_signals_become_exceptions_and_exit_codes(capsys):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        kind = KeyboardInterrupt if signum == signal.SIGINT else accidents.Terminated
        with accidents.signals_raise(), pytest.raises(kind) as caught:
            os.kill(os.getpid(), signum)
        assert accidents.report(caught.value, None) == 128 + signum
        assert capsys.readouterr().err.startswith("stopped")
    after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert before == after


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with accidents.signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def python(code, *, redirection=""):
    """Standard output and error of some code, started by a shell."""
    command = f'"{sys.executable}" -c "$CODE" {redirection}'
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
        env={**os.environ, "CODE": code},
    )  # fmt: skip


STREAMS = "import sys; from infantxray.runs import accidents; accidents.open_standard_streams(); "


def test_messages_do_not_get_into_files_where_stderr_is_closed(tmp_path):
    code = STREAMS + (
        f"file = open({str(tmp_path / 'a')!r}, 'w'); print('lost', file=sys.stderr); "
        "sys.stderr.flush(); import os; "
        "os.write(2, b'lost too'); file.write('kept'); print(file.fileno())"
    )
    answer = python(code, redirection="2>&-")
    assert answer.returncode == 0
    assert int(answer.stdout) > 2
    assert (tmp_path / "a").read_text() == "kept"


def test_a_reader_that_went_away_does_not_end_the_work(tmp_path):
    code = STREAMS + (
        "import time; time.sleep(0.3)\n"
        "for i in range(10_000): print('message', file=sys.stderr, flush=True)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()"
    )
    python(code, redirection="2>&1 | true")
    assert (tmp_path / "done").exists()


def main(*arguments, folder):
    answer = subprocess.run(
        [sys.executable, "main.py", *arguments, f"--workdir={folder}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return answer.returncode, answer.stderr.splitlines(), answer


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("file", "is a file, or lies below one"),
        ("file/below", "is a file, or lies below one"),
        ("a[1]", "holds [ ], which checkpoints cannot be read back from"),
        ("a\\b", "holds \\, which"),
        ("/proc/none/run", "cannot be made"),
    ],
)
def test_a_workdir_that_cannot_be_used_is_refused_before_any_work(tmp_path, name, part):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        workdir.prepare(os.path.join(tmp_path, name), {"task": "pretrain"})
    assert part in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def disk(tmp_path):
    """A small disk; mounting it needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_and_a_read_only_disk(disk):
    code, lines, answer = main(*EXPORT, folder=disk / "run")
    assert code == 2, answer.stderr
    assert "the disk is full; free some space" in lines[-1]
    assert "Traceback" not in answer.stderr
    assert not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    code, lines, answer = main(*EXPORT, folder=disk / "run")
    assert code == 0, answer.stderr
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, lines, answer = main(*EXPORT, folder=disk / "other")
    assert code == 2, answer.stderr
    assert "read-only" in lines[-1].lower(), answer.stderr
    assert "Traceback" not in answer.stderr
