"""Cells of tables: failed formulas, findings, and ids in several spellings."""

import unicodedata

import pytest

from data_pipeline.cells import (
    is_formula_error,
    join_findings,
    joined_otherwise,
    rewritten,
    spelled_apart,
)


def test_failed_formulas():
    assert all(map(is_formula_error, ("#REF!", "#n/a", "#WERT!", "#####", "Err:502")))
    assert not any(map(is_formula_error, ("", "#", "#1", "REF!", "Err", "error", "#mass")))


def test_findings_are_joined_in_one_order():
    assert join_findings(["b", " a", "b", ""]) == "a|b"
    assert join_findings([]) == ""


def test_spelled_apart():
    names = ["P17", "p17 ", "p\u200b17", "p18", "Müller", unicodedata.normalize("NFD", "müller")]
    assert spelled_apart(names) == [("Müller", names[-1]), ("P17", "p17 ", "p\u200b17")]
    assert spelled_apart(["017", "0171", "P-17", "17,5", "17"]) == [("017", "17")]


@pytest.mark.parametrize(
    ("ids", "groups"),
    [
        (["114", "114.0", "00114", "1.14E+02"], 1),
        (["1140", "1,140", "1140,0", "'1140"], 1),
        (["manifest:/a.csv:114", "manifest:/a.csv:0114"], 1),  # patient_ids=source
        (["nih-114", "nih-114.0", "nih-00114", "NIH-114"], 1),
        (["114", "１１４", "114\u00a0"], 1),
        (["123456789012", "123457000001", "1.23457E+11", "1,23457E+11"], 1),
        (["nih-123456789012", "nih-1.23457E+11"], 1),
        (["123466789012", "1.23457E+11", "12", "1.2E+01x", "graz-123456789012"], 0),
        (["114", "115.0", "114.5", "1.145E+02", "P114", "1140", "0"], 0),
    ],
)
def test_numbers_that_a_spreadsheet_rewrote_are_spelled_apart(ids, groups):
    assert spelled_apart(ids) == [tuple(sorted(ids))] * groups


def test_ids_and_files_that_a_spreadsheet_shortened():
    names = [
        "1.23457E+11",
        "1,23E+11",
        "nih-1E+12",
        "1.23457E+11.png",
        "12-Mar",
        "12",
        "1E5",
        "A1.2E+11",
    ]
    assert rewritten(names) == sorted(names[:5])


def test_labels_joined_by_another_sign_than_a_bar():
    assert joined_otherwise(["a", "b", "a;b", "a, b", "a;c", "a|b", "c/d"]) == ["a, b", "a;b"]
    assert joined_otherwise(["['a', 'b']", "No Finding"]) == ["['a', 'b']"]
