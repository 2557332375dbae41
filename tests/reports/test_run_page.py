"""The page of a run: what `report.html` shows."""

import base64
import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import finetune
from infantxray.evaluation import diagnostics
from infantxray.evaluation.calibration import calibration
from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.localisation import Example
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.operating_points import OperatingPoint
from infantxray.evaluation.predictions import Predictions
from infantxray.evaluation.summary import summarise as summarise_predictions
from infantxray.evaluation.summary import to_json
from infantxray.evaluation.temperature import scale
from infantxray.reports import page, plots, run_page, run_report, run_sections
from infantxray.reports.tables import Difference, Table
from infantxray.stage_two.trust import Trust

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
    result = summarise_predictions(predictions, bootstrap_samples=20)
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
    return to_json(result)


HISTORY = [
    {"step": 0, "probe/accuracy": 0.2},
    {"step": 20, "train/loss": 2.0, "train/cross_entropy": 1.5, "train/age_mse": 0.6},
    {"step": 40, "validation/loss": 1.2, "validation/f1": None, "validation/accuracy": 0.5},
]
EXAMPLE = Example(
    image=np.full((64, 64), 100, np.uint8),
    predicted_map=np.eye(64),
    true_map=np.eye(64)[::-1],
    boxes=[(3, 4, 20, 30)],
    truth="mass",
    predicted=HOSTILE,
    probability=0.75,
)


def settings(**changes):
    return json.loads(finetune.get_config().to_json_best_effort()) | changes


def write(folder, summary, figures=(), **changes):
    """The text of the page, with and without its markup."""
    run_page.write(
        folder / "report.html", settings=settings(**changes), summary=summary, figures=figures
    )
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, " ".join("".join(parse(text).text).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    predictions = make_predictions()
    summary = summarise(predictions)
    figures = run_page.draw(
        str(folder / "figures"), predictions, summary, HISTORY, [EXAMPLE] * 7, [EXAMPLE]
    )
    text, shown = write(folder, summary, figures, pretrained="runs/<pre>")
    return text, shown, summary, figures, folder


def test_every_figure_is_there_in_all_forms_with_something_on_it(report):
    *_, figures, folder = report
    names = [
        "learning_curves", "confusion_matrix", "roc", "calibration", "age", "saliency", "mistakes",
    ]  # fmt: skip
    assert [figure.light for figure in figures] == [
        str(folder / "figures" / f"{name}.svg") for name in names
    ]
    for name in names:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 400, name
        assert pixels.std() > 5, name
        for end in ("", "_dark"):
            svg = (folder / "figures" / f"{name}{end}.svg").read_text(encoding="utf-8")
            assert svg.count("<path") + svg.count("<image") > 3
    dark = (folder / "figures" / "roc_dark.svg").read_text(encoding="utf-8")
    assert "#16181b" in dark


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
    text, _, _, figures, _ = report
    links = [link for link in parse(text).links if not link.startswith("#")]
    assert len(links) == 2 * len(figures)
    for figure in figures:
        for path in (figure.light, figure.dark):
            with open(path, "rb") as file:
                data = base64.b64encode(file.read()).decode()
            assert f"data:image/svg+xml;base64,{data}" in links
    assert not {"script", "link", "iframe", "object"} & set(parse(text).tags)
    assert not re.search(r"https?://|@import|url\(", text)
    for what in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert what in text


def test_a_wide_figure_scrolls_on_a_phone_and_says_so(tmp_path):
    """Figures that are hardly wider than the phone shrink to its width."""
    hint = "Scroll the figure sideways"
    summary = summarise(make_predictions())
    for width, scrolls in (("470.4pt", False), ("526.8pt", True), ("630px", False)):
        path = tmp_path / "figure.svg"
        path.write_text(f'<svg height="900pt" viewBox="0 0 1 1" width="{width}"></svg>')
        text, shown = write(tmp_path, summary, [page.Figure("A", "b", str(path))])
        assert (hint in shown) == scrolls == ('class="drawing scrolls"' in text)
    Image.new("L", (900, 8)).save(tmp_path / "panels.png")
    assert (
        hint in write(tmp_path, summary, [page.Figure("A", "b", str(tmp_path / "panels.png"))])[1]
    )
    assert hint not in write(tmp_path, summary, [run_page.panels(str(tmp_path / "panels.png"))])[1]


def test_a_wide_table_says_so_whatever_the_number_of_its_columns():
    cell = "0.100 [0.030, 0.183]"
    few = Table("a", "A", "", ["Method", "In the box", "Share"], [["integrated", cell, cell]])
    assert few.scrolls
    assert not dataclasses.replace(few, rows=[["integrated gradients", "0.1", "0.2"]]).scrolls
    many = Table("b", "B", "", list("abcdefghijkl"), [["0.123"] * 12])
    assert many.scrolls
    assert not dataclasses.replace(many, rows=[["1"] * 12]).scrolls
    assert not Table("c", "C", "", ["a"], []).scrolls


def test_the_header_counts_what_is_known(tmp_path):
    """Images without a condition or age stand in `n` and are scored by nothing."""
    predictions = make_predictions()
    label, age = predictions.label.copy(), predictions.age_months.copy()
    label[:50], age[:11] = -1, np.nan
    predictions = dataclasses.replace(predictions, label=label, age_months=age)
    _, shown = write(tmp_path, summarise(predictions) | {"stage_one_known": False})
    assert "60 test images" in shown
    assert "10 images with a known condition" in shown
    assert "49 images with a known age" in shown
    assert "neither stage" not in shown
    assert "cannot be checked" in shown


def test_the_title_says_external(tmp_path):
    summary = summarise(make_predictions())
    assert "shufflenet on 60 test images" in write(tmp_path, summary)[1]
    external = write(tmp_path, summary | {"external": True})[1]
    assert "shufflenet on 60 external test images" in external
    assert "from another source than its training data" in external


def test_pictures_of_stage_one_are_named_by_its_objective(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "panels.png")
    figures = [run_page.panels(str(tmp_path / "panels.png"), ("input", "first_view"))]
    text, shown = write(tmp_path, summarise(make_predictions()), figures)
    assert "Validation images; from above: input, first view." in shown
    assert 'class="pixels"' in text


def test_names_are_escaped(report):
    text, shown, _, _, _ = report
    assert "<script" not in text
    assert "<pre>" not in text.replace("<pre>--config", "")
    assert HOSTILE in shown
    assert "runs/<pre>" in shown


def test_the_page_shows_the_numbers(report):
    _, shown, summary, _, _ = report
    for name in HEADLINES:
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
    assert "--config.optimizer.learning_rate=0.002" in shown


def test_the_summary_has_question_result_baselines_and_caveats(tmp_path):
    summary = summarise(make_predictions())
    summary["baseline"]["pixels"] = {"roc_auc": 0.7, "accuracy": 0.95, "age_mae_months": 3.0}
    summary["n_without_patient_id"] = 0
    asked, result, floor, doubt = run_page.summary_sentences(settings(), summary)
    assert asked == "Can shufflenet tell 3 conditions apart and predict the age on 30 new patients?"
    low, high = summary["ci95"]["roc_auc"]
    assert f"ROC AUC {summary['roc_auc']:.3f} (95 % interval {low:.3f} to {high:.3f})" in result
    assert "months" in result
    for part in ("ROC AUC 0.500 for a blind guess and 0.700 for ridge on pixels", "9.0 months for"):
        assert part in floor
    assert "the accuracy is no better than ridge on pixels" in doubt
    _, shown = write(tmp_path, summary)
    assert "ridge on pixels: 0.950" in shown
    assert doubt in shown
    worse = summary | {"age_mae_months": 9.5}
    assert (
        "the age head is no better than the mean age"
        in run_page.summary_sentences(settings(), worse)[3]
    )
    close = summary | {"ci95": summary["ci95"] | {"age_mae_months": [0.1, 9.2]}}
    assert (
        "the age head is not clearly better than the mean age"
        in run_page.summary_sentences(settings(), close)[3]
    )


AFTER = {"expected_calibration_error": 0.03, "thresholds": {"youden": {"mass": 0.879}}}


def test_the_probabilities_of_the_report_are_told_from_calibrated_ones():
    """`predict`, the API and exports give others, with thresholds of their own."""
    predictions = make_predictions()
    points = [OperatingPoint(n, "youden", 0.629, 0.9, 0.9, 10, 20) for n in ("normal", "mass")]
    summary = summarise(predictions)
    summary["operating_points"] = to_json(diagnostics.at_points(predictions, points))
    (table,) = run_sections.tables(summary)["operating_points"]
    assert "hold for the probabilities of predictions.csv." in table.caption
    assert "Calibrated threshold" not in table.header
    summary["after_scaling"] = AFTER
    (table,) = run_sections.tables(summary)["operating_points"]
    assert table.header[2:4] == ["Threshold", "Calibrated threshold"]
    assert [row[2:4] for row in table.rows] == [["0.629", "–"], ["0.629", "0.879"]]
    assert "trust.json" in table.caption


def test_calibration_says_whether_it_is_before_or_after_scaling():
    summary = summarise(make_predictions())
    summary["calibration"]["expected_calibration_error"] = 0.16
    (caveat,) = [s for s in run_page.summary_sentences(settings(), summary) if "off by" in s]
    assert "off by 16% on average without temperature scaling" in caveat
    assert "without temperature scaling" in run_sections.scaling(summary)
    summary["after_scaling"] = AFTER
    (caveat,) = [s for s in run_page.summary_sentences(settings(), summary) if "off by" in s]
    assert "off by 16% on average before temperature scaling and by 3% after it" in caveat
    found = run_sections.scaling(summary)
    assert "0.160 before scaling and 0.030 after it" in found
    (group,) = [
        g
        for g in run_sections.groups(
            {"calibration": [run_page._class_table(summary)]}, {}, scaling=found
        )
        if g.title == "Calibration of probabilities"
    ]
    assert found in group.text
    # Scaling that makes them worse is a caveat too.
    summary["calibration"]["expected_calibration_error"] = 0.04
    summary["after_scaling"] = AFTER | {"expected_calibration_error": 0.2}
    assert "by 20% after it" in run_page.summary_sentences(settings(), summary)[3]


def test_error_and_thresholds_after_scaling_are_those_of_the_stored_temperature():
    predictions = make_predictions()
    points = (OperatingPoint("mass", "youden", 0.879, 0.9, 0.9, 10, 20),)
    found = run_report._after_scaling(predictions, Trust(temperature=2.0, points=points))
    scaled = scale(predictions.probabilities, 2.0)
    expected = calibration(scaled, predictions.label)["expected_calibration_error"]
    assert found["expected_calibration_error"] == pytest.approx(expected, abs=1e-6)
    assert found["thresholds"] == {"youden": {"mass": 0.879}}
    assert run_report._after_scaling(predictions, None) is None
    assert run_report._after_scaling(predictions, Trust()) is None


def test_saliency_scores_are_shown_with_their_intervals(tmp_path):
    scores = {"pointing_game": 0.4, "mass_in_box": 0.25,
              "ci95": {"pointing_game": [0.3, 0.5], "mass_in_box": [0.2, 0.3]}}  # fmt: skip
    saliency = {
        "n": 80, "n_patients": 41, "level": 1, "box_share": 0.1, **scores,
        "integrated_gradients": scores, "randomisation": {"heads": 0.2, "all": None},
    }  # fmt: skip
    _, shown = write(tmp_path, summarise(make_predictions()) | {"saliency": saliency})
    assert "80 test images of 41 patients" in shown
    assert "pyramid level 1 (stride 8)" in shown
    assert "0.400 [0.300, 0.500]" in shown
    assert "with random parameters throughout –" in shown


@pytest.mark.parametrize(
    "classes",
    [("0", "1", "2"), ("$a$", "$b", "c_{d}"), ("정상", "폐렴", "\U0001f916"), ("a\nb", " ", "-")],
)
def test_any_class_name_can_be_drawn(tmp_path, classes):
    """As itself, or as a number with a legend where no font has its letters; never as a box."""
    predictions = make_predictions(classes=classes)
    summary = summarise(predictions)
    example = dataclasses.replace(EXAMPLE, truth=classes[0], predicted=classes[2])
    figures = run_page.draw(str(tmp_path / "figures"), predictions, summary, [], [example])
    text, _ = write(tmp_path, summary, figures)
    legend = dict(figures[0].legend)
    drawn = (tmp_path / "figures" / "confusion_matrix.svg").read_text(encoding="utf-8")
    for k, name in enumerate(classes, start=1):
        if plots.fonts_for(name) is None:
            assert legend[f"#{k}"] == name
            assert f"#{k} = {name}" in text
            assert f"#{k}" in drawn
        elif name.isalnum() and name.isascii():
            assert f">{name}</text>" in drawn


def test_a_letter_that_no_font_has_is_numbered(monkeypatch):
    monkeypatch.setattr(plots.font_manager.fontManager, "ttflist", [])
    plots.fonts_for.cache_clear()
    assert plots.class_labels(("normal", "정상")) == (("normal", "#2"), [("#2", "정상")])
    plots.fonts_for.cache_clear()


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
def test_metrics_that_are_missing_are_given_with_the_reason(tmp_path, case):
    predictions = make_predictions(**case)
    summary = summarise(predictions)
    figures = run_page.draw(str(tmp_path / "figures"), predictions, summary, [])
    _, shown = write(tmp_path, summary, figures)
    for name in HEADLINES:
        if summary[name] is None:
            assert summary["not_computed"][name] in shown
    assert "None" not in shown
    assert "nan" not in shown
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    if not case.get("labelled", True):
        assert not {"roc", "confusion_matrix", "calibration"} & drawn
    assert ("age" in drawn) == case.get("aged", True)


def test_numbers_and_plurals():
    assert page.plural(1, "image") == "1 image"
    assert page.plural(2000, "image") == "2,000 images"
    assert page.number(2050.4, "age_mae_months") == "2050.4"
    assert page.number(-0.0312, "roc_auc", sign=True) == "−0.031"
    assert page.number(None) == page.number(float("nan")) == "–"
    assert page.listed(["a", "b", "c"]) == "a, b and c"


def test_a_note_is_told_once_with_the_names_that_it_is_about():
    def noted(*notes):
        return {str(i): {"note": note} for i, note in enumerate(notes)} | {"n": 3, "9": {}}

    few = "{} patients: too few"
    rows = [
        ("a", noted(few.format(12), "at 95 %")),
        ("a", noted(few.format(9))),
        ("b", noted("", few.format(11))),
        ("c", noted(few.format(9) + "; at 95 %")),
    ]
    assert run_sections.notes(rows) == (
        "9 to 12 patients: too few (all conditions). At 95 % (all conditions but b)."
    )
    assert run_sections.notes(rows, ("1",)) == "At 95 % (a). 11 patients: too few (b)."
    assert run_sections.notes([("a", noted("why"))]) == "Why (a)."


def test_the_note_of_a_mean_over_conditions_is_not_about_the_group():
    """A group of 156 patients has 12 with its rarest condition."""

    def row(count, known="3 of 11"):
        few = f"{count} patients{{}}: too short (in {known} classes)"
        return {"recall": {"note": few.format("")},
                "roc_auc": {"note": few.format(" of the rarer outcome")}}  # fmt: skip

    assert run_sections.notes([("F", row(12)), ("M", row(10))], of="groups") == (
        "In some conditions only 10 to 12 patients: too short (all groups)."
    )
    assert run_sections.notes([("F", row(1)), ("M", {})], of="groups") == (
        "In some conditions only 1 patient: too short (F)."
    )


def test_the_result_is_one_line(tmp_path):
    summary = summarise(make_predictions())
    summary["baseline"]["pixels"] = {"roc_auc": 0.7, "accuracy": 0.95, "age_mae_months": 3.0}
    summary["stage_one"] = {"pretrained": "runs/pretrain", "objective": "l1"}
    line = run_page.result_line(summary)
    assert f"accuracy {summary['accuracy']:.3f} (blind guess 0.400, ridge on pixels 0.950)" in line
    assert line.endswith("months (blind guess 9.0, ridge on pixels 3.0)")
    assert "\n" not in line
    nothing = dict.fromkeys(HEADLINES)
    assert run_page.result_line(nothing) == "nothing to score"


def test_marks_of_a_table_are_the_same_in_every_form(tmp_path):
    def cell(p):
        return Difference(Estimate(0.1, 0.02, 0.05, 0.15, p), p)

    rows = [["a − b", cell(0.049)], ["a − c", cell(0.051)], ["a − d", cell(float("nan"))]]
    table = Table("t", "T", "Bold: p < .05.", ["Difference", "Accuracy"], rows)
    assert [cells["cells"][1]["bold"] for cells in table.markup()] == [True, False, False]
    assert re.findall(r"\*\*(.*?)\*\*", table.markdown())[1:] == [table.plain(rows[0])[1]]
    assert re.findall(r"& (.*) \\\\", table.latex())[1:] == [
        "\\textbf{+0.100 [+0.050, +0.150] p = 0.049}",
        "+0.100 [+0.050, +0.150] p = 0.051",
        "+0.100 [+0.050, +0.150] –".replace("–", "--"),
    ]
