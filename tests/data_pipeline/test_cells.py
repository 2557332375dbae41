"""Cells of tables: ages, codes for unknown, and ids in several spellings."""

import math
import unicodedata

import pytest

from data_pipeline.cells import (
    age_codes,
    is_formula_error,
    is_never_an_age,
    join_findings,
    parse_age,
    spelled_apart,
)


@pytest.mark.parametrize(
    ("cell", "months"),
    [
        *(("0", 0), ("7", 7), ("3.5", 3.5), (".5", 0.5), ("1e2", 100), ("+4", 4)),
        *(("6 months", 6), ("006M", 6), ("6mo.", 6), ("2y", 24), ("2 Years", 24), ("058Y", 696)),
        *(("18 d", 18 * 12 / 365.25), ("3 wks", 21 * 12 / 365.25)),
        *(("1 year 3 months", 15), ("1y3m", 15), ("1 yr, 3 mths", 15), ("6개월", 6), ("3세", 36)),
    ],
)
def test_ages(cell, months):
    assert parse_age(cell) == pytest.approx(months)


@pytest.mark.parametrize("cell", ["", "nan", "NaN"])
def test_unknown_ages(cell):
    assert math.isnan(parse_age(cell))


@pytest.mark.parametrize(
    "cell",
    ["-1", "-1 months", "1_5", "x", "3 moons", "inf", "200y", "1561", "²", "3,5", "<1", "m 6"],
)
def test_what_is_no_age(cell):
    assert parse_age(cell) is None


def test_codes_for_an_unknown_age():
    assert [c for c in ("-1", "-9.0", "9999", "99", "12", "x") if is_never_an_age(c)] == [
        "-1",
        "-9.0",
        "9999",
    ]
    assert age_codes([1, 30, math.nan, 999, 99, 99]) == [99, 999]
    assert age_codes([1, 30, 99]) == age_codes([99, 99]) == age_codes([700, 999]) == []


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
        (["114", "115.0", "114.5", "1.145E+02", "P114", "1140", "0"], 0),
    ],
)
def test_numbers_that_a_spreadsheet_rewrote_are_spelled_apart(ids, groups):
    assert spelled_apart(ids) == [tuple(sorted(ids))] * groups
