"""Messages about a missing package give a command that installs it."""

import tomllib
from pathlib import Path

from data_pipeline.extras import EXTRAS, install_line

ROOT = Path(__file__).resolve().parents[2]


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert {name: tuple(packages) for name, packages in declared.items()} == EXTRAS


def test_a_shell_passes_the_line_on_as_it_is():
    assert install_line("ray") == "pip install ray==2.60.0"
    assert install_line("onnx") == "pip install jax2onnx==0.13.0 'onnxruntime>=1.24'"
