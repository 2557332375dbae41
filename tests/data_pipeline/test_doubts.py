import pytest

from data_pipeline.doubts import doubtful_spellings
from data_pipeline.records import Records


@pytest.mark.parametrize(
    ("columns", "message", "rows"),
    [
        (
            {"patient_id": ["1.23457E+11", "p", "q"]},
            "patient ids: a spreadsheet has rewritten 1 values, such as '1.23457E+11'",
            [0],
        ),
        ({"label": ["a", "b", "a;b"]}, "labels that seem to join several: 'a;b'; write a bar", [2]),
        (
            {"patient_id": ["0", "0", "p"], "sex": ["F", "M", "F"]},
            "1 patient ids have images of both sexes, such as '0' (2 images)",
            [0, 1],
        ),
    ],
)
def test_doubtful_names(columns, message, rows):
    records = Records.create(["/a.png", "/b.png", "/c.png"], source="s", **columns)
    ((found, where),) = doubtful_spellings(records)
    assert found.startswith(message)
    assert where.tolist() == rows


def test_names_of_files_that_a_spreadsheet_has_rewritten():
    records = Records.create(["/x/1.23457E+11.png", "/x/b.png"], source="s")
    ((found, where),) = doubtful_spellings(records)
    assert found.startswith("names of files: a spreadsheet has rewritten 1 values")
    assert where.tolist() == [0]
