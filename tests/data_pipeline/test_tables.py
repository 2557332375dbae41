"""Tables that a spreadsheet opens without running anything, and that read back equal."""

import csv
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.tables import neutralise, read_csv, restore, write_csv

FORMULAS = ('=HYPERLINK("http://x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "＝1+1")


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text(text, tmp_path):
    write_csv(tmp_path / "t.csv", ("label",), [(text,)])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        (_, (cell,)) = csv.reader(file)
    assert cell == f"'{text}"
    header, rows = read_csv(tmp_path / "t.csv")
    assert (header, list(rows)) == (["label"], [[text]])


@pytest.mark.parametrize("number", ["-0.5", "+3", "-1e-05", "-.5", "7"])
def test_numbers_stay(number):
    assert neutralise(number) == number == restore(number)


def test_values_that_are_no_text_are_written_as_they_are(tmp_path):
    write_csv(tmp_path / "t.csv", ("a", "b", "c"), [(-1.5, None, -3)])
    assert list(read_csv(tmp_path / "t.csv")[1]) == [["-1.5", "", "-3"]]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(
            st.one_of(
                st.sampled_from("'=+-@\t\r\n\",1"), st.characters(exclude_categories=["Cs"])
            )
        )
    )
)  # fmt: skip
def test_all_text_reads_back(tmp_path, cells):
    write_csv(tmp_path / "t.csv", ("cell",), [(cell, "end") for cell in cells])
    assert [row[0] for row in read_csv(tmp_path / "t.csv")[1]] == cells


def test_names_of_files_need_not_be_utf8(tmp_path):
    name = os.fsdecode(b"f\xe9vrier.png")
    write_csv(tmp_path / "t.csv", ("image_path",), [(name,)])
    assert list(read_csv(tmp_path / "t.csv")[1]) == [[name]]


def test_a_table_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    write_csv(tmp_path / "t.csv", ("a",), [("old",)])

    def rows():
        yield ("new",)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_csv(tmp_path / "t.csv", ("a",), rows())
    assert list(read_csv(tmp_path / "t.csv")[1]) == [["old"]]
