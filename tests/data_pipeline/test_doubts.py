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


def test_findings_are_compared_one_by_one():
    labels = ["effusion|normal", "Effusion", "mass|x;y", "x", "y"]
    records = Records.create(
        [f"/{i}.png" for i in range(5)],
        source="s",
        label=labels,
        uncertain=[(), (), ("effusion",), (), ()],
    )
    spelled, joined = doubtful_spellings(records)
    assert "'Effusion' and 'effusion'" in spelled[0]
    assert spelled[1].tolist() == [0, 1, 2]
    assert "'x;y'" in joined[0]
    assert joined[1].tolist() == [2]


def test_an_image_that_is_normal_and_has_a_finding_is_named():
    labels = ["effusion|No Finding", "effusion", "No Finding"]
    records = Records.create(["/a.png", "/b.png", "/c.png"], source="s", label=labels)
    ((message, rows),) = doubtful_spellings(records, ("normal", "no finding"))
    assert message.startswith("1 images are labelled both normal and with a finding")
    assert rows.tolist() == [0]
    assert not list(doubtful_spellings(records))  # One condition an image: refused elsewhere.
