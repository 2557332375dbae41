import numpy as np
import pytest

from infantxray.reports.data_page import histogram


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [[200.0], [7.0] * 50, [0.0], [1e6, 1e6]])
def test_one_value_or_equal_values_are_one_bar(values, dtype):
    plot = histogram("Age, years", np.array(values, dtype))
    assert [bar["count"] for bar in plot["bars"] if bar["count"]] == [len(values)]
    assert plot["top"] == len(values)


def test_every_value_is_counted_once_and_long_numbers_are_readable():
    values = np.append(np.arange(100, 2051.0), [np.nan, np.inf])
    plot = histogram("Shorter side, pixels", values)
    assert sum(bar["count"] for bar in plot["bars"]) == 1951
    assert (plot["low"], plot["high"]) == ("100", "2,050")


def test_no_values_are_no_plot():
    assert histogram("Age, years", np.array([])) is None
    assert histogram("Age, years", np.array([np.nan])) is None
