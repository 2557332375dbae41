"""Columns of subgroups: of records, DICOM headers and manifests."""

import csv

import numpy as np
import pydicom
import pytest

from data_pipeline.errors import UserError
from data_pipeline.manifest import Records, read_manifest
from infantxray.reports import columns


def write_dicom(path, **elements):
    header = pydicom.Dataset()
    header.Modality = "DX"
    for name, value in elements.items():
        setattr(header, name, value)
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return str(path)


def test_headers_of_dicom_files_and_of_no_others(tmp_path):
    dicom = write_dicom(
        tmp_path / "a.dcm",
        Manufacturer="Maker Co.,Ltd.",
        StudyDate="20190704",
        KVP="66.5",
        PatientName="Doe^Jane",
    )
    (tmp_path / "b.dcm").write_bytes(b"nothing")
    erased = write_dicom(tmp_path / "erased.dcm", StudyDate="19010101")
    assert columns.dicom_columns(Records.create([erased], source="s"))["year"].tolist() == [""]
    paths = [dicom, str(tmp_path / "b.dcm"), "phantom:infant/1", str(tmp_path / "c.png")]
    records = Records.create(paths, source="s", age_months=[1, 30, np.nan, 2])
    found = columns.read(records, [*columns.RECORDS, *columns.DICOM])
    assert found["manufacturer"].tolist() == ["MAKER CO LTD", "", "", ""]
    assert found["year"].tolist() == ["2019", "", "", ""]
    assert found["kvp"].tolist() == ["60-69 kV", "", "", ""]
    assert found["age"].tolist() == ["1-12 months", "2-5 years", "", "1-12 months"]
    sampled = columns.sampled_headers(records)
    assert columns.acquisition([sampled]) == {
        "manufacturer": ["MAKER CO LTD"],
        "year": ["2019"],
        "kvp": ["60-69 kV"],
    }


@pytest.fixture
def records(tmp_path):
    rows = [
        {
            "image_path": f"{i}.png",
            "Sex": "F",
            "Ward Nr": i % 3,
            "weight": 2 + i / 10,
            "text": f"t{i}",
        }
        for i in range(40)
    ]
    rows[3]["weight"] = ""
    with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return read_manifest(tmp_path / "m.csv")


def test_any_column_of_the_manifest(records):
    names = columns.parse("sex, ward_nr,weight,Text", records)
    assert names == ["sex", "ward_nr", "weight", "Text"]
    shuffled = records.take([5, 3, 0, *range(6, 40)])
    found = columns.read(shuffled, names)
    assert found["ward_nr"][:3].tolist() == ["2", "0", "0"]
    # Many numbers are divided at their quartiles; many texts lose the rarest.
    assert found["weight"][1] == ""
    assert len(set(found["weight"]) - {""}) == 4
    assert "2 to " in found["weight"][2]
    assert columns.OTHERS in found["Text"]
    assert len(set(found["Text"])) == columns._MOST_GROUPS + 1


def test_an_unknown_column_is_named_with_those_there_are(records):
    with pytest.raises(UserError, match=r"no column 'colour'; there are sex, age.*kvp.*ward_nr"):
        columns.parse("sex,colour", records)
    other = Records.create(["a.png"], source="folder:/nowhere")
    with pytest.raises(UserError, match="no column 'ward_nr'"):
        columns.parse("ward_nr", other)
    both = Records.concatenate([records, other])
    assert columns.read(both, columns.parse("ward_nr", both))["ward_nr"][-1] == ""


def test_what_is_no_number_among_numbers_is_unknown():
    weights = [str(weight) for weight in range(40)]
    found = columns._grouped(np.array([*weights, "NaN", "inf", ""], dtype=object))
    assert found[-3:].tolist() == ["", "", ""]
    assert list(dict.fromkeys(found[:40])) == ["0 to 9", "10 to 19", "20 to 29", "30 to 39"]
