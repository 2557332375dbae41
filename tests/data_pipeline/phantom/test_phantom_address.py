"""Names of phantom data sets and films."""

import pytest

from data_pipeline.errors import DataError
from data_pipeline.phantom.address import Address, Place, parse_address, parse_place


def test_options_of_a_place():
    text = "infant:films=22:seed=3:site=both:frequencies=rare:severity=subtle:dose=0.5"
    place = parse_place(text + ":age_missing=0.3:label_noise=0.05:max_age_months=216")
    assert place == Place(
        "infant",
        seed=3,
        site="both",
        frequencies="rare",
        severity="subtle",
        dose=0.5,
        max_age_months=216,
        films=22,
        age_missing=0.3,
        label_noise=0.05,
    )


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("toddler", "infant, adult"),
        ("", "infant, adult"),
        ("infant:film=3", "films"),
        ("infant:seeds=3", "seed, site, frequencies, severity, dose"),
        ("infant:site=c", "a, b, both"),
        ("infant:films=0", "a whole number from 1"),
        ("infant:films=2.5", "a whole number from 1"),
        ("infant:dose=nan", "a factor from"),
        ("infant:age_missing=1.5", "a share from 0 to 1"),
        ("infant:max_age_months=217", "1 to 216"),
        ("adult:max_age_months=36", "infant alone"),
        ("infant:seed", "name=value"),
        ("infant:seed=1:seed=2", "twice"),
    ],
)
def test_a_bad_place_lists_what_is_allowed(text, allowed):
    with pytest.raises(DataError, match=allowed) as error:
        parse_place(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "place",
    [
        Place("infant"),
        Place("adult", seed=7, site="b"),
        Place("infant", dose=0.25, severity="subtle"),
    ],
)
def test_an_address_says_everything_that_the_film_depends_on(place):
    address = Address(place, "validation", 41)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "address",
    [
        "films/1.png",
        "phantom:infant",
        "phantom:infant:split=train",
        "phantom:infant:split=dev:film=1",
        "phantom:infant:split=train:film=-1",
        "phantom:infant:split=train:film=1e3",
        "phantom:infant:films=3:split=train:film=1",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(DataError):
        parse_address(address)
