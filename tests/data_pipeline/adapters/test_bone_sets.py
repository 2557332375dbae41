"""Public sets of hands and wrists, each in small, as its source gives it."""

from pathlib import Path

import pytest
from layouts import table, touch, write
from PIL import Image

from data_pipeline.adapters import ADAPTERS
from data_pipeline.manifest import Box


def test_rsna_bone_age(tmp_path):
    write(tmp_path / "boneage-training-dataset.csv", "id,boneage,male\n1377,180,False\n7,12,True\n")
    write(tmp_path / "Validation Dataset.csv", "Image ID,male,Bone Age (months)\n1386,TRUE,103.5\n")
    write(tmp_path / "boneage-test-dataset.csv", "Case ID,Sex\n7,F\n")
    touch(tmp_path / "boneage-training-dataset" / "1377.png")
    touch(tmp_path / "boneage-training-dataset" / "7.png")
    touch(tmp_path / "boneage-validation-dataset" / "1386.png")
    touch(tmp_path / "boneage-test-dataset" / "7.png")
    records = ADAPTERS["rsna_bone_age"](str(tmp_path))
    rows = sorted(
        (split, Path(path).parent.name.split("-")[1], patient, sex, None if age != age else age)
        for split, path, patient, sex, age in zip(
            records.split,
            records.image_path,
            records.patient_id,
            records.sex,
            records.age_months.tolist(),
            strict=True,
        )
    )
    assert rows == [
        ("test", "test", "rsna-test-7", "F", None),
        ("train", "training", "rsna-train-1377", "F", 180.0),
        ("train", "training", "rsna-train-7", "M", 12.0),
        ("validation", "validation", "rsna-validation-1386", "M", 103.5),
    ]


def test_grazpedwri(tmp_path, caplog):
    write(
        tmp_path / "dataset.csv",
        "filestem,patient_id,age,laterality,projection,ao_classification,cast,fracture_visible,"
        "metal\n"
        "0001_a,0001,13.5,L,1,23r-M/3.1,,1,\n0002_b,0002,4,R,2,,1,,\n0003_c,0003,5,R,2,,,,\n",
    )
    touch(tmp_path / "images_part1" / "0001_a.png")
    touch(tmp_path / "images_part2" / "0002_b.png")
    records = ADAPTERS["grazpedwri"](str(tmp_path))
    assert table(records, "patient_id", "age_months", "view", "label") == {
        "0001_a.png": ("graz-0001", 162.0, "AP", "fracture"),
        "0002_b.png": ("graz-0002", 48.0, "LATERAL", "no fracture"),
    }
    assert "1 of 3 images listed are not on disk" in caplog.text


def test_boxes_of_grazpedwri(tmp_path, caplog):
    header = "filestem,patient_id,age,fracture_visible\n"
    write(tmp_path / "dataset.csv", header + "a,1,-1,1\nb,2,999,1\nc,3,5,\nd,4,6,\n")
    for name in "abcd":
        Image.new("L", (200, 100)).save(touch(tmp_path / f"{name}.png"))
    write(tmp_path / "yolov5" / "labels" / "a.txt", "3 0.5 0.5 0.1 0.2\n8 0.05 0.1 0.1 0.2\n")
    write(
        tmp_path / "pascalvoc" / "b.xml",
        "<annotation><size><width>200</width></size><object><name>fracture</name><bndbox><xmin>1"
        "</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>",
    )
    write(tmp_path / "c.xml", "<annotation><object></annotation>")
    records = ADAPTERS["grazpedwri"](str(tmp_path))
    first, text = records.boxes[0]
    assert first == pytest.approx((90, 40, 110, 60, "fracture"))
    assert text == pytest.approx((0, 0, 20, 20, "text"))
    assert records.boxes[1:].tolist() == [(Box(1, 2, 3, 4, "fracture"),), (), ()]
    assert "1 files of boxes cannot be read" in caplog.text
    assert records.has_age.tolist() == [False, False, True, True]
    assert "2 ages are taken as unknown, such as '-1', '999'" in caplog.text
