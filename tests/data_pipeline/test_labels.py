import logging

import numpy as np
import pytest

from data_pipeline import conditions
from data_pipeline.dataset import DataSettings
from data_pipeline.division import keep_labels, split_by_patient
from data_pipeline.errors import DataError
from data_pipeline.labels import (
    FindingNames,
    carries,
    check_rows_agree,
    count_findings,
    map_labels,
    merge_rows,
    parse_label_map,
    rarest_findings,
    resolve_uncertain,
)
from data_pipeline.manifest import Box, Records
from data_pipeline.splits import Split


def records(labels, uncertain=None, paths=None, patients=None, **columns):
    paths = paths or [f"/d/{i}.png" for i in range(len(labels))]
    return Records.create(
        paths, source="s", label=labels, uncertain=uncertain, patient_id=patients, **columns
    )


class TestMatrix:
    NAMES = FindingNames(("a", "b", "c"), ("normal", "No finding"), frozenset({"d"}))

    @pytest.mark.parametrize(
        ("label", "uncertain", "row"),
        [
            ("a|c", (), [1, 0, 1]),
            ("no FINDING", (), [0, 0, 0]),
            ("d", (), [0, 0, 0]),
            ("", (), [None] * 3),
            ("", ("a",), [None] * 3),
            ("a", ("b",), [1, None, 0]),
            ("normal", ("b", "d"), [0, None, 0]),
            ("a", ("a",), [1, 0, 0]),
            ("a|foreign", (), [1, None, None]),
            ("foreign", (), [None] * 3),
        ],
    )
    def test_present_absent_unknown(self, label, uncertain, row):
        found = self.NAMES.matrix(records([label], [uncertain]))
        assert found.dtype == np.float32
        expected = [np.nan if value is None else value for value in row]
        np.testing.assert_array_equal(found, [expected])

    def test_foreign_names_are_counted(self):
        assert self.NAMES.foreign(["x|a", "x", "d", "NORMAL", "y"]) == {"x": 2, "y": 1}


def test_counts_and_rarest():
    labels = np.array(["a|b", "a", "", "a|c", "b"], dtype=object)
    assert count_findings(labels) == {"a": 3, "b": 2, "c": 1}
    assert rarest_findings(labels).tolist() == ["b", "a", "", "c", "b"]
    assert carries(labels, "b").tolist() == [True, False, False, False, True]
    assert not carries(np.array(["ab"], object), "a").any()


def test_policies_for_uncertain_findings():
    given = records(["a", "", "normal"], [("b",), ("b",), ()])
    assert resolve_uncertain(given, "ignore") is given
    positive = resolve_uncertain(given, "positive")
    assert positive.label.tolist() == ["a|b", "b", "normal"]
    negative = resolve_uncertain(given, "negative")
    assert negative.label.tolist() == ["a", "", "normal"]
    for resolved in (positive, negative):
        assert resolved.uncertain.tolist() == [(), (), ()]


class TestLabelMap:
    def test_entries(self, tmp_path):
        expected = {"No Finding": "normal", "no finding": "normal", "Mass": "mass", "x": ""}
        text = "normal=No Finding|no finding, mass = Mass ,=x"
        assert parse_label_map(text) == expected
        path = tmp_path / "map.txt"
        path.write_text("# renamed\nnormal=No Finding|no finding\n\nmass=Mass\n=x\n")
        assert parse_label_map(str(path)) == expected
        path.write_text("covid=COVID-19, ARDS|COVID-19\n")
        assert parse_label_map(str(path)) == {"COVID-19, ARDS": "covid", "COVID-19": "covid"}
        assert parse_label_map("") == {}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("normal=", "new=old"),
            ("a=b,c", "new=old"),
            ("a|b=c", "new=old"),
            ("a=x,b=x", "maps 'x' to 'a' and to 'b'"),
            ("missing.txt", "cannot be read"),
        ],
    )
    def test_what_cannot_be_meant(self, text, message):
        with pytest.raises(DataError, match=message):
            parse_label_map(text)

    def test_everything_is_renamed_and_accounted_for(self):
        given = records(
            ["No Finding", "Mass|Edema", "Edema", "Old"],
            [(), ("Mass",), (), ()],
            boxes=[(), (Box(0, 0, 1, 1, "Mass"),), (), ()],
        )
        mapping = parse_label_map("normal=No Finding,mass=Mass,=Old,lost=Nobody")
        found, notes = map_labels(given, mapping)
        assert found.label.tolist() == ["normal", "Edema|mass", "Edema", ""]
        assert found.uncertain.tolist() == [(), ("mass",), (), ()]
        assert found.boxes[1][0].label == "mass"
        assert notes == [
            "labels mapped: Mass → mass (1), No Finding → normal (1), Old → nothing (1)",
            "labels as they are: Edema (2)",
            "labels of config.data.label_map that no image has: Nobody",
        ]
        assert map_labels(given, {}) == (given, [])


class TestRowsOfOneImage:
    def test_rows_are_joined(self, caplog):
        paths = ["/d/x.png", "/d/y.png", "/d/x.png", "/d/x.png"]
        given = records(
            ["b", "a", "a", ""], [("c",), (), ("b",), ("e",)], paths, patients=["1", "2", "1", "1"]
        )
        with caplog.at_level(logging.INFO):
            merged = merge_rows(given)
        assert "4 rows describe 2 images" in caplog.text
        assert merged.image_path.tolist() == ["/d/x.png", "/d/y.png"]
        assert merged.label.tolist() == ["a|b", "a"]
        assert merged.uncertain.tolist() == [("c", "e"), ()]
        assert given.label.tolist() == ["b", "a", "a", ""]

    def test_contradictions_are_named(self):
        paths = ["/d/x.png"] * 2
        with pytest.raises(DataError, match=r"contradict.*x\.png \(No Finding, a\)"):
            merge_rows(records(["a", "No Finding"], None, paths))
        with pytest.raises(DataError, match="differ in patient_id: 1, 2"):
            merge_rows(records(["a", "b"], None, paths, patients=["1", "2"]))
        with pytest.raises(DataError, match="differ in age_months"):
            merge_rows(records(["a", "b"], None, paths, age_months=[1.0, 2.0]))

    def test_one_condition_an_image_needs_one_label(self):
        paths = ["/d/x.png"] * 2
        check_rows_agree(records(["a", "a"], None, paths))
        check_rows_agree(records(["a", ""], None, paths))
        with pytest.raises(DataError, match=r"1 images are in several rows.*config\.labels=multi"):
            check_rows_agree(records(["a", "b"], None, paths))


class TestDataSettings:
    MULTI = DataSettings(labels="multi")

    def test_classes(self):
        train = records(["b|a", "normal", "", "c"])
        assert conditions.find_classes(self.MULTI, train) == ("a", "b", "c")
        with pytest.raises(DataError, match=r"1 training images.*'a\|b'.*a \(1\), b \(1\)"):
            conditions.find_classes(DataSettings(), records(["a|b", "c"]))
        with pytest.raises(DataError, match=r"'a\|b'; \| joins findings"):
            conditions.find_classes(DataSettings(classes=("a|b", "c"), labels="multi"), train)

    def test_numbers_as_names(self):
        train = records(["0", "1", "1"])
        assert conditions.find_classes(DataSettings(classes=(0, 1)), train) == ("0", "1")

    def test_findings_of_the_training_data_are_known(self):
        parts = [records(["a|z", "b"]), records(["y"]), records(["q"])]
        parts[2] = parts[2].replace(source=np.array(["elsewhere"], object))
        split = Split(*parts)
        names = conditions.finding_names(self.MULTI, split, ("a", "b"))
        assert names.others == {"y", "z"}
        assert conditions.finding_names(DataSettings(), split, ("a", "b")) is None

    def test_a_finding_of_one_patient_cannot_be_tested(self):
        train = records(["a|b", "a|c", "a"], patients=["1", "2", "3"])
        split = Split(train, train.take([]), train.take([2]))
        with pytest.raises(DataError, match=r"'b' has one patient.*likewise 'c'"):
            conditions.check_split(self.MULTI, split, ("a", "b", "c"))


def test_splits_are_stratified_by_the_rarest_finding():
    labels = ["a|rare"] * 10 + ["a|b"] * 50 + ["a"] * 50 + ["normal"] * 50
    given = records(labels, patients=[f"p{i}" for i in range(len(labels))])
    done = split_by_patient(given, validation_fraction=0.2, test_fraction=0.2, seed=0)
    rare = carries(done.label, "rare")
    assert (done.split[rare] == "test").sum() == 2
    assert (done.split[rare] == "validation").sum() == 2
    kept = keep_labels(done, 0.1, 0)
    for name in ("rare", "a", "b", "normal"):
        assert carries(kept.label, name).sum() >= 1
    assert kept.has_label.sum() < 40


def test_labels_that_are_taken_away_leave_no_uncertain_findings():
    given = records(["a", "b"] * 20, [("c",)] * 40)
    kept = keep_labels(given, 0.1, 0)
    assert [bool(names) for names in kept.uncertain] == (kept.label != "").tolist()


def test_decomposed_names_are_the_composed_ones():
    """macOS gives names of folders decomposed."""
    decomposed, composed = "bacte\u0301rien", "bact\u00e9rien"
    found = records(
        [f"{decomposed}|mass", composed],
        [(), (decomposed,)],
        patients=[decomposed, composed],
        boxes=[(Box(0, 0, 1, 1, decomposed),), ()],
    )
    assert found.label.tolist() == [f"{composed}|mass", composed]
    assert found.uncertain[1] == (composed,)
    assert found.boxes[0][0].label == composed
    assert len(set(found.patient)) == 1
    assert parse_label_map(f"x={decomposed}") == {composed: "x"}
    assert DataSettings(normal_names=decomposed).normal == (composed,)
    settings = DataSettings(classes=(decomposed, "mass"), labels="multi")
    assert conditions.find_classes(settings, found) == (composed, "mass")
