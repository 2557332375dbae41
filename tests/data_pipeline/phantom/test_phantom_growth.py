"""Sizes by age, and the arithmetic that films are computed with."""

import math

import numpy as np
import pytest

from data_pipeline.phantom import exactmath
from data_pipeline.phantom.growth import growth
from data_pipeline.phantom.physics import attenuation


def median(age_months, sex="M"):
    return growth(age_months, sex, stature=1.0, girth=1.0, tempo=1.0, organs=1.0)


def test_children_grow():
    ages = (0, 1, 3, 6, 12, 24, 36, 60, 120, 180, 240)
    for name in ("half_width", "half_depth", "lumbar", "thoracic", "vertebra_width", "half_pelvis"):
        sizes = [getattr(median(age), name) for age in ages]
        assert all(np.diff(sizes) > 0), name
    assert all(np.diff([median(age).liver[1] for age in ages[:7]]) > 0)


@pytest.mark.parametrize(
    ("age", "grams"), [(0, 130), (12, 330), (60, 570), (120, 830), (240, 1800)]
)
def test_the_liver_weighs_what_icrp_89_says(age, grams):
    a, b, c = median(age).liver
    volume = 4 / 3 * math.pi * a * b * c / 1000  # cm3
    assert volume * 1.06 == pytest.approx(0.8 * grams, rel=0.01)  # the right lobe alone


def test_organs_are_as_long_as_in_konus():
    at_21_months = median(21)
    assert 2 * at_21_months.liver[1] == pytest.approx(85)
    assert 2 * at_21_months.spleen[1] == pytest.approx(70)
    assert 2 * at_21_months.kidney[1] == pytest.approx(61)


def test_ossification_comes_in_order():
    assert median(3).femoral_head == 0
    assert median(8).femoral_head > 0
    assert median(24).trochanter == 0
    assert median(48).trochanter > 0
    assert median(6).arches == 0
    assert median(40).arches == 1
    assert median(60).ischiopubic == 0
    assert median(120).ischiopubic == 1
    assert median(100).acetabulum == 0
    assert median(216).acetabulum == 1


def test_attenuation_is_that_of_nist():
    at = attenuation(60.0)
    assert at.soft == pytest.approx(0.2048 * 1.06 / 10)
    assert at.bone == pytest.approx(0.3148 * 1.92 / 10)
    for energy in (35.0, 45.0, 55.0):
        at = attenuation(energy)
        assert at.lung < at.fat < at.soft < at.bone < at.aluminium < at.iron < at.lead


def test_functions_agree_with_the_mathematics_library():
    for x in np.linspace(-12, 12, 401).tolist():
        assert exactmath.sine(x) == pytest.approx(math.sin(x), abs=1e-12)
        assert exactmath.cosine(x) == pytest.approx(math.cos(x), abs=1e-12)
        assert exactmath.exp(x) == pytest.approx(math.exp(x), rel=1e-11)
        assert exactmath.log(math.exp(x)) == pytest.approx(x, abs=1e-11)
    assert exactmath.cube_root(27.0) == pytest.approx(3.0)
    assert exactmath.interpolate(1.5, (1, 2), (10, 20)) == 15
    assert exactmath.interpolate(-1, (1, 2), (10, 20)) == 10
    assert exactmath.interpolate(9, (1, 2), (10, 20)) == 20


def test_tables_over_arrays():
    x = np.linspace(0, 13.9, 5000, dtype=np.float32)
    np.testing.assert_allclose(exactmath.exp_of_minus(x), np.exp(-x), rtol=6e-4)
    y = np.exp(np.linspace(-9, 2.5, 5000)).astype(np.float32)
    np.testing.assert_allclose(exactmath.log_of(y), np.log(y), atol=3e-4)
    assert (
        exactmath.exp_of_minus(np.float32([1e9]))[0] == exactmath.exp_of_minus(np.float32([14]))[0]
    )
    assert np.isfinite(exactmath.log_of(np.float32([-1.0, 0.0, 1e9]))).all()
