"""figures.py and page.py: what stands in `report.html`."""

import base64
import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import finetune
from infantxray.evaluation import metrics
from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.metrics import Predictions
from infantxray.evaluation.saliency import Example
from infantxray.reports import figures
from infantxray.reports import run_page as page

HOSTILE = '<script>alert("x")</script> & Söhne'
CLASSES = ("normal", "mass", HOSTILE)


def make_predictions(n=60, labelled=True, aged=True, classes=CLASSES):
    rng = np.random.default_rng(0)
    label = rng.integers(max(len(classes), 1), size=n) if labelled else np.full(n, -1)
    logits = rng.normal(size=(n, len(classes)))
    if labelled and classes:
        logits += 2 * np.eye(len(classes))[label]
    total = np.exp(logits).sum(1, keepdims=True)
    ages = rng.uniform(0, 36, n) if aged else np.full(n, np.nan)
    return Predictions(
        classes=classes,
        probabilities=(np.exp(logits) / np.where(total > 0, total, 1)).astype(np.float32),
        label=label,
        age_months=ages.astype(np.float32),
        age_predicted_months=(ages + rng.normal(size=n)).astype(np.float32),
        patient=(np.arange(n) // 2).astype(object),
    )


def summarise(predictions):
    result = metrics.summarise(predictions, bootstrap_samples=20)
    result["baseline"] = metrics.baseline(predictions, predictions.label, 6.0)
    if predictions.classes:
        result["calibration"] = calibration(predictions.probabilities, predictions.label)
    result |= {
        "baseline": {"majority_class": "mass", "accuracy": 0.4, "age_mae_months": 9.0},
        "sources": ["manifest:/b.csv"],
        "checkpoint_step": 5,
        "n_unreadable": 2,
        "n_without_patient_id": 7,
        "stage_one_known": True,
    }
    return metrics.to_json(result)


HISTORY = [
    {"step": 0, "probe/accuracy": 0.2},
    {"step": 20, "train/loss": 2.0, "train/cross_entropy": 1.5, "train/age_mse": 0.6},
    {"step": 40, "validation/loss": 1.2, "validation/f1": None, "validation/accuracy": 0.5},
]
EXAMPLE = Example(
    image=np.full((64, 64), 100, np.uint8),
    saliency=np.eye(64),
    truth="mass",
    predicted=HOSTILE,
    probability=0.75,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    predictions = make_predictions()
    summary = summarise(predictions)
    pictures = figures.draw_all(
        str(folder / "figures"), predictions, summary, HISTORY, [EXAMPLE] * 7
    )
    config = json.loads(finetune.get_config().to_json_best_effort())
    config["pretrained"] = "runs/<pre>"
    page.write(str(folder / "report.html"), config, summary, pictures)
    return (folder / "report.html").read_text(encoding="utf-8"), summary, pictures


def test_every_figure_is_a_picture_with_something_on_it(report):
    _, _, pictures = report
    assert list(pictures) == [
        "learning_curves", "confusion_matrix", "roc", "calibration", "age", "saliency",
    ]  # fmt: skip
    for name, path in pictures.items():
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 200, name
        assert picture.std() > 5, name


class _Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [
            value for name, value in attributes if name in ("src", "href", "srcset", "action")
        ]

    def handle_data(self, data):
        self.text.append(data)


def parse(text):
    parser = _Parser()
    parser.feed(text)
    return parser


def test_the_page_needs_nothing_else(report):
    text, _, pictures = report
    parser = parse(text)
    assert len(parser.links) == len(pictures)
    for link, path in zip(parser.links, pictures.values(), strict=True):
        kind, _, data = link.partition(",")
        assert kind == "data:image/png;base64"
        with open(path, "rb") as file:
            assert base64.b64decode(data) == file.read()
    assert not {"script", "link", "iframe", "object"} & set(parser.tags)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_header_counts_what_is_known(tmp_path):
    """Images without a condition or age stand in `n` and are scored by nothing."""
    predictions = make_predictions()
    label, age = predictions.label.copy(), predictions.age_months.copy()
    label[:50], age[:11] = -1, np.nan
    predictions = dataclasses.replace(predictions, label=label, age_months=age)
    summary = summarise(predictions) | {"stage_one_known": False}
    config = json.loads(finetune.get_config().to_json_best_effort())
    page.write(str(tmp_path / "report.html"), config, summary, {})
    shown = "".join(parse((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "60 test images" in shown
    assert "10 images with a known condition" in shown
    assert "49 images with a known age" in shown
    assert "neither stage" not in shown
    assert "cannot be checked" in shown


def test_pictures_of_stage_one_are_named_by_its_objective(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "panels.png")
    config = json.loads(finetune.get_config().to_json_best_effort())
    pictures = {"panels": str(tmp_path / "panels.png")}
    summary = summarise(make_predictions())
    page.write(str(tmp_path / "r.html"), config, summary, pictures, ("input", "first_view"))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Validation images; from above: input, first view." in text


def test_names_are_escaped(report):
    text, _, _ = report
    assert "<script" not in text
    assert "<pre>" not in text.replace("<pre>--config", "")
    assert HOSTILE in "".join(parse(text).text)
    assert "runs/<pre>" in "".join(parse(text).text)


def test_the_page_shows_the_numbers(report):
    text, summary, _ = report
    shown = "".join(parse(text).text)
    for name in metrics.HEADLINES:
        digits = 1 if name == "age_mae_months" else 3
        low, high = summary["ci95"][name]
        assert f"{summary[name]:.{digits}f}" in shown
        assert f"95 %: {low:.{digits}f} to {high:.{digits}f}" in shown
    for row in summary["per_class"].values():
        assert f"{row['recall']:.3f}" in shown
    for row in summary["age_bands"]:
        assert row["band"] in shown
    for blind in ("0.400", "0.500", "9.0"):
        assert f"blind guess: {blind}" in shown
    assert "60 test images" in shown
    assert "30 patients" in shown
    assert "2 unreadable files" in shown
    assert "7 images without a patient id count as a patient each" in shown
    assert "patients whom neither stage was trained on" in shown
    assert "data manifest:/b.csv" in shown  # That was scored, not that it was trained on.
    assert "--config.optimizer.learning_rate=0.001" in shown


@pytest.mark.parametrize(
    "case",
    [
        {"labelled": False},
        {"aged": False},
        {"classes": (), "labelled": False},
        {"labelled": False, "aged": False},
        {"n": 1},
    ],
)
def test_figures_that_are_missing_are_given_with_the_reason(tmp_path, case):
    predictions = make_predictions(**case)
    summary = summarise(predictions)
    pictures = figures.draw_all(str(tmp_path / "figures"), predictions, summary, [], [])
    config = json.loads(finetune.get_config().to_json_best_effort())
    page.write(str(tmp_path / "report.html"), config, summary, pictures)
    shown = "".join(parse((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    for name in metrics.HEADLINES:
        if summary[name] is None:
            assert summary["not_computed"][name] in shown
    assert "None" not in shown
    assert "nan" not in shown
    if not case.get("labelled", True):
        assert not {"roc", "confusion_matrix", "calibration"} & pictures.keys()
    assert ("age" in pictures) == case.get("aged", True)
