"""The exported programs and folder give what the checkpoint gives."""

import dataclasses
import functools
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from members import SIZE, make_member
from PIL import Image
from small_encoder import small_encoder

import infantxray
from configs import export as export_config
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.decode.preprocessing import RESIZE_MODES
from data_pipeline.errors import UserError
from infantxray.commands import export
from infantxray.evaluation.operating_points import OperatingPoint
from infantxray.export import folder as export_folder
from infantxray.export import onnx
from infantxray.export.graph import answer_function
from infantxray.export.stablehlo import to_stablehlo
from infantxray.stage_two import inference
from infantxray.stage_two.trust import Trust

pytestmark = pytest.mark.xdist_group("export")
TEMPLATE = Path(export_folder.__file__).parent / "templates" / "use.py"


@pytest.fixture(scope="module")
def _exported(_finetuned, tmp_path_factory):
    pytest.importorskip("jax2onnx")
    folder = tmp_path_factory.mktemp("export")
    config = export_config.get_config()
    config.checkpoint, config.licence = str(_finetuned), "apache-2.0"
    with small_encoder():
        export.run(config, str(folder))
    return folder


@pytest.fixture
def exported(small, _exported):
    """The folder, while the encoder is known."""
    return _exported


def images(n, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 1), np.uint8)


@pytest.mark.parametrize("changes", [{}, {"age_film": True}, {"age_range_months": (0.0, 36.0)}])
def test_the_exported_function_is_the_calibrated_prediction(small, changes):
    member = make_member(small, **changes)
    function, names = answer_function(member.spec, member.variables, temperature=2.0)
    found = dict(zip(names, jax.jit(function)(images(3)), strict=True))
    expected = jax.jit(inference.predict_function(member.spec))(member.variables, images(3))
    root = np.sqrt(expected["probabilities"])
    np.testing.assert_allclose(
        found["probabilities"], root / root.sum(1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    months = member.spec.age_in_months(expected["age"])
    np.testing.assert_allclose(found["age_months"], months, rtol=1e-5)
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-4, atol=1e-5)
    # Class activation maps add up to the logits, up to a constant of each class.
    if not changes.get("age_film"):  # Its constant depends on the age.
        model = inference.build_model(member.spec)
        x = (images(3) / np.float32(255) - member.spec.input_mean) / member.spec.input_std
        logits = jax.jit(functools.partial(model.apply, train=False))(member.variables, x)["logits"]
        constant = np.asarray(found["saliency"]).mean((2, 3)) - logits
        np.testing.assert_allclose(constant - constant[:1], 0, atol=1e-3)


def test_a_model_of_bfloat16_is_exported_in_float32(small):
    """ONNX Runtime has no convolution of bfloat16 on CPUs."""
    member = make_member(small)
    trained = dataclasses.replace(member.spec, dtype="bfloat16")
    function = answer_function(trained, member.variables)[0]
    assert "bf16" not in str(jax.make_jaxpr(function)(images(1)))
    expected = jax.jit(answer_function(member.spec, member.variables)[0])(images(2))
    for a, b in zip(jax.jit(function)(images(2)), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_finding_is_calibrated_by_its_temperature(small):
    member = make_member(small, multi_label=True)
    temperature = (2.0, 1.0, 0.5)
    function, _ = answer_function(member.spec, member.variables, temperature)
    raw = jax.jit(inference.predict_function(member.spec))(member.variables, images(3))
    expected = Trust(temperature=temperature).judge(
        np.asarray(raw["probabilities"]), np.zeros(3), None
    )
    np.testing.assert_allclose(
        jax.jit(function)(images(3))[0], expected.probabilities, rtol=1e-4, atol=1e-6
    )


def test_the_folder_of_several_findings(small, tmp_path, monkeypatch):
    for name in ("to_onnx", "to_stablehlo"):
        monkeypatch.setattr(export_folder, name, lambda *args: b"program")
    monkeypatch.setattr(export_folder, "check", lambda *args: {"ONNX": 0.0})
    monkeypatch.setattr(export_folder.workdir, "read_config", lambda folder: {})
    point = OperatingPoint("intussusception", "sensitivity:0.95", 0.2, 0.95, 0.5, 20, 30)
    member = make_member(small, multi_label=True)
    trust = Trust(temperature=(2.0, 1.0, 0.5), points=(point,))
    member = dataclasses.replace(member, trust=trust, points=trust.points, folder=str(tmp_path))
    export_folder.write_export(str(tmp_path / "export"), member, page=False)
    model = json.loads((tmp_path / "export" / "model.json").read_text())
    assert model["multi_label"]
    assert model["temperature"] == [2.0, 1.0, 0.5]
    assert model["conformal"] is None
    assert model["thresholds"] == {"intussusception": 0.2}
    assert model["threshold_rule"] == "sensitivity:0.95"
    card = (tmp_path / "export" / "README.md").read_text()
    assert "Logits are divided by a temperature of each finding" in card
    assert "Findings have no prediction sets" in card


def test_onnx_and_stablehlo_agree_with_the_checkpoint(small):
    pytest.importorskip("jax2onnx")
    member = make_member(small, age_film=True)
    names = answer_function(member.spec, member.variables)[1]

    def function():
        return answer_function(member.spec, member.variables)[0]

    model = onnx.to_onnx(function(), names, SIZE)
    program = to_stablehlo(function(), SIZE)
    found = export_folder.check(function(), names, SIZE, model, program)
    assert {name.split()[0] for name in found} == {"ONNX", "StableHLO"}
    session = onnx.session(model)
    for n in (1, 5):
        expected = jax.jit(function())(images(n))
        for a, b in zip(session.run(list(names), {"image": images(n)}), expected, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def other(image):
        return tuple(2 * x for x in function()(image))

    with pytest.raises(UserError, match="differs from the checkpoint"):
        export_folder.check(other, names, SIZE, model, program)


def test_programs_take_any_number_of_images_where_sex_and_view_are_inputs(small):
    member = make_member(small, context=("sex", "view=AP"))
    assert "context_modulation" in member.variables["params"]
    function, _ = answer_function(member.spec, member.variables)
    program = jax.export.deserialize(bytearray(to_stablehlo(function, SIZE)))
    for n in (1, 3):  # Both are unknown.
        expected = jax.jit(function)(images(n))
        for a, b in zip(program.call(images(n)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_missing_converter_is_one_line(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match="pip install jax2onnx=="):
        onnx.to_onnx(lambda image: (image,), ["x"], SIZE)


def test_the_folder_is_complete_and_names_no_paths(exported, finetuned):
    wanted = ("model.onnx", "model.stablehlo", "encoder.safetensors", "model.json", "config.json")
    for name in (*wanted, "README.md", "use.py", "outliers.bin", "SHA256SUMS"):
        assert (exported / name).stat().st_size, name
    for line in (exported / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    for name in ("model.json", "config.json", "README.md"):
        assert str(finetuned.parent) not in (exported / name).read_text()


def test_the_card_has_the_metrics_of_the_run(exported, finetuned):
    text = (exported / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "apache-2.0"
    metrics = json.loads((finetuned / "metrics.json").read_text())
    listed = {m["type"]: m["value"] for m in card["model-index"][0]["results"][0]["metrics"]}
    assert listed["roc_auc"] == metrics["roc_auc"]
    assert f"| roc_auc | {metrics['roc_auc']:.3f} | {metrics['ci95']['roc_auc'][0]:.3f} to" in body
    assert "| 1-2 years | " in body
    assert "Not a medical device" in body


def test_model_json_is_what_the_page_reads(exported):
    model = json.loads((exported / "model.json").read_text())
    assert model["format"] == 1
    assert 0 < model["conformal"]["threshold"] <= 1
    assert model["age"]["interval_months"] > 0
    rows = np.fromfile(exported / "outliers.bin", "<f4").reshape(-1, model["outliers"]["cols"])
    assert len(rows) == model["outliers"]["rows"] + 1


def test_use_py_gives_what_the_api_gives(exported, finetuned, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), np.uint8)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, str(exported / "use.py"), str(tmp_path / "a.png")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = infantxray.load(finetuned).predict(tmp_path / "a.png")
    first = done.stdout.splitlines()[0]
    assert first == f"{found.probabilities.max():.3f} {found.predicted[0]}"
    assert f"age {found.age_months[0]:.1f} months" in done.stdout
    image = load_image(str(tmp_path / "a.png"), infantxray.load(finetuned).spec.preprocessing)
    assert image.shape == (SIZE, SIZE)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_use_py_reads_images_as_the_decoder_does(tmp_path, resize, trim):
    read_image = runpy.run_path(str(TEMPLATE))["read_image"]
    rng = np.random.default_rng(1)
    for width, height in ((300, 200), (200, 300), (211, 210), (64, 64), (20, 30), (3, 900)):
        pixels = rng.integers(30, 256, (height, width), np.uint8)
        pixels[:, : width // 5] = 4  # Margins of different widths.
        pixels[height - height // 4 :] = 250
        path = str(tmp_path / "a.png")
        Image.fromarray(pixels).save(path)
        how = Preprocessing(64, resize, trim)
        found, expected = read_image(path, how.to_dict()), load_image(path, how)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert np.abs(found.astype(int) - expected).max() <= 1, (width, height)


def test_use_py_turns_photographs_and_refuses_deep_pictures(tmp_path):
    read_image = runpy.run_path(str(TEMPLATE))["read_image"]
    path, how = str(tmp_path / "a.png"), Preprocessing(32)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by a quarter.
    image = Image.fromarray(np.arange(48, dtype=np.uint8).repeat(64).reshape(48, 64) * 5)
    image.save(path, exif=exif)
    np.testing.assert_allclose(read_image(path, how.to_dict()), load_image(path, how), atol=1)
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(path)
    with pytest.raises(SystemExit, match="more than 8 bits"):
        read_image(path, how.to_dict())


@pytest.mark.parametrize("name", ["model.json", "model.onnx"])
def test_use_py_notices_a_damaged_file(exported, tmp_path, name):
    shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((tmp_path / "copy" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "copy" / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "copy" / "use.py"), "a.png"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(str(tmp_path / "copy" / name) + " is damaged")
    assert len(done.stderr.splitlines()) == 1
