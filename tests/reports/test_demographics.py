"""Table 1 and the flow of images."""

import csv

import numpy as np
import pytest

from data_pipeline.manifest import Records
from infantxray.reports import demographics, plots


def make(n, source="a"):
    return Records.create(
        [f"{source}{i}.png" for i in range(n)],
        source=source,
        patient_id=[f"{source}{i // 2}" for i in range(n)],
        age_months=np.arange(n) * 6.0,
        sex=["F", "M", "", "F"] * (n // 4),
        label=["mass", "normal"] * (n // 2),
    )


def test_table_one_counts_patients_images_and_values():
    table = demographics.table_one({"train": make(8), "test": make(4, "b")})
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    assert rows["Patients", ""] == ["4", "2"]
    assert rows["Images", ""] == ["8", "4"]
    assert rows["Age, months", "median (quartiles)"][1] == "9.0 (4.5 to 13.5)"
    assert rows["Sex", "F"] == ["4 (50%)", "2 (50%)"]
    assert rows["Sex", "unknown"] == ["2 (25%)", "1 (25%)"]
    assert not any(name == "View" for name, _ in rows)  # Known for nobody.


def test_rare_values_are_joined():
    names = [f"site {i:02}" for i in range(20)]
    records = Records.create(names, source="s", site=names)
    rows = {row[1]: row[2] for row in demographics.table_one({"test": records}).rows}
    assert rows["others"] == "8 (40%)"


@pytest.mark.parametrize("external", [False, True])
def test_the_flow_is_a_table_and_a_chart(tmp_path, external):
    parts = {"train": make(8), "validation": make(4, "c"), "test": make(4, "b")}
    table = demographics.flow_table(
        parts, {"unreadable": 1}, {"images": 3, "with a known age": 2}, external=external
    )
    table.write(str(tmp_path))
    with open(tmp_path / "flow.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert (["Found", "", "16", "8"] in rows) == (not external)
    assert ["Left out", "unreadable", "1", ""] in rows
    plots.save(str(tmp_path), "flow", lambda: demographics.flow_chart(table))
    drawn = (tmp_path / "flow.svg").read_text(encoding="utf-8")
    assert "1 unreadable" in drawn
    assert ("16 images of 8 patients" in drawn) == (not external)


def test_table_one_counts_the_devices_of_dicom_headers():
    headers = {"manufacturer": np.array(["Maker", "", "Maker"], object), "year": np.array([""] * 3)}
    headers["kvp"] = headers["year"]
    table = demographics.table_one({"test": make(4)}, {"test": headers})
    assert ["Manufacturer", "Maker", "2 (67%)"] in table.rows
    assert not any(row[0] in ("Year", "Tube voltage") for row in table.rows)
    assert "DICOM headers" in table.caption
