import importlib.util
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infantxray.training import writers
from infantxray.training.writers import EventFileWriter, ScalarLog, create_writer, read_history


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(-0.2, 1.2, (2, 6, 5, 1)).astype(np.float32)


def write_all(writer, images):
    writer.write_scalars(3, {"train/loss": 0.5, "probe/accuracy": np.float32(0.25)})
    writer.write_scalars(4, {"train/loss": 0.125})
    writer.write_images(4, {"panels": images})
    writer.write_texts(0, {"config": "a: 1\nb: ü"})
    writer.flush()
    writer.close()


def read_all(folder):
    """What TensorBoard itself makes of a folder: `{tag: [(step, value)]}` and plugin by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), {"tensors": 0})
    events.Reload()
    values, plugins = {}, {}
    for tag in events.Tags()["tensors"]:
        metadata = events.SummaryMetadata(tag)
        plugins[tag] = metadata.plugin_data.plugin_name
        values[tag] = [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).tolist())
            for event in events.Tensors(tag)
        ]
    return values, plugins


def pixels(encoded):
    return [np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in encoded[2:]]


def test_both_writers_write_the_same(tmp_path, images):
    pytest.importorskip("tensorflow")
    write_all(create_writer(str(tmp_path / "clu")), images)
    write_all(EventFileWriter(str(tmp_path / "free")), images)
    (clu, clu_plugins), (free, free_plugins) = map(read_all, (tmp_path / "clu", tmp_path / "free"))
    assert clu.keys() == free.keys()
    assert clu_plugins == free_plugins
    assert free["train/loss"] == clu["train/loss"] == [(3, 0.5), (4, 0.125)]
    assert free["probe/accuracy"] == clu["probe/accuracy"] == [(3, 0.25)]
    for tag in clu:
        if tag != "panels":
            assert free[tag] == clu[tag], tag
    (step, a), (other_step, b) = clu["panels"][0], free["panels"][0]
    assert step == other_step == 4
    assert a[:2] == b[:2] == [b"5", b"6"]  # Width, then height.
    for x, y in zip(pixels(a), pixels(b), strict=True):
        # TensorFlow truncates where this one rounds.
        assert np.abs(x.astype(int) - y.astype(int)).max() <= 1


def test_pictures_are_rounded_and_clipped(tmp_path, images):
    writer = EventFileWriter(str(tmp_path))
    writer.write_images(1, {"float": images, "bytes": (images > 0.5).astype(np.uint8) * 255})
    writer.close()
    values, _ = read_all(tmp_path)
    expected = np.clip(np.rint(images * 255), 0, 255)
    np.testing.assert_array_equal(pixels(values["float"][0][1]), expected[..., 0])
    np.testing.assert_array_equal(pixels(values["bytes"][0][1]), 255 * (images > 0.5)[..., 0])


def test_where_tensorflow_is_missing_the_other_writer_is_chosen(
    tmp_path, monkeypatch, caplog, images
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else find(name)
    )
    with caplog.at_level("INFO", "infantxray"):
        writer = create_writer(str(tmp_path / "new" / "folder"))
    assert isinstance(writer, EventFileWriter)
    assert "TensorFlow is not installed" in caplog.text
    write_all(writer, images)
    assert read_all(tmp_path / "new" / "folder")[0]["train/loss"] == [(3, 0.5), (4, 0.125)]


def test_the_other_writer_really_does_without_tensorflow(tmp_path):
    """In a process in which importing it fails."""
    program = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from infantxray.training import loop, writers
writer = writers.create_writer(sys.argv[1])
writer.write_scalars(1, {"a": 0.5})
writer.write_images(1, {"b": np.zeros((1, 4, 4, 1))})
writer.write_texts(1, {"c": "text"})
writer.close()
from clu import parameter_overview
assert "clu.metric_writers" not in sys.modules
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root, timeout=120
    )
    values, _ = read_all(tmp_path)
    assert values["a"] == [(1, 0.5)]
    assert {"b", "c"} <= values.keys()


@pytest.fixture
def _no_tensorflow(monkeypatch):
    """Its import takes seconds."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else find(name)
    )


@pytest.mark.usefixtures("_no_tensorflow")
class TestScalarLog:
    def test_history_is_json_lines_with_null_for_nan(self, tmp_path):
        log = ScalarLog(str(tmp_path), 0)
        log(2, {"train/loss": np.float32(0.5), "validation/f1": math.nan, "x": math.inf})
        log(3, {})
        log(4, {"train/loss": 0.25})
        log.close()
        path = tmp_path / "history.jsonl"
        rows = [
            json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()
        ]
        assert [row.pop("checksum") for row in rows]
        assert rows == [
            {"step": 2, "train/loss": 0.5, "validation/f1": None, "x": None},
            {"step": 4, "train/loss": 0.25},
        ]
        assert read_history(str(path)) == rows

    def test_damaged_lines_of_history_do_not_stop_a_run(self, tmp_path):
        path = tmp_path / "history.jsonl"
        path.write_text(
            '{"step": 2, "a": 1.0}\n\0\0\n{"step": 4, "a": 2.0}\n[1]\n{"step": 6}\n{"st'
        )
        log = ScalarLog(str(tmp_path), 4)
        log(5, {"a": 9.0})
        log.close()
        rows = [(r["step"], r["a"]) for r in read_history(str(path))]
        assert rows == [(2, 1.0), (4, 2.0), (5, 9.0)]

    @pytest.mark.parametrize("torn", [False, True])
    def test_a_resumed_run_shows_every_step_once(self, tmp_path, torn):
        """A killed run logged 6 steps; it resumes from the checkpoint of step 4."""
        log = ScalarLog(str(tmp_path), 0)
        for step in range(1, 7):
            log(step, {"a": float(step)})
        log.close()
        if torn:
            (events,) = tmp_path.glob("events.*")
            events.write_bytes(events.read_bytes()[:-7])
        log = ScalarLog(str(tmp_path), 4)
        for step in range(5, 8):
            log(step, {"a": float(10 * step)})
        log.close()
        expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0), (6, 60.0), (7, 70.0)]
        values, _ = read_all(tmp_path)
        assert sorted(values["a"]) == expected
        rows = read_history(str(tmp_path / "history.jsonl"))
        assert [(row["step"], row["a"]) for row in rows] == expected

    def test_a_run_that_starts_again_forgets_everything(self, tmp_path):
        for _ in range(2):
            log = ScalarLog(str(tmp_path), 0)
            log(0, {"a": 1.0})
            log.close()
        assert read_all(tmp_path)[0]["a"] == [(0, 1.0)]
        assert len(read_history(str(tmp_path / "history.jsonl"))) == 1


def test_no_history_yet(tmp_path):
    assert read_history(str(tmp_path / "none.jsonl")) == []


def test_the_protocol_is_what_both_writers_offer():
    offered = {name for name in vars(writers.Writer) if not name.startswith("_")}
    assert all(callable(getattr(EventFileWriter, name)) for name in offered)


def test_without_clu_tensorflow_is_not_imported(tmp_path):
    """Its import takes seconds, and it writes messages to the terminal."""
    code = f"""
import sys
import numpy as np
from infantxray.training.writers import EventFileWriter
writer = EventFileWriter({str(tmp_path)!r})
writer.write_scalars(1, {{"a": 1.0}})
writer.write_images(1, {{"b": np.zeros((1, 4, 4, 1))}})
writer.write_texts(1, {{"c": "text"}})
writer.write_hparams({{"d": 2}})
writer.close()
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
