"""Public sets of chests, each in small, as its source gives it."""

import gzip
import os

import pytest
from image_files import dicom_bytes, ramp
from layouts import table, touch, write

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError
from data_pipeline.manifest import Box


def test_nih(tmp_path):
    write(
        tmp_path / "Data_Entry_2017_v2020.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
        "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143\n"
        "00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,PA,2894,2729,0.143,0.143\n"
        "00000002_000.png,No Finding,0,2,9,F,AP,2500,2048,0.171,0.171\n"
        "00000003_000.png,Hernia,0,3,414,F,AP,2500,2048,0.171,0.171\n"
        "00000004_000.png,Hernia,0,4,40,F,AP,2500,2048,0.171,0.171\n",
    )
    for i, name in enumerate(["00000001_000", "00000001_001", "00000002_000", "00000003_000"]):
        touch(tmp_path / f"images_{i:03}" / "images" / f"{name}.png")
    write(tmp_path / "test_list.txt", "00000001_000.png\n00000001_001.png\n")
    records = ADAPTERS["nih"](str(tmp_path))
    assert table(records, "patient_id", "age_months", "sex", "view", "label", "split") == {
        "00000001_000.png": ("nih-1", 684.0, "M", "PA", "Cardiomegaly", "test"),
        "00000001_001.png": ("nih-1", 696.0, "M", "PA", "Cardiomegaly|Emphysema", "test"),
        "00000003_000.png": ("nih-3", None, "F", "AP", "Hernia", "train"),
    }
    everyone = ADAPTERS["nih"](f"{tmp_path}:min_age_months=0")
    assert 108.0 in everyone.age_months


def test_lists_of_nih_that_are_no_lists(tmp_path, caplog):
    header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position\n"
    write(tmp_path / "Data_Entry_2017.csv", header + "a.png,Mass,1,57,M,PA\nb.png,Mass,2,57,M,PA\n")
    for name in "ab":
        touch(tmp_path / f"{name}.png")
    lists = {"test_list.txt": "\ufeffa.png\n", "train_val_list.txt": "b.png\n"}
    for name, text in lists.items():
        write(tmp_path / name, text)
    assert table(ADAPTERS["nih"](str(tmp_path)), "split") == {
        "a.png": ("test",),
        "b.png": ("train",),
    }
    write(tmp_path / "train_val_list.txt", "")
    write(tmp_path / "test_list.txt", "images/a.png\n")
    ADAPTERS["nih"](str(tmp_path))
    assert "test_list.txt names no image of the table" in caplog.text
    touch(tmp_path / "test_list.txt", "a.png".encode("utf-16"))
    with pytest.raises(DataError, match=r"test_list\.txt cannot be read as a list of names"):
        ADAPTERS["nih"](str(tmp_path))


@pytest.mark.parametrize("layout", ["inside", "parent", "renamed"])
def test_chexpert(tmp_path, layout):
    folder = tmp_path / ("CheXpert-v1.0-small" if layout != "renamed" else "images")
    header = (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
        "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
        "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
    )
    root = "CheXpert-v1.0-small"
    one = f"{root}/train/patient00001/study1/view1_frontal.jpg"
    two = f"{root}/train/patient00002/study2/view2_lateral.jpg"
    three = f"{root}/train/patient00003/study1/view3_frontal.jpg"
    table_folder = tmp_path if layout == "parent" else folder
    write(
        table_folder / "train.csv",
        f"{header}{one},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0\n"
        f"{two},Male,0,Lateral,,,,1.0,,,-1.0,,,,,,,,\n"
        f"{three},Unknown,12,Frontal,PA,,,1.0,,,,,,,,,,,\n",
    )
    valid = f"{root}/valid/patient64541/study1/view4_frontal.jpg"
    write(table_folder / "valid.csv", f"{header}{valid},Male,73,Frontal,AP,,,1.0,,,,,,,,,,,\n")
    for path in (one, two, three, valid):
        touch(folder / path.partition("/")[2])
    records = ADAPTERS["chexpert"](str(table_folder))
    assert all(os.path.exists(path) for path in records.image_path)
    assert table(records, "patient_id", "age_months", "sex", "view", "label", "split") == {
        "view1_frontal.jpg": ("chexpert-00001", 816.0, "F", "AP", "No Finding", "train"),
        "view2_lateral.jpg": ("chexpert-00002", None, "M", "Lateral", "Cardiomegaly", "train"),
        "view4_frontal.jpg": ("chexpert-64541", 876.0, "M", "AP", "Cardiomegaly", "validation"),
    }
    assert table(records, "uncertain")["view2_lateral.jpg"] == (("Edema",),)


def test_mimic_cxr(tmp_path):
    metadata = "dicom_id,subject_id,study_id,ViewPosition,Rows\nabc,10000032,50414267,PA,3056\n"
    touch(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", gzip.compress(metadata.encode()))
    write(
        tmp_path / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split\nabc,50414267,10000032,validate\n",
    )
    image = touch(tmp_path / "files" / "p10" / "p10000032" / "s50414267" / "abc.jpg")
    records = ADAPTERS["mimic_cxr"](str(tmp_path))
    assert records.image_path.tolist() == [str(image)]
    assert table(records, "patient_id", "view", "split", "age_months") == {
        "abc.jpg": ("mimic-10000032", "PA", "validation", None)
    }


def test_padchest(tmp_path):
    write(
        tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
        "ViewPosition_DICOM,Projection,Pediatric,Labels\n"
        "0,a.png,0,20140915,s1,p1,1930.0,F,POSTEROANTERIOR,PA,No,\"['normal', ' ']\"\n"
        "1,b.png,0,20140915,s2,p2,1950,M,LATERAL,L,No,\"['pneumonia', 'nodule']\"\n"
        "2,c.png,0,20140915,s3,p3,2010,M,LATERAL,L,PED,['normal']\n"
        "3,d.png,0,20140915,s4,p4,,O,,AP,No,\n",
    )
    for name in "abcd":
        touch(tmp_path / "0" / f"{name}.png")
    records = ADAPTERS["padchest"](str(tmp_path))
    assert all(os.path.exists(path) for path in records.image_path)
    assert table(records, "patient_id", "age_months", "sex", "view", "label") == {
        "a.png": ("padchest-p1", 1008.0, "F", "PA", "normal"),
        "b.png": ("padchest-p2", 768.0, "M", "L", "nodule|pneumonia"),
        "d.png": ("padchest-p4", None, "", "AP", ""),
    }


def test_vindr_cxr(tmp_path):
    rows = [
        # Three readers; 14 = No finding.
        *(f"agreed,Cardiomegaly,3,R{i},1,1,2,2" for i in (1, 2)),
        *("agreed,No finding,14,R3,,,,", "agreed,Cardiomegaly,3,R1,3,3,4,4"),
        *(f"normal,No finding,14,R{i},,,," for i in (1, 2, 3)),
        *(f"several,{name},0,R{i},1,1,2,2" for i in (1, 2, 3) for name in ("Nodule/Mass", "ILD")),
        *("alone,ILD,5,R1,1,1,2,2", "alone,ILD,5,R2,,,,", "alone,No finding,14,R3,,,,"),
        *("torn,ILD,5,R1,1,1,2,2", "torn,Calcification,2,R2,,,,", "torn,No finding,14,R3,,,,"),
    ]
    header = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    write(tmp_path / "train.csv", header + "\n".join(rows) + "\n")
    for name in ("agreed", "normal", "several", "alone", "torn"):
        touch(tmp_path / "train" / f"{name}.dicom")
    touch(tmp_path / "test" / "held.dicom")
    records = ADAPTERS["vindr_cxr"](str(tmp_path))
    assert table(records, "label", "split") == {
        "agreed.dicom": ("Cardiomegaly", "train"),
        "normal.dicom": ("No finding", "train"),
        "several.dicom": ("ILD|Nodule/Mass", "train"),
        "alone.dicom": ("ILD", "train"),
        "torn.dicom": ("", "train"),
        "held.dicom": ("", "test"),
    }
    found = table(records, "uncertain", "boxes")
    assert found["torn.dicom"][0] == ("Calcification", "ILD")  # One reader of three each.
    assert found["agreed.dicom"][0] == ()
    assert found["agreed.dicom"][1][-1] == Box(3, 3, 4, 4, "Cardiomegaly")
    assert [len(found[f"{name}.dicom"][1]) for name in ("agreed", "normal", "alone")] == [3, 0, 1]


@pytest.mark.parametrize("labels", [True, False])
def test_vindr_cxr_of_physionet(tmp_path, labels):
    """Annotations lie beside the images; the consensus for testing names no reader."""
    folder = tmp_path / "annotations"
    rows = "".join(f"aaa,R{i},Cardiomegaly,1,1,9,9\nccc,R{i},No finding,,,,\n" for i in (1, 2, 3))
    corners = "x_min,y_min,x_max,y_max"
    write(folder / "annotations_train.csv", f"image_id,rad_id,class_name,{corners}\n{rows}")
    write(
        folder / "annotations_test.csv",
        f"image_id,class_name,{corners}\nbbb,Cardiomegaly,1,2,3,4\n",
    )
    if labels:  # They hold diagnoses that have no box.
        rows = "".join(f"aaa,R{i},1,{int(i < 3)},0\nccc,R{i},0,0,1\n" for i in (1, 2, 3))
        header = "image_id,rad_id,Cardiomegaly,Tuberculosis,No finding\n"
        write(folder / "image_labels_train.csv", header + rows)
    for name in ("train/aaa", "train/ccc", "test/bbb"):
        touch(tmp_path / f"{name}.dicom")
    assert table(ADAPTERS["vindr_cxr"](str(tmp_path)), "label", "split") == {
        "aaa.dicom": ("Cardiomegaly|Tuberculosis" if labels else "Cardiomegaly", "train"),
        "ccc.dicom": ("No finding", "train"),
        "bbb.dicom": ("Cardiomegaly", "test"),
    }
    boxes = table(ADAPTERS["vindr_cxr"](str(tmp_path)), "boxes")
    assert boxes["bbb.dicom"] == ((Box(1, 2, 3, 4, "Cardiomegaly"),),)
    assert len(boxes["aaa.dicom"][0]) == 3


def test_vindr_pcxr(tmp_path, caplog):
    header = (
        "image_id,rad_ID,No finding,Bronchitis,Brocho-pneumonia,Other disease,Bronchiolitis,"
        "Situs inversus,Pneumonia,Pleuro-pneumonia,Diagphramatic hernia,Tuberculosis,"
        "Congenital emphysema,CPAM,Hyaline membrane disease,Mediastinal tumor,Lung tumor\n"
    )
    row = "{},R1," + ",".join("{}" for _ in range(15)) + "\n"

    def marks(*positive):
        return [int(i in positive) for i in range(15)]

    write(
        tmp_path / "image_labels_train.csv",
        header + row.format("a" * 32, *marks(2)) + row.format("b" * 32, *marks(1, 6)),
    )
    write(tmp_path / "image_labels_test.csv", header + row.format("c" * 32, *marks(8)))
    for split, name, age in (("train", "a", "005M"), ("train", "b", "n/a"), ("test", "c", "011D")):
        data = dicom_bytes(ramp(), PatientAge=age, PatientSex="F", remove=("StudyDate",))
        touch(tmp_path / split / f"{name * 32}.dicom", data)
    records = ADAPTERS["vindr_pcxr"](str(tmp_path))
    assert table(records, "label", "split", "age_months", "sex", "patient_id") == {
        f"{'a' * 32}.dicom": ("Brocho-pneumonia", "train", 5.0, "F", ""),
        f"{'b' * 32}.dicom": ("Bronchitis|Pneumonia", "train", None, "F", ""),
        f"{'c' * 32}.dicom": (
            "Diagphramatic hernia",
            "test",
            pytest.approx(11 / 30.4375),
            "F",
            "",
        ),
    }
    (tmp_path / "train" / f"{'b' * 32}.dicom").unlink()
    rows = f"{'a' * 32},Brocho-pneumonia,1.5,2,30,40\n{'c' * 32},No finding,,,,\n"
    write(
        tmp_path / "annotations_train.csv", "image_id,class_name,x_min,y_min,x_max,y_max\n" + rows
    )
    partial = ADAPTERS["vindr_pcxr"](f"{tmp_path}:headers=no")
    assert not partial.has_age.any()
    assert "1 of 3 images listed are not on disk" in caplog.text
    assert partial.boxes.tolist() == [(Box(1.5, 2, 30, 40, "Brocho-pneumonia"),), ()]
