"""The page of `predict`: what each image shows."""

import html
import re

import numpy as np

from infantxray.reports.predictions_page import Card, write_predictions_page

NAMES = tuple("abcdefghijk")


def answer(in_set, **changes):
    p = np.linspace(0.2, 0.01, len(NAMES))
    return {
        "image_path": "1.png",
        "predicted": "a",
        "probabilities": dict(zip(NAMES, p.tolist(), strict=True)),
        "conditions": list(in_set),
        "age_predicted_months": 10.0,
        "age_low_months": 1.0,
        "age_high_months": 19.0,
    } | changes


def text(folder, *answers, coverage=0.9):
    cards = [Card(np.zeros((8, 8), np.uint8), None, each) for each in answers]
    write_predictions_page(folder / "page.html", cards, total=len(cards), coverage=coverage)
    page = (folder / "page.html").read_text(encoding="utf-8")
    body = re.sub(r"<[^>]*>", " ", page[page.index("<h1>") :])
    return " ".join(html.unescape(body).split())


def test_the_whole_prediction_set_is_shown(tmp_path):
    card = Card(np.zeros((8, 8), np.uint8), None, answer(NAMES[:8]))
    assert [name for name, _ in card.top] == list(NAMES[:8])
    # Of an ensemble, the union of the sets need not be the most probable conditions.
    card = Card(np.zeros((8, 8), np.uint8), None, answer("ak"))
    assert [name for name, _ in card.top] == ["a", "b", "c", "d", "k"]
    shown = text(tmp_path, answer(NAMES[:8]))
    assert len(re.findall(r"0\.\d{3} \w ●", shown)) == 8
    assert "and 3 more" in shown


def test_all_findings_of_an_image_are_shown(tmp_path):
    several = answer((), predicted="a|b|c|d|e|f", age_low_months=None)
    shown = text(tmp_path, several, coverage=0.0)
    assert "f and 5 more" in shown
    assert "●" not in shown


def test_the_legend_speaks_of_what_is_there(tmp_path):
    findings = answer((), predicted="a|b", unknown=list(NAMES), age_low_months=None)
    heat = np.zeros((8, 8), np.float32)
    cards = [Card(np.zeros((8, 8), np.uint8), heat, findings)]
    write_predictions_page(tmp_path / "page.html", cards, total=1)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Red marks what speaks for the most probable finding." in page
    assert "● marks the findings with a probability of at least 0.5." in page
    assert page.count("●") == 3
    assert "condition" not in page.split("<h1>")[1]
    assert "Red marks" not in text(tmp_path, answer((), predicted="", probabilities={}))


def test_the_legend_has_the_coverage_above_the_images(tmp_path):
    shown = text(tmp_path, answer("ab"))
    legend = (
        "● marks the prediction set, which contains the true condition in 90 % of images like "
        "those of training. The limits of the age contain the true age in 90 % of images like"
    )
    assert legend in shown
    assert shown.index(legend) < shown.index("1.png")
    shown = text(tmp_path, answer((), conditions=[]), coverage=0.8)
    assert "The limits of the age contain the true age in 80 % of images" in shown
    assert "of images" not in text(tmp_path, answer((), age_low_months=None))
    assert "unlike the training images" in text(
        tmp_path, answer("a", note="unlike the training images")
    )
