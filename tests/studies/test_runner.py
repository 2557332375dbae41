"""Executing runs: order, failures, stops and locks, with small processes in place of training."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from infantxray.studies import runner as runners
from infantxray.studies.plan import Run

DONE = "import os, sys, time; folder = sys.argv[1]; open(folder + '/done', 'w')"


class Stub(Run):
    def is_finished(self):
        return Path(self.folder, "done").exists()


def stub(tmp_path, index, script=DONE, needs=()):
    folder = str(tmp_path / str(index))
    (tmp_path / f"stub_{index}.py").write_text(script)
    command = [sys.executable, "-m", f"stub_{index}", folder]
    return Stub(
        index, "finetune", "shufflenet", "full", 1.0, index, folder, {}, command, tuple(needs)
    )


def stub_environment(tmp_path):
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.fixture
def runner(tmp_path):
    runner = runners.LocalRunner(1, stub_environment(tmp_path))
    yield runner
    runner.close()


def append(tmp_path, text):
    return f"open({str(tmp_path / 'order')!r}, 'a').write('{text} ')"


def test_runs_run_after_those_they_need(tmp_path, runner):
    plan = [
        stub(tmp_path, 0, f"{DONE}; {append(tmp_path, 'tuned')}", needs=[1]),
        stub(tmp_path, 1, f"{DONE}; {append(tmp_path, 'learned')}"),
    ]
    finished = set()
    assert runners.run_all(plan, plan, finished, runner) == {}
    assert finished == {0, 1}
    assert (tmp_path / "order").read_text().split() == ["learned", "tuned"]
    assert plan[0].read_record()["finished"]
    assert plan[0].read_record()["seconds"] > 0


def test_two_processes_share_a_study(tmp_path, runner):
    """A run of another process comes last, and is not repeated if it has finished meanwhile."""
    plan = [
        stub(tmp_path, i, f"{DONE}; {append(tmp_path, name)}")
        for i, name in enumerate(["theirs", "first", "second"])
    ]
    folder = tmp_path / "0"
    folder.mkdir()
    with open(folder / "study_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runners.is_running(str(folder))
        plan[2].command[2] = "stub_2_ends_theirs"
        (tmp_path / "stub_2_ends_theirs.py").write_text(
            f"{DONE}; {append(tmp_path, 'second')}; open({str(folder / 'done')!r}, 'w')"
        )
        finished = set()
        assert runners.run_all(plan, plan, finished, runner) == {}
    assert not runners.is_running(str(folder))
    assert finished == {0, 1, 2}
    assert (tmp_path / "order").read_text().split() == ["first", "second"]


def test_a_failed_run_is_tried_once_more_and_the_others_go_on(tmp_path, runner):
    once = (
        "import os, sys; first = not os.path.exists(sys.argv[1] + '/seen'); "
        "open(sys.argv[1] + '/seen', 'w'); sys.exit('a bad day') if first else None; "
    ) + DONE
    never = f"{append(tmp_path, 'never')}; import sys; print('noise'); sys.exit('error: no luck')"
    silent = "pass"  # Ends well and leaves nothing.
    plan = [
        stub(tmp_path, 0, never),
        stub(tmp_path, 1, needs=[0]),
        stub(tmp_path, 2, once),
        stub(tmp_path, 3, silent),
        stub(tmp_path, 4, "import os; os.kill(os.getpid(), 9)"),
        stub(tmp_path, 5),
    ]
    finished = set()
    failed = runners.run_all(plan, plan, finished, runner)
    assert finished == {2, 5}
    assert failed == {
        0: "no luck",
        1: "needs run 0, which failed",
        3: "it ended without being finished",
        4: "killed by SIGKILL, most often because memory ran out",
    }
    assert (tmp_path / "order").read_text().split() == ["never", "never"]


def test_an_error_without_a_message_fails_its_run_alone(tmp_path, runner, monkeypatch):
    execute = runners.run_command

    def run_command(command, folder, *rest):
        if folder.endswith("0"):
            raise MemoryError
        return execute(command, folder, *rest)

    monkeypatch.setattr(runners, "run_command", run_command)
    plan, finished = [stub(tmp_path, 0), stub(tmp_path, 1)], set()
    assert runners.run_all(plan, plan, finished, runner) == {0: "MemoryError"}
    assert finished == {1}


def test_runs_run_side_by_side_with_shares_of_the_memory(tmp_path):
    wait = "; ".join(
        [
            DONE,
            "open(folder + '/share', 'w').write(os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'])",
            "other = folder[:-1] + str(1 - int(folder[-1])) + '/done'",
            "[time.sleep(0.02) for _ in range(3000) if not os.path.exists(other)]",
            "assert os.path.exists(other)",
        ]
    )
    plan = [stub(tmp_path, 0, wait), stub(tmp_path, 1, wait)]
    runner = runners.LocalRunner(2, stub_environment(tmp_path))
    try:
        assert runners.run_all(plan, plan, set(), runner) == {}
    finally:
        runner.close()
    assert (tmp_path / "0" / "share").read_text() == "0.450"


def test_gpus_are_counted_from_zero(tmp_path, monkeypatch):
    """In a container that is given the machine's GPUs 3 and 5 alone."""
    for name in ("nvidia3", "nvidia5", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(runners, "_GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    assert runners.visible_gpus({}) == ["0", "1"]
    assert runners.visible_gpus({"CUDA_VISIBLE_DEVICES": "7"}) == ["7"]


@pytest.mark.parametrize(
    ("gpus", "slots", "expected"),
    [
        ("", 2, ["none 0.450", "none 0.450"]),
        ("-1", 2, ["none 0.450", "none 0.450"]),
        ("0, GPU-b", 2, ["0 0.900", "GPU-b 0.900"]),
        ("4,5", 3, ["4 0.450", "4 0.450", "5 0.450"]),
        ("4,5", 1, ["4,5 whole"]),
    ],
)
def test_runs_are_dealt_out_to_the_gpus(tmp_path, gpus, slots, expected):
    say = (
        "name = os.environ['CUDA_VISIBLE_DEVICES']; "
        "share = os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 'whole'); "
        "name = 'none' if name in ('', '-1') else name; "
        "open(folder + '/gpu', 'w').write(name + ' ' + share); "
        "others = [os.path.dirname(folder) + f'/{i}/gpu' for i in range(" + str(slots) + ")]; "
        "[time.sleep(0.02) for _ in range(3000) if not all(map(os.path.exists, others))]"
    )
    plan = [stub(tmp_path, i, f"{DONE}; {say}") for i in range(slots)]
    environment = {
        k: v for k, v in stub_environment(tmp_path).items() if not k.startswith("XLA_PYTHON")
    }
    runner = runners.LocalRunner(slots, environment | {"CUDA_VISIBLE_DEVICES": gpus})
    try:
        assert runners.run_all(plan, plan, set(), runner) == {}
    finally:
        runner.close()
    found = sorted((tmp_path / str(i) / "gpu").read_text() for i in range(slots))
    assert found == sorted(expected)


def wait_for(path, seconds=60):
    for _ in range(seconds * 50):
        if path.exists():
            return
        time.sleep(0.02)
    pytest.fail(f"{path} did not appear")


POLITE = (
    "import signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + '/saved', 'w'), sys.exit(2))); "
    "open(sys.argv[1] + '/ready', 'w'); time.sleep(60)"
)


def test_a_stop_is_handed_on_and_is_no_failure(tmp_path, runner):
    plan = [stub(tmp_path, 0, POLITE), stub(tmp_path, 1)]

    def stop():
        wait_for(tmp_path / "0" / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(runners.Stopped, match="the same command resumes"):
        runners.run_all(plan, plan, set(), runner)
    assert (tmp_path / "0" / "saved").exists()
    assert not (tmp_path / "1").exists()  # Nothing new was begun.
    assert signal.getsignal(signal.SIGTERM) is before


STARTER = (
    "import os; from infantxray.studies import runner; "
    "runner.run_command({command!r}, {folder!r}, dict(os.environ))"
)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_saves_and_ends_when_its_study_is_killed(tmp_path, runner, how):
    slow = (
        "import os, signal, sys, time; folder = sys.argv[1]; "
        "signal.signal(signal.SIGTERM, lambda *_: ("
        "[time.sleep(0.02) for _ in range(3000) if not os.path.exists(folder + '/go')], "
        f"{append(tmp_path, 'saved')}, sys.exit(2))); "
        "open(folder + '/pid', 'w').write(str(os.getpid())); "
        "open(folder + '/ready', 'w'); time.sleep(60)"
    )
    run = stub(tmp_path, 0, slow)
    starter = STARTER.format(command=run.command, folder=run.folder)
    root = Path(__file__).resolve().parents[2]
    study = subprocess.Popen(
        [sys.executable, "-c", starter], cwd=root, env=stub_environment(tmp_path)
    )
    wait_for(tmp_path / "0" / "ready")
    study.send_signal(how)
    study.wait()
    with open(tmp_path / "0" / "study_run.lock") as lock:
        assert not runners._try_lock(lock)  # Held by the orphan alone, which is saving.
    # A study that is started again waits for it.
    threading.Timer(0.5, (tmp_path / "0" / "go").touch).start()
    again = stub(tmp_path, 0, f"{append(tmp_path, 'again')}; {DONE}")
    assert runners.run_all([again], [again], set(), runner) == {}
    assert (tmp_path / "order").read_text().split() == ["saved", "again"]
    pid = int((tmp_path / "0" / "pid").read_text())
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_in_the_working_folder_is_executed(tmp_path, runner, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("numpy", "runpy", "sitecustomize", "data_pipeline", "signal"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w')")
    monkeypatch.chdir(here)
    runner._environment["PYTHONPATH"] += os.pathsep + "." + os.pathsep
    run = stub(tmp_path, 0, "import numpy, signal, data_pipeline.errors; " + DONE)
    assert runners.run_all([run], [run], set(), runner) == {}
    assert not (tmp_path / "seen").exists()


def test_the_last_line_of_an_error_is_told(tmp_path):
    assert runners.last_error(str(tmp_path)) == "it left no log"
    log = tmp_path / "study_run.log"
    log.write_text("step 3\nerror: the disk is full; make room\n\n")
    assert runners.last_error(str(tmp_path)) == "the disk is full; make room"
    log.write_text("Traceback (most recent call last):\n  File ...\nValueError: odd\n")
    assert runners.last_error(str(tmp_path)) == "ValueError: odd"


def test_ray_is_asked_for_and_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install ray=="):
        runners.RayRunner("auto", {})


class FakeRay:
    """The part of Ray that is used, in threads of this process."""

    def __init__(self, gpus):
        self._resources = {"GPU": gpus} if gpus else {}
        self.options = None

    def init(self, **arguments):
        self.initialised = arguments

    def cluster_resources(self):
        return self._resources

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": 8.0}},
            {"Alive": True, "Resources": {"CPU": 4.0}},
            {"Alive": False, "Resources": {"CPU": 1.0}},
        ]

    def remote(self, function):
        ray = self

        class Task:
            def options(self, **options):
                ray.options = options
                return self

            def remote(self, *arguments):
                from concurrent.futures import ThreadPoolExecutor

                class Reference:
                    pool = ThreadPoolExecutor(1)
                    result = pool.submit(function, *arguments)

                    def future(self):
                        return self.result

                return Reference()

        return Task()

    def shutdown(self):
        self.down = True


@pytest.mark.parametrize(("gpus", "wanted"), [(2, {"num_gpus": 1}), (0, {"num_cpus": 4.0})])
def test_runs_are_tasks_of_a_ray_cluster(tmp_path, monkeypatch, gpus, wanted):
    ray = FakeRay(gpus)
    monkeypatch.setitem(sys.modules, "ray", ray)
    runner = runners.RayRunner("auto", stub_environment(tmp_path))
    plan = [stub(tmp_path, 0), stub(tmp_path, 1, needs=[0])]
    assert runners.run_all(plan, plan, set(), runner) == {}
    runner.close()
    assert ray.initialised["address"] == "auto"
    assert ray.options == {"max_retries": 0, **wanted}
    assert ray.down


def test_a_study_on_ray_itself(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    runner = runners.RayRunner("local", stub_environment(tmp_path))
    plan = [stub(tmp_path, 0), stub(tmp_path, 1, "import sys; sys.exit('error: no')", needs=[0])]
    assert runners.run_all(plan, plan, set(), runner) == {1: "no"}
    runner.close()
    assert not ray.is_initialized()
