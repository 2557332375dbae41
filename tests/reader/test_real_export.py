"""The page with what the export command writes: its answers are those of Python."""

import numpy as np
import pytest
from PIL import Image
from small_encoder import small_encoder

import infantxray
from configs import export as export_config
from configs import finetune as finetune_config
from data_pipeline.phantom import render
from data_pipeline.phantom.export import file_name, write_image
from infantxray.commands import export, finetune
from infantxray.export_assets import BUILD_COMMAND, reader_assets

pytestmark = pytest.mark.xdist_group("reader")

ADDRESS = "phantom:infant:seed=0:site=a:split=test:film=3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdir of a narrow ResNet, and its export."""
    pytest.importorskip("jax2onnx")
    pytest.importorskip("playwright.sync_api")
    if reader_assets() is None:
        pytest.skip(f"the page is not built: {BUILD_COMMAND}")
    folder = tmp_path_factory.mktemp("real")
    with small_encoder():
        config = finetune_config.get_config()
        config.encoder, config.batch_size, config.train_steps = "small", 16, 20
        config.data.train = "phantom:infant:films=300"
        config.eval_every_steps = config.checkpoint_every_steps = 20
        config.bootstrap_samples = 10
        finetune.run(config, str(folder / "run"))
        config = export_config.get_config()
        config.checkpoint = str(folder / "run")
        export.run(config, str(folder / "export"))
        yield folder


def test_the_page_gives_the_answers_of_python(runs, open_page, tmp_path):
    model = infantxray.load(runs / "run")
    write_image(tmp_path, ADDRESS, 300, "dicom", patient_id="1", age_months=9.0, sex="F")
    dicom = tmp_path / file_name(ADDRESS, "dicom")
    Image.fromarray(render(ADDRESS, 256)).save(tmp_path / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page = open_page(runs / "export")
    for path in (dicom, tmp_path / "a.png", tmp_path / "noise.png"):
        answer, expected = page.read(path), model.predict(path)
        assert answer["type"] == "reading"
        np.testing.assert_allclose(answer["probabilities"], expected.probabilities[0], atol=1e-3)
        assert answer["age_months"] == pytest.approx(expected.age_months[0], abs=1e-2)
        assert answer["distance"] == pytest.approx(expected.distance[0], rel=1e-3)
        assert answer["outlier"] == expected.unlike_training[0]
        assert set(answer["prediction_set"]) == set(expected.conditions[0])
    assert answer["outlier"]  # Noise.
    assert page.page.locator("#examples button").count() == 3
    answer = page.answer(lambda: page.page.locator("#examples button").first.click())
    assert answer["type"] == "reading"
    assert page.errors == []
    assert all(url.startswith((page.address, "blob:", "data:")) for url in page.requests)
