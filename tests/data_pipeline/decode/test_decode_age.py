"""Ages from what headers say, which is coarse, late, missing or contradicts itself."""

import math

import pytest

from data_pipeline.decode.age import age_months

DAY = 1 / 30.4375


def age(text, birth="", study=""):
    notes = []
    return age_months(text, birth, study, notes), notes


@pytest.mark.parametrize(
    ("text", "months"),
    [
        ("005D", 5 * DAY),
        ("003W", 21 * DAY),
        ("011M", 11.0),
        ("002Y", 24.0),
        ("3M", 3.0),
        ("18M", 18.0),
        ("018m", 18.0),
        ("3 M", 3.0),
        (" 3m ", 3.0),
        ("12d", 12 * DAY),
        ("000D", 0.0),
        ("000M", 0.0),
    ],
)
def test_age_strings(text, months):
    assert age(text) == (pytest.approx(months), [])


@pytest.mark.parametrize("text", ["1.5Y", "-01Y", "058", "M", "1234D", "999Y", "3 months", "٣M"])
def test_a_string_that_is_none_is_noted_and_the_dates_taken(text):
    months, notes = age(text, "20200115", "20200415")
    assert months == pytest.approx(91 * DAY)
    assert len(notes) == 1
    assert notes[0].startswith("age")
    assert math.isnan(age(text)[0])


@pytest.mark.parametrize(
    ("text", "birth", "study", "days"),
    [
        ("000Y", "20230101", "20231201", 334),
        ("001Y", "20220101", "20231201", 699),
        ("001Y", "20221220", "20230103", 14),  # Calendar years subtracted.
        ("000Y", "20230101", "20230101", 0),
        ("", "20230101", "20230101", 0),
        ("040Y", "1980.01.01", "2020.06.01", 14762),
    ],
)
def test_dates_say_more_than_whole_years(text, birth, study, days):
    assert age(text, birth, study) == (pytest.approx(days * DAY), [])


@pytest.mark.parametrize(
    ("birth", "study"),
    [
        ("19000101", "20200415"),
        ("18500101", "20200415"),
        ("", "20200415"),
        ("20200115", ""),
        ("20200416", "20200415"),
        ("20201315", "20200415"),
        ("19010101", "20230101"),  # 122 years.
    ],
)
def test_dates_that_cannot_be_meant_are_not_used(birth, study):
    assert math.isnan(age("", birth, study)[0])
    assert age("003Y", birth, study) == (36.0, [])
    assert math.isnan(age("000Y", birth, study)[0])


@pytest.mark.parametrize(
    ("text", "birth", "months"),
    [
        ("004Y", "20200415", 48.0),  # Birth and study on one day.
        ("001Y", "20200415", 12.0),
        ("003Y", "19700101", 36.0),
        ("003M", "19700101", 3.0),
        ("003M", "20200415", 3.0),
    ],
)
def test_dates_far_beside_the_string_are_placeholders(text, birth, months):
    stated, notes = age(text, birth, "20200415")
    assert stated == months
    assert notes == ["age string and dates disagree; the string taken"]


def test_days_weeks_and_months_stand_beside_dates_that_agree():
    assert age("003M", "20200101", "20200415") == (3.0, [])
    assert age("000D", "20200412", "20200415") == (0.0, [])


@pytest.mark.parametrize("text", ["000Y", "000M", "000D"])
def test_a_zero_that_the_dates_contradict_is_unknown(text):
    months, notes = age(text, "20150101", "20200415")
    assert math.isnan(months)
    assert notes == ["age unknown: stated as zero, without dates that agree"]


def test_zero_years_alone_are_unknown():
    months, notes = age("000Y")
    assert math.isnan(months)
    assert notes == ["age unknown: stated as zero, without dates that agree"]
