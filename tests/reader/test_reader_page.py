"""The page in a browser: what it shows, how it is operated, and that it asks nothing of others."""

import json
import shutil

import numpy as np
import pytest
from export_folder import CLASSES, PREPROCESSING, network, write_export
from test_reader_decode import ADDRESS, dicom, picture, pixels

from data_pipeline.phantom.rendering import render_raw
from infantxray import export_assets
from infantxray.evaluation.conformal import ConformalSets, predict_sets

pytestmark = pytest.mark.xdist_group("reader")

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}  # As `render` shows it.


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.dcm"
    whole = render_raw(ADDRESS, 200).astype(np.uint16)
    path.write_bytes(dicom(whole, **WINDOW, PatientID="4711", PatientBirthDate="20200115"))
    return path


@pytest.fixture
def opened(tmp_path, open_page, image):
    """The page with a reading, and the answer."""
    page = open_page(write_export(tmp_path / "export"))
    answer = page.read(image)
    yield page, answer
    assert page.errors == []


def shown_pixels(page):
    """Red, green and blue at points of the middle of the canvas, after two frames."""
    values = page.page.evaluate(
        """() => new Promise((resolve) => {
            const read = () => {
                const canvas = document.querySelector("#canvas");
                const { width: w, height: h } = canvas;
                const image = canvas.getContext("2d").getImageData(w / 4, h / 4, w / 2, h / 2);
                const pixels = Array.from(new Uint32Array(image.data.buffer));
                resolve(pixels.filter((_, i) => i % 37 == 0));
            };
            requestAnimationFrame(() => requestAnimationFrame(read));
        })"""
    )
    return np.array(values, "<u4").view(np.uint8).reshape(-1, 4)[:, :3].astype(float)


def changed(page, before):
    """Whether the canvas comes to differ: wheel events arrive late on a busy machine."""
    return any(np.abs(shown_pixels(page) - before).mean() > 1 for _ in range(50))


def test_assets_are_found_where_they_were_built(tmp_path, monkeypatch):
    monkeypatch.setattr(export_assets, "__file__", str(tmp_path / "__init__.py"))
    assert export_assets.reader_assets() is None
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "reader.html").touch()
    assert export_assets.reader_assets() == tmp_path / "built"


def test_conditions_are_bars_with_the_prediction_set(opened):
    page, answer = opened
    names = page.page.eval_on_selector_all(".bar", "rows => rows.map(row => row.dataset.condition)")
    order = np.argsort(answer["probabilities"])[::-1]
    assert names == [CLASSES[i] for i in order]
    in_set = page.page.eval_on_selector_all(
        ".in-set .bar", "rows => rows.map(row => row.dataset.condition)"
    )
    assert in_set == [CLASSES[i] for i in order if 1 - answer["probabilities"][i] <= 0.8]
    assert in_set == answer["prediction_set"]
    assert 0 < len(in_set) < len(CLASSES)
    assert page.page.inner_text(".in-set .group-label") == "90 % prediction set"
    widths = page.page.eval_on_selector_all(".fill", "all => all.map(one => one.style.width)")
    shares = [float(width.rstrip("%")) / 100 for width in widths]
    np.testing.assert_allclose(shares, np.sort(answer["probabilities"])[::-1], atol=1e-4)


def test_the_most_probable_condition_is_always_in_the_set(tmp_path, open_page, image):
    conformal = {"coverage": 0.8, "threshold": 0.0, "method": "lac"}
    page = open_page(write_export(tmp_path / "export", conformal=conformal))
    answer = page.read(image)
    probabilities = np.array([answer["probabilities"]])
    sets = ConformalSets("lac", 0.8, (0.0,) * len(CLASSES), by_class=False)
    inside = np.flatnonzero(predict_sets(sets, probabilities)[0])
    assert answer["prediction_set"] == [CLASSES[k] for k in inside]
    assert len(inside) == 1
    assert page.page.locator(".in-set .bar").count() == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("youden", "the rule youden: the largest sum of sensitivity and specificity on validation"),
        (
            "sensitivity:0.95",
            "the rule sensitivity:0.95: a sensitivity of 95 % on validation images",
        ),
        (None, "Threshold, chosen on validation images"),
    ],
)
def test_thresholds_have_a_legend_and_a_text(tmp_path, open_page, image, rule, words):
    """A mark without a name means nothing, and a title is for a mouse alone."""
    page = open_page(write_export(tmp_path / "export", threshold_rule=rule, temperature=1.5))
    page.read(image)
    assert words in page.page.inner_text(".tick-legend")
    labels = page.page.eval_on_selector_all(
        ".bar input", "all => all.map(one => one.getAttribute('aria-label'))"
    )
    told = [label for label in labels if "the threshold of 50.0 %" in label]
    assert len(told) == 1
    assert told[0].startswith("normal, ")
    assert "before calibration" in page.page.text_content("#about-list")


def test_several_findings_are_named(tmp_path, open_page, image):
    page = open_page(write_export(tmp_path / "export", multi_label=True, conformal=None))
    answer = page.read(image)
    likely = [c for c, p in zip(CLASSES, answer["probabilities"], strict=True) if p >= 0.5]
    status = page.page.inner_text("#status")
    assert status.startswith("Most likely: " + likely[0] if likely else "No finding is likely")
    assert page.page.inner_text("#conditions legend").startswith("Findings")
    assert answer["prediction_set"] == []


def test_a_model_may_predict_ages_alone(tmp_path, open_page, image):
    folder = write_export(tmp_path / "export", classes=[], conformal=None, thresholds=None)
    (folder / "model.onnx").write_bytes(network(PREPROCESSING["image_size"], conditions=False))
    page = open_page(folder)
    answer = page.read(image)
    assert answer["probabilities"] == []
    assert answer["age_months"] > 0
    assert page.page.inner_text("#status").startswith("Age ")
    assert "ages alone" in page.page.inner_text("#model-line")
    assert page.page.locator("#conditions").is_hidden()
    assert page.errors == []


def test_age_has_its_interval_on_the_growth_scale(opened):
    page, answer = opened
    age = answer["age_months"]
    box = page.page.locator("#age-scale svg .interval").bounding_box()
    point = page.page.locator("#age-scale svg .point").bounding_box()
    assert box["x"] < point["x"] < box["x"] + box["width"]
    assert page.page.inner_text("#age-interval").startswith("90 % interval: ")
    label = page.page.get_attribute("#age-scale svg", "aria-label")
    assert label.startswith("Growth scale: ")
    assert age < 36 or "Outside the ages of training" in page.page.inner_text("#age-interval")


def test_age_outside_training_is_said(tmp_path, open_page, image):
    age = {"interval_months": None, "range_months": [0, 0.5]}
    page = open_page(write_export(tmp_path / "export", age=age))
    page.read(image)
    assert page.page.inner_text("#age-interval") == "Outside the ages of training."


def test_a_model_may_lack_everything_but_probabilities(tmp_path, open_page, image):
    page = open_page(
        write_export(
            tmp_path / "export",
            age=None,
            conformal=None,
            outliers=None,
            thresholds=None,
            metrics=None,
        )
    )
    answer = page.read(image)
    assert answer["age_months"] is None
    assert answer["distance"] is None
    assert not page.page.is_visible("#age")
    assert page.page.locator(".in-set").count() == 0
    assert page.page.locator(".tick-legend").count() == 0


def test_an_outlier_is_flagged(tmp_path, opened):
    page, answer = opened
    assert not answer["outlier"]
    assert not page.page.is_visible("#outlier")
    noise = np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)
    path = tmp_path / "noise.png"
    path.write_bytes(picture(noise, "PNG"))
    answer = page.read(path)
    assert answer["outlier"]
    assert answer["distance"] > 12
    assert "does not look like the training data" in page.page.inner_text("#outlier")


def test_distance_is_pythons(tmp_path, opened):
    _, answer = opened
    rows = np.fromfile(tmp_path / "export" / "outliers.bin", "<f4").reshape(-1, 64 * 64)
    distance = np.linalg.norm(rows[1:] @ (np.array(answer["features"]) - rows[0]))
    assert answer["distance"] == pytest.approx(distance, rel=1e-3)


def test_window_zoom_and_reset(opened):
    page, _ = opened
    stage = page.page.locator("#stage")
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = shown_pixels(page)
    assert page.page.input_value("#window") == "4095"
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    page.page.mouse.move(x - 60, y + 30)
    page.page.mouse.up()
    assert float(page.page.input_value("#window")) < 4095
    assert float(page.page.input_value("#level")) > 2048
    assert np.abs(shown_pixels(page) - before).mean() > 3
    stage.press("0")
    assert page.page.input_value("#window") == "4095"
    np.testing.assert_array_equal(shown_pixels(page), before)
    for action in (
        lambda: stage.press("+"),
        lambda: (page.page.mouse.move(x, y), page.page.mouse.wheel(0, -200)),
        lambda: page.page.click("#invert"),
        lambda: page.page.fill("#level", "900"),
    ):
        action()
        assert changed(page, before)
        page.page.click("#reset")
        np.testing.assert_array_equal(shown_pixels(page), before)


def test_pan_moves_the_zoomed_image(opened):
    page, _ = opened
    stage = page.page.locator("#stage")
    stage.press("+")
    before = shown_pixels(page)
    stage.press("ArrowRight")
    assert np.abs(shown_pixels(page) - before).mean() > 1
    page.page.click("#pan")
    assert page.page.get_attribute("#pan", "aria-pressed") == "true"
    window = page.page.input_value("#window")
    box = stage.bounding_box()
    page.page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 180, box["y"] + 160)
    page.page.mouse.up()
    assert page.page.input_value("#window") == window
    assert np.abs(shown_pixels(page) - before).mean() > 1


def test_saliency_slider(opened):
    page, _ = opened
    grey = shown_pixels(page)
    assert np.ptp(grey, axis=1).max() == 0  # Red, green and blue are equal.
    page.page.fill("#opacity", "80")
    heat = shown_pixels(page)
    assert np.ptp(heat, axis=1).max() > 20
    assert page.page.inner_text("#opacity-value") == "80 %"
    page.page.locator(".bar input").nth(3).check()
    assert np.abs(shown_pixels(page) - heat).max() > 5  # Another condition, another map.
    page.page.fill("#opacity", "0")
    np.testing.assert_array_equal(shown_pixels(page), grey)


def test_examples_are_one_click_away(tmp_path, open_page):
    folder = write_export(
        tmp_path / "export",
        examples=[
            "examples/0.dcm",
            {"file": "examples/1.png", "title": "Chest"},
            "examples/no.dcm",
        ],
    )
    (folder / "examples").mkdir()
    (folder / "examples/0.dcm").write_bytes(dicom(pixels(), **WINDOW))
    (folder / "examples/1.png").write_bytes(picture((pixels() >> 4).astype(np.uint8), "PNG"))
    page = open_page(folder)
    buttons = page.page.locator("#examples button")
    assert buttons.all_inner_texts() == ["Example 1", "Chest", "Example 3"]
    for i in range(2):
        assert page.answer(buttons.nth(i).click)["type"] == "reading"
    buttons.nth(2).click()
    page.page.wait_for_selector("#problem:not([hidden])")
    assert "examples/no.dcm is missing" in page.page.inner_text("#problem")


def test_a_dropped_file_is_read(opened, image):
    page, first = opened
    content = list(image.read_bytes())

    def drop():
        page.page.evaluate(
            """(bytes) => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(bytes)], "a.dcm"));
                document.querySelector("#stage").dispatchEvent(
                  new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
            }""",
            content,
        )

    assert page.answer(drop)["probabilities"] == first["probabilities"]


def test_no_outside_request_and_no_name(opened):
    page, _ = opened
    assert len(page.requests) > 5
    outside = [url for url in page.requests if not url.startswith((page.address, "data:", "blob:"))]
    assert outside == []
    text = page.page.inner_text("body")
    for secret in ("Geheim", "Patient", "4711", "2020", "image.dcm"):
        assert secret not in text
    assert page.page.is_visible("text=Not a medical device.")


def test_the_image_is_read_with_the_network_off(tmp_path, open_page, image):
    page = open_page(write_export(tmp_path / "export"))
    page.page.context.set_offline(True)
    assert page.read(image)["type"] == "reading"


def test_keyboard_and_screen_reader(opened):
    page, answer = opened
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll("button, input, output, [role=img], [tabindex]")]
            .filter((node) => node.checkVisibility()
              && !(node.getAttribute("aria-label") || node.innerText || node.labels?.length))
            .map((node) => node.outerHTML)"""
    )
    assert unnamed == []
    assert page.page.get_attribute("#status", "aria-live") == "polite"
    best = CLASSES[int(np.argmax(answer["probabilities"]))].replace("_", " ")
    assert page.page.text_content("#status").startswith(f"Most likely: {best}")
    page.page.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.page.keyboard.press("Tab")
        reached.add(
            page.page.evaluate("() => document.activeElement.id || document.activeElement.name")
        )
    assert {"stage", "level", "window", "pan", "invert", "reset", "opacity", "file"} <= reached
    assert "condition" in reached


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(tmp_path, open_page, image, width):
    viewport = {"width": width, "height": 800}
    page = open_page(write_export(tmp_path / "export"), viewport=viewport)
    page.read(image)
    assert page.page.evaluate("() => document.documentElement.scrollWidth") <= width
    notice = page.page.locator(".research-only")
    page.page.mouse.wheel(0, 3000)
    page.page.wait_for_timeout(200)
    assert notice.bounding_box()["y"] >= 0  # It stays in view.


def test_dark_where_the_system_is(tmp_path, open_page):
    folder = write_export(tmp_path / "export")
    lightness = [
        page.page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        for scheme in ("light", "dark")
        for page in [open_page(folder, color_scheme=scheme)]
    ]
    assert int(lightness[0]) > 200 > 60 > int(lightness[1])


def test_opened_as_a_file_it_says_what_to_run(tmp_path, browser):
    folder = write_export(tmp_path / "export")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"file://{folder}/reader.html")
    page.wait_for_timeout(1500)
    assert page.is_visible("text=python -m http.server 8000")
    context.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.json").unlink(), "model.json cannot be loaded"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx cannot be loaded"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no"), "model.onnx does not run"),
        (lambda folder: (folder / "outliers.bin").write_bytes(b"1234"), "outliers.bin has 4 bytes"),
        (lambda folder: _change(folder, format=2), "this page reads format 1"),
        (lambda folder: _change(folder, classes=["a", "b"]), "5 probabilities for 2 classes"),
        (
            lambda folder: _change(folder, preprocessing={**PREPROCESSING, "decoder_version": 99}),
            "decoder version 99",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_export_gets_its_sentence(tmp_path, browser, serve, damage, words):
    folder = write_export(tmp_path / "export")
    damage(folder)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{serve(folder)}/reader.html")
    page.wait_for_selector("#problem:not([hidden])", timeout=30_000)
    assert words in page.inner_text("#problem")
    context.close()


def _change(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_needs_no_server_of_ours(tmp_path, open_page, image):
    """In a folder below the root, as a static host serves it."""
    folder = write_export(tmp_path / "site" / "models" / "first")
    shutil.copy(image, folder / "image.dcm")
    page = open_page(folder.parent.parent, path="/models/first")
    assert page.read(image)["type"] == "reading"
