"""Ages in tables: cells, codes for unknown, and columns that state their unit."""

import math

import pytest

from data_pipeline.ages import (
    age_codes,
    age_column,
    is_never_an_age,
    is_zero_years,
    names_an_age,
    parse_age,
    read_ages,
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


@pytest.mark.parametrize(
    ("name", "months"),
    [
        *(
            ("age_months", 1),
            ("AgeMonths", 1),
            ("Age (months)", 1),
            ("age_mo", 1),
            ("나이(개월)", 1),
        ),
        *(("age_years", 12), ("age in years", 12), ("PatientAgeYrs", 12), ("age_y", 12)),
        *(
            ("age_days", 12 / 365.25),
            ("age_at_exam_weeks", 84 / 365.25),
            ("ageindays", 12 / 365.25),
        ),
    ],
)
def test_columns_of_ages_by_their_unit(name, months):
    assert age_column(name) == pytest.approx(months)


def test_other_columns_of_ages():
    assert all(math.isnan(age_column(name)) for name in ("age", "Age", "PatientAge", "age_at_exam"))
    others = [
        "bone_age",
        "gestational_age_weeks",
        "ageGroup",
        "age_m",
        "studyAge",
        "AGE_CODE",
        "birth_date",
    ]
    assert [age_column(name) for name in others] == [None] * len(others)
    assert all(map(names_an_age, others))
    assert not any(map(names_an_age, ("image", "agent", "stage", "page_number", "percentage")))


def test_no_whole_year():
    assert [c for c in ("0y", "000Y", "0 years", "0", "0.5y", "0m", "10y") if is_zero_years(c)] == [
        *("0y", "000Y", "0 years")
    ]


def _read(**columns):
    """Ages, and the cells that are refused."""
    refused = []
    ages = read_ages(columns, lambda name, what, value, row: refused.append((name, value)), "t.csv")
    return ages, refused


def test_each_column_has_its_unit():
    assert _read(age_years=["1.5", "0", ""])[0][:2] == [18, 0]
    assert _read(age_days=["365.25", "6 months"])[0] == pytest.approx([12, 6])
    assert _read(age_weeks=["52"])[0] == pytest.approx([52 * 7 / 365.25 * 12])
    assert _read(age=["6 months", "2y", ""])[0][:2] == [6, 24]
    assert _read() == (None, [])


def test_the_finest_column_counts_and_the_others_fill_in():
    ages, refused = _read(age_years=["0", "1", "2"], age_days=["30.4375", "", "760"])
    assert ages == pytest.approx([1, 12, 760 * 12 / 365.25])
    assert refused == []


def test_parts_of_an_age_in_two_columns_are_refused():
    """One year and three months, say, is neither."""
    _, refused = _read(age_years=["0", "1", "2"], age_months=["5", "3", "1"])
    assert refused == [
        ("age_years", "1, and age_months is 3"),
        ("age_years", "2, and age_months is 1"),
    ]


def test_zero_whole_years_are_unknown(caplog):
    ages, refused = _read(age_years=["0", "3"])
    assert math.isnan(ages[0])
    assert ages[1] == 36
    assert math.isnan(_read(age=["0y", "3 months"])[0][0])
    assert refused == []
    assert "t.csv: an age of 0 years is taken as unknown, in 1 rows" in caplog.text
    caplog.clear()
    assert _read(age_years=["0", "3.2", ""])[0][:2] == pytest.approx([0, 38.4])
    assert _read(age_years=["0", ""], age_days=["30.4375", ""])[0][0] == pytest.approx(1)
    assert not caplog.text


def test_what_cannot_be_an_age_is_refused():
    assert _read(age=["6 months", "7", "x"])[1] == [("age", "7"), ("age", "x")]
    assert _read(age_years=["3", "131", "999"])[1] == [("age_years", "131"), ("age_years", "999")]
    assert _read(age_days=["30", "-1", "9999"])[1] == [("age_days", "-1"), ("age_days", "9999")]


def test_numbers_with_a_separator_of_thousands_are_refused():
    """German and French spreadsheets write 1229 as 1.229, and as 1,229 in other programs."""
    assert _read(age_days=["1.229", "30", "2.345"])[1] == [
        ("age_days", "1.229"),
        ("age_days", "2.345"),
    ]
    assert _read(age_days=["1.229", "2.345"])[1]
    assert _read(age_months=["1.229", "30"])[1] == [("age_months", "1.229")]
    # Fractions: of other lengths, with zeros, too high without their point, or all of three digits.
    for days in (["1.229", "1.5", "30"], ["0.125", "30"], ["365.250", "30"], ["1.000", "2.000"]):
        assert not _read(age_days=days)[1]
    assert not _read(age_months=["1.229", "1.375"])[1]
    assert not _read(age_months=["4.125", "3"])[1]
    assert not _read(age_years=["1.125", "3"])[1]
