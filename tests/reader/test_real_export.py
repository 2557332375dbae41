"""The page with what the export command writes: its answers are those of Python."""

import numpy as np
import pytest
from PIL import Image
from quick_figures import quick_figures
from small_encoder import small_encoder

import infantxray
from configs import export as export_config
from configs import finetune as finetune_config
from data_pipeline.phantom import render
from data_pipeline.phantom.export import file_name, write_image
from infantxray.commands import export, finetune
from infantxray.export.onnx import session
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
    with small_encoder(), quick_figures():
        config = finetune_config.get_config()
        config.encoder, config.batch_size, config.train_steps = "small", 16, 20
        config.data.train = "phantom:infant:films=300"
        config.eval_every_steps = config.checkpoint_every_steps = 20
        config.bootstrap_samples = 10
        config.batch_norm_images = 0
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


def test_saliency_of_a_small_map_is_stitched_of_moved_images(runs, open_page, tmp_path):
    """The map of 64 px has 2 x 2 cells; that of the page has 6 x 6."""
    model = infantxray.load(runs / "run")
    Image.fromarray(render(ADDRESS, 256)).save(tmp_path / "a.png")
    found = open_page(runs / "export").read(tmp_path / "a.png")["saliency"]
    assert (found["height"], found["width"]) == (6, 6)
    maps = np.array(found["data"]).reshape(-1, 6, 6)

    network = session((runs / "export" / "model.onnx").read_bytes())
    square = model.read([tmp_path / "a.png"])[0]
    around = np.pad(square, 32, mode="edge")
    for i, down in enumerate((-11, 0, 11)):  # A third of a cell of 32 pixels.
        for j, right in enumerate((-11, 0, 11)):
            moved = around[32 + down : 96 + down, 32 + right : 96 + right]
            (expected,) = network.run(["saliency"], {"image": moved[None, ..., None]})
            np.testing.assert_allclose(maps[:, i::3, j::3], expected[0], atol=1e-3)
    assert np.ptp(maps) > 0.01
