"""The Python API as documented: the examples of docs/python_api.md and the notebook run."""

import json
import re
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from quick_figures import quick_figures
from small_encoder import small_encoder

import infantxray
from data_pipeline.phantom.export import file_name, write_image
from infantxray.commands import finetune
from infantxray.runs import settings

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "phantom:infant:seed=0:site=a:split=test:film={}"

pytestmark = pytest.mark.xdist_group("api")


@pytest.fixture(scope="module", autouse=True)
def _small_encoder():
    with small_encoder():
        yield


def train(command, *, run=subprocess.run, **how):
    """Runs the notebook's command in this process, with an encoder that compiles in seconds."""
    python, *arguments = command
    if arguments[:2] != ["-m", "infantxray"]:
        return run(command, **how)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    argv = [python, *(word.replace("shufflenet", "small") for word in arguments[2:])]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", DeprecationWarning)  # How ml_collections loads modules.
        patch.setattr("sys.argv", argv)
        values(argv)
    settings.check(values.config)
    return finetune.run(values.config, values.workdir)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The names that the notebook defines, run with few steps, and its folder."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    folder = tmp_path_factory.mktemp("quickstart")
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    names = {}
    with quick_figures(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("QUICKSTART_WORKDIR", str(folder / "run"))
        patch.setenv("QUICKSTART_STEPS", "4")
        patch.setenv("QUICKSTART_FILMS", "250")
        patch.setattr(subprocess, "run", train)
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    names["plt"].close("all")
    return names, folder


def test_the_notebook_runs_and_judges_its_images(notebook):
    names, folder = notebook
    result = names["result"]
    assert len(result) == 4
    np.testing.assert_allclose(result.probabilities.sum(1), 1, atol=1e-5)
    for predicted, conditions in zip(result.predicted, result.conditions, strict=True):
        assert predicted in conditions
    assert (result.age_low_months <= result.age_high_months).all()
    assert np.isfinite(result.distance).all()
    table = result.to_pandas()
    assert {"predicted", "conditions", "age_low_months", "unlike_training"} <= set(table.columns)
    plain = infantxray.load(folder / "run", calibrate=False).predict(names["images"])
    assert plain.conditions == ()
    assert np.isnan(plain.age_low_months).all()
    assert plain.predicted == result.predicted


def test_the_notebook_is_stored_with_its_pictures():
    text = (ROOT / "examples" / "quickstart.ipynb").read_text()
    assert len(text) < 400_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert sum("image/png" in str(cell["outputs"]) for cell in cells) == 1
    assert all(cell["outputs"] for cell in cells[1:])


def test_the_examples_of_the_page_run(notebook, tmp_path, monkeypatch):
    _, folder = notebook
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path, ADDRESS.format(0), 128, "dicom", patient_id="", age_months=5.0, sex="F")
    write_image(tmp_path, ADDRESS.format(1), 128, "png", patient_id="", age_months=5.0, sex="F")
    (tmp_path / file_name(ADDRESS.format(0), "dicom")).rename(tmp_path / "a.dcm")
    (tmp_path / file_name(ADDRESS.format(1), "png")).rename(tmp_path / "b.png")
    text = (ROOT / "docs" / "python_api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names = {}
    for block in blocks[:-1]:  # The last one makes a ResNet-50.
        source = block.replace('"runs/finetune"', repr(str(folder / "run")))
        exec(compile(source, "python_api.md", "exec"), names)
    assert names["z"].shape == (2, names["features"].shape[1])
    assert names["heat"].max() <= 1
