"""Checklists: what a run answers, and the author's form."""

import json

import pytest

from configs import finetune
from data_pipeline.errors import UserError
from infantxray.reports import checklist
from infantxray.reports.page import Figure

SUMMARY = {
    "n": 60, "n_patients": 30, "n_with_condition": 50, "n_with_age": 60, "n_unreadable": 2,
    "per_class": {"mass": {"n": 20}, "normal": {"n": 30}}, "age_mae_months": 4.0,
    "checkpoint_step": 100, "sources": ["manifest:/b.csv"], "external": False,
    "partitions": {"train": 200, "validation": 50, "test": 60},
    "findings": {"mass": {}}, "operating_points": [{"rule": "youden"}],
    "subgroups": {"sex": {}},
}  # fmt: skip
SHORT = ["Can it?", "Result: it can.", "Baselines: a guess.", "Caveats: many."]
FIGURES = [
    Figure(title, "", "x.svg")
    for title in ("Learning curves", "Where the answer comes from", "Worst mistakes")
]


def facts(**changes):
    settings = json.loads(finetune.get_config().to_json_best_effort())
    summary = SUMMARY | changes
    return checklist.facts(settings, summary, SHORT, FIGURES, num_parameters=1234)


def filled(author=(), **changes):
    return {c.name: c for c in checklist.fill(facts(**changes), dict(author))}


def test_a_run_answers_at_least_twenty_items_of_claim():
    claim = filled()["CLAIM 2024"]
    assert len(claim.items) == 44
    assert [item.number for item in claim.items] == [str(n) for n in range(1, 45)]
    assert claim.counts == {"run": 24, "author": 0, "open": 20}
    for item in claim.items:
        assert (item.source == "run") == (bool(item.answers) and not item.topic)
    fewer = filled(subgroups={}, operating_points=[])["CLAIM 2024"].counts["run"]
    assert 20 <= fewer < 24


def test_every_fact_that_an_item_asks_for_is_known_to_some_run():
    acquired = {"year": ["2019", "2014"], "manufacturer": ["Maker"], "kvp": ["60-69 kV"]}
    dicom = facts(external=True, acquisition=acquired)
    assert "2014 to 2019" in dicom["dates"].text
    known = facts().keys() | dicom.keys()
    for name in ("claim", "stard_ai", "tripod_ai"):
        for row in checklist.read(name)["items"]:
            assert set(row.get("answers", ())) <= known, row
            assert row.get("answers") or row.get("author"), row


@pytest.mark.parametrize(("name", "count"), [("claim", 44), ("stard_ai", 40), ("tripod_ai", 27)])
def test_items_have_the_numbers_of_the_published_sheets(name, count):
    numbers = [row["number"] for row in checklist.read(name)["items"]]
    assert list(dict.fromkeys(int(n.rstrip("abcdefg")) for n in numbers)) == [*range(1, count + 1)]
    assert len(set(numbers)) == len(numbers)


def test_the_form_asks_what_the_run_cannot_know_and_is_merged(tmp_path):
    checklist.write_form(str(tmp_path))
    form = (tmp_path / "author.yaml").read_text(encoding="utf-8")
    assert "# CLAIM 2024 44: " in form
    assert checklist.read_form([str(tmp_path)]) == {}
    form = form.replace('funding: ""', "funding: none")
    (tmp_path / "author.yaml").write_text(form, encoding="utf-8")
    checklist.write_form(str(tmp_path))  # Never overwrites.
    author = checklist.read_form([str(tmp_path), str(tmp_path / "nowhere")])
    assert author == {"funding": "none"}
    answers = [
        item.answers[-1].text
        for found in filled(author).values()
        for item in found.items
        if item.topic == "funding"
    ]
    assert answers == ["none"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- a", "one topic a line"), ("fundng: x", "'fundng'")],
)
def test_a_form_that_cannot_be_meant_is_refused(tmp_path, text, message):
    (tmp_path / "author.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        checklist.read_form([str(tmp_path)])


def test_the_inputs_and_the_task_are_those_of_the_run():
    known = facts()
    assert known["predictors"].text.startswith("The pixels of one image; no other")
    assert "stratified by condition" in known["partitions"].text
    assert "loss: cross-entropy plus 0.8 times the age loss" in known["training"].text
    settings = json.loads(finetune.get_config().to_json_best_effort())
    ages = SUMMARY | {"per_class": {}, "n_with_condition": 0, "findings": {}}
    settings["condition_on"] = "sex, view"
    known = checklist.facts(settings, ages, SHORT, [], num_parameters=1)
    assert known["predictors"].text.startswith("The pixels of one image, and sex and view")
    assert "image, sex and view alone" in known["index_blinding"].text
    assert "loss: the age loss;" in known["training"].text
    assert known["metrics"].text == "Mean absolute age error."
    told = " ".join(fact.text for fact in known.values())
    for absent in ("macro", "ROC AUC", "stratified", "Conditions: .", "cross-entropy"):
        assert absent not in told
    settings["labels"] = "multi"
    known = checklist.facts(settings, SUMMARY, SHORT, [], num_parameters=1)
    assert "stratified by the rarest finding" in known["partitions"].text
    assert "binary cross-entropy" in known["training"].text
    assert "See the confusion matrix" not in known["confusion"].text


def test_external_tests_are_not_called_internal():
    items = {item.number: item for item in filled(external=True)["CLAIM 2024"].items}
    assert items["32"].source == ""
    assert "manifest:/b.csv" in items["33"].answers[0].text
