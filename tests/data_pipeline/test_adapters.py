"""Each public layout, in small, as its source gives it, quirks included."""

import gzip
import json
import math
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_files import dicom_bytes, ramp
from PIL import Image

from data_pipeline.adapters import ADAPTERS
from data_pipeline.doubts import doubtful_spellings
from data_pipeline.errors import DataError
from data_pipeline.manifest import Box
from data_pipeline.records import Records
from data_pipeline.splits import Split, check_unseen, write_split


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write(path: Path, text: str) -> Path:
    return touch(path, text.encode())


def table(records, *columns):
    """Rows by file name: `{name: (column, ...)}`."""
    names = [Path(path).name for path in records.image_path]
    values = [getattr(records, column) for column in columns]
    rows = {
        name: tuple(
            None if isinstance(v, float | np.floating) and math.isnan(v) else v for v in row
        )
        for name, *row in zip(names, *values, strict=True)
    }
    assert len(rows) == len(names)
    return rows


def test_every_source_of_the_readme_is_there():
    assert set(ADAPTERS) == {
        *("manifest", "folder", "phantom", "aihub", "vindr_pcxr", "nih", "chexpert", "mimic_cxr"),
        *("padchest", "vindr_cxr", "kermany", "rsna_bone_age", "grazpedwri"),
    }


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"phantom"}))
def test_a_missing_place_is_one_clear_line(name, tmp_path):
    with pytest.raises(DataError, match=r"none.* does not exist") as caught:
        ADAPTERS[name](str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"phantom", "manifest"}))
def test_an_empty_folder_is_one_clear_line(name, tmp_path):
    with pytest.raises(DataError) as caught:
        ADAPTERS[name](str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_unknown_options_are_named_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="unknown option 'age'; known options: min_age_months"):
        ADAPTERS["nih"](f"{tmp_path}:age=3")
    with pytest.raises(DataError, match="min_age_months is 'x'; expected a number"):
        ADAPTERS["nih"](f"{tmp_path}:min_age_months=x")


class TestFolder:
    def test_a_class_a_subfolder_in_natural_order(self, tmp_path):
        for name in ("film10.png", "film2.PNG", ".hidden.png", "notes.txt"):
            touch(tmp_path / "mass" / name)
        touch(tmp_path / "normal" / "deep" / "a.jpeg")
        touch(tmp_path / ".cache" / "b.png")
        records = ADAPTERS["folder"](str(tmp_path))
        assert [Path(path).name for path in records.image_path] == [
            "film2.PNG",
            "film10.png",
            "a.jpeg",
        ]
        assert records.label.tolist() == ["mass", "mass", "normal"]
        assert set(records.split) == {""}
        assert all(os.path.isabs(path) for path in records.image_path)

    def test_a_level_of_splits(self, tmp_path):
        for split in ("train", "Val", "test"):
            touch(tmp_path / split / "normal" / f"{split}.png")
        records = ADAPTERS["folder"](str(tmp_path))
        assert table(records, "split", "label") == {
            "train.png": ("train", "normal"),
            "Val.png": ("validation", "normal"),
            "test.png": ("test", "normal"),
        }

    def test_unlabelled(self, tmp_path):
        touch(tmp_path / "a.dcm", b"junk")
        touch(tmp_path / "hospital" / "b.tif")
        records = ADAPTERS["folder"](f"{tmp_path}:labels=none")
        assert table(records, "label") == {"a.dcm": ("",), "b.tif": ("",)}
        assert ADAPTERS["folder"](str(tmp_path)).label.tolist() == ["", "hospital"]

    def test_dicom_without_suffix(self, tmp_path):
        image = dicom_bytes(ramp(), PatientAge="003M")
        for name in ("IM0001", "1.2.840.113", "DICOMDIR"):
            touch(tmp_path / name, image)
        touch(tmp_path / "README", b"notes")
        records = ADAPTERS["folder"](str(tmp_path))
        assert table(records, "age_months") == {"IM0001": (3.0,), "1.2.840.113": (3.0,)}

    def test_dicom_without_preamble(self, tmp_path):
        """Old archives, in both encodings; a text that begins alike is none."""
        explicit = dicom_bytes(ramp())[132:]
        implicit = b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + b"\x08\0\x60\0\2\0\0\0DX"
        for name, content in (("IM0099", explicit), ("IM0100", implicit), ("note", b"\x08\0text")):
            touch(tmp_path / name, content)
        records = ADAPTERS["folder"](f"{tmp_path}:headers=no")
        assert [Path(path).name for path in records.image_path] == ["IM0099", "IM0100"]

    def test_one_image(self, tmp_path):
        touch(tmp_path / "mass" / "a.dcm", dicom_bytes(ramp(), PatientAge="003M"))
        touch(tmp_path / "mass" / "b.dcm")
        records = ADAPTERS["folder"](str(tmp_path / "mass" / "a.dcm"))
        assert table(records, "label", "age_months") == {"a.dcm": ("", 3.0)}
        write(tmp_path / "m.csv", "image_path\nmass/a.dcm\n")
        with pytest.raises(
            DataError, match=r"neither a folder nor an image; a CSV file is named mani"
        ):
            ADAPTERS["folder"](str(tmp_path / "m.csv"))

    @pytest.mark.parametrize("beside", ["preprocessing.json", "model.json", "metrics.json", ""])
    def test_workdirs_of_runs_are_left_out(self, tmp_path, caplog, beside):
        """Their figures became a class."""
        caplog.set_level("INFO", logger="data_pipeline")
        touch(tmp_path / "mass" / "a.png")
        touch(tmp_path / "normal" / "b.png")
        write(tmp_path / "normal" / "config.json", "{}")  # Not of this project.
        run = tmp_path / "runs" / "finetune"
        write(run / "config.json", '{"task": "finetune", "data": {}}')
        touch(run / (beside or "log.txt"))
        touch(run / "figures" / "saliency" / "c.png")
        records = ADAPTERS["folder"](str(tmp_path))
        assert set(records.label) == {"mass", "normal"}
        assert f"{run} is the workdir of a run; left out" in caplog.text
        # Nor where the data themselves were named as workdir.
        (run / "config.json").rename(tmp_path / "config.json")
        (run / "figures").rename(tmp_path / "figures")
        assert set(ADAPTERS["folder"](str(tmp_path)).label) == {"mass", "normal"}

    def test_dicom_headers(self, tmp_path):
        touch(tmp_path / "a.dcm", dicom_bytes(ramp(), PatientAge="003M", PatientSex="M"))
        touch(tmp_path / "b.dcm", dicom_bytes(ramp(), PatientAge="", ViewPosition="AP"))
        touch(tmp_path / "c.png")
        records = ADAPTERS["folder"](str(tmp_path))
        rows = table(records, "age_months", "sex", "view")
        assert rows["a.dcm"] == (3.0, "M", "")
        assert rows["b.dcm"] == (pytest.approx(2.99, abs=0.01), "", "AP")
        assert rows["c.png"] == (None, "", "")
        first, second, third = records.patient_id
        assert first == second != third == ""
        assert "4711" not in first
        plain = ADAPTERS["folder"](f"{tmp_path}:headers=no")
        assert not plain.has_age.any()

    def test_headers_of_many_images_are_remembered(self, tmp_path, monkeypatch):
        from data_pipeline.adapters import headers

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memory"))
        monkeypatch.setattr(headers, "_REMEMBER_FROM", 2)
        for name in "abc":
            touch(tmp_path / "images" / f"{name}.dcm", dicom_bytes(ramp(), PatientAge="003M"))
        place = str(tmp_path / "images")
        first = ADAPTERS["folder"](place)
        (memory,) = (tmp_path / "memory").rglob("*.npz")
        assert b"4711" not in memory.read_bytes()
        monkeypatch.setattr(headers, "_read", None)  # Not read again.
        second = ADAPTERS["folder"](place)
        np.testing.assert_array_equal(first.age_months, second.age_months)
        assert first.patient_id.tolist() == second.patient_id.tolist()

    @pytest.mark.parametrize("word", ["ANONYMOUS", "anonymized", "Unknown", "N/A", "00000", "xxx"])
    def test_a_word_for_nobody_is_no_identifier(self, tmp_path, caplog, word):
        for name in "abcd":
            patient = word if name < "c" else name
            touch(tmp_path / f"{name}.dcm", dicom_bytes(ramp(), PatientID=patient))
        records = ADAPTERS["folder"](str(tmp_path))
        assert (records.patient_id == "").tolist() == [True] * 2 + [False] * 2
        assert "2 images carry a PatientID that is a placeholder" in caplog.text
        assert word not in caplog.text.replace("such as ANONYMOUS", "")

    def test_identifiers_that_differ_in_spelling_are_found_in_and_between_runs(
        self, tmp_path, caplog
    ):
        patients = {"a": ("114", "p1", "p2"), "b": ("0114", "P1 ", "p3"), "c": ("114", "q1", "q2")}
        for folder, names in patients.items():
            for i, patient in enumerate(names):
                touch(tmp_path / folder / f"{i}.dcm", dicom_bytes(ramp(), PatientID=patient))
        first, second, third = (ADAPTERS["folder"](f"{tmp_path / name}") for name in "abc")
        both = Records.concatenate([first, second])
        assert len(set(both.patient)) == 6
        ((message, rows),) = doubtful_spellings(both)
        assert all(f"'PatientID of {each.image_path[1]}'" in message for each in (first, second))
        assert rows.tolist() == [0, 1, 3, 4]
        nobody = first.take([])
        write_split(tmp_path / "split.csv", Split(train=first, validation=nobody, test=nobody))
        for patient_ids in ("shared", "source"):
            if patient_ids == "source":  # Each stage opens one folder in another spelling.
                second = second.replace(source=first.source)
            caplog.clear()
            check_unseen(
                tmp_path / "split.csv", second.with_patients(patient_ids), patient_ids, "it saw"
            )
            assert "it saw patients whose ids differ from some of these" in caplog.text
            assert f"PatientID of {second.image_path[0]}" in caplog.text
        with pytest.raises(DataError, match="it saw 1 of these patients"):
            check_unseen(tmp_path / "split.csv", third, "shared", "it saw")

    def test_splits_of_versions_without_spellings_still_know_the_patient(self, tmp_path):
        touch(tmp_path / "a.dcm", dicom_bytes(ramp(), PatientID="114"))
        records = ADAPTERS["folder"](str(tmp_path))
        before = np.array([records.patient_id[0].split(":")[1]], dtype=object)
        assert records.replace(patient_id=before).patient.tolist() == records.patient.tolist()

    @pytest.mark.parametrize("field", ["PatientBirthDate", "PatientSex"])
    def test_nor_is_one_of_several_people(self, tmp_path, caplog, field):
        values = {"PatientBirthDate": ["20200115", "20190203"], "PatientSex": ["F", "M"]}[field]
        for i, name in enumerate("abcd"):
            patient = "hospital" if i < 3 else "someone"
            image = dicom_bytes(ramp(), PatientID=patient, **{field: values[i % 2]})
            touch(tmp_path / f"{name}.dcm", image)
        records = ADAPTERS["folder"](str(tmp_path))
        assert (records.patient_id == "").tolist() == [True] * 3 + [False]
        assert "3 images carry a PatientID" in caplog.text

    def test_an_identifier_is_believed_however_many_images_carry_it(self, tmp_path, caplog):
        """Taken for a placeholder, images of one patient would come on both sides of the split."""
        image = dicom_bytes(ramp(), PatientID="p1", PatientBirthDate="19000101")
        for i in range(60):
            touch(tmp_path / f"{i}.dcm", image)
        touch(tmp_path / "z.dcm", dicom_bytes(ramp(), PatientID="p1", PatientSex="F"))
        assert len(set(ADAPTERS["folder"](str(tmp_path)).patient_id)) == 1
        assert "PatientID" not in caplog.text

    def test_placeholders_are_remembered_too(self, tmp_path, monkeypatch, caplog):
        from data_pipeline.adapters import headers

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memory"))
        monkeypatch.setattr(headers, "_REMEMBER_FROM", 2)
        for name in "abc":
            touch(tmp_path / "images" / f"{name}.dcm", dicom_bytes(ramp(), PatientID="none"))
        for _ in range(2):
            caplog.clear()
            records = ADAPTERS["folder"](str(tmp_path / "images"))
            assert set(records.patient_id) == {""}
            assert "3 images carry a PatientID" in caplog.text
        (memory,) = (tmp_path / "memory").rglob("*.npz")
        assert b"2020" not in memory.read_bytes()  # No birth date.

    def test_one_name_and_one_source_however_it_is_spelled(self, tmp_path, monkeypatch):
        """Leaks are found by comparing names, and names decide over places in the split."""
        touch(tmp_path / "images" / "mass" / "a.png")
        (tmp_path / "run").mkdir()
        monkeypatch.chdir(tmp_path / "run")
        plain = ADAPTERS["folder"](str(tmp_path / "images"))
        for place in ("../images", "../images/", f"{tmp_path}/images:headers=no"):
            spelled = ADAPTERS["folder"](place)
            assert spelled.image_path.tolist() == plain.image_path.tolist()
            assert spelled.source.tolist() == plain.source.tolist() == [f"folder:{tmp_path}/images"]

    def test_dicom_under_any_suffix(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="data_pipeline")
        image = dicom_bytes(ramp())
        names = ["CR.1.2.840.113", "CR000001.001", "DX1.IMA", "x.dic", "y.img", "IM0001"]
        for name in names:
            touch(tmp_path / name, image)
        for name in ("a.jpe", "b.jfif"):
            touch(tmp_path / name)
        for name in ("c.bmp", "d.BMP", "e.webp", "notes.txt", "f.img", "LICENSE", "g.dcm.bak"):
            touch(tmp_path / name, image if name.endswith("bak") else b"no image")
        records = ADAPTERS["folder"](str(tmp_path))
        found = {Path(path).name for path in records.image_path}
        assert found == {*names, "a.jpe", "b.jfif"}
        assert (records.patient_id != "").sum() == len(names)
        (line,) = [line for line in caplog.messages if "left out" in line]
        others = {"2 .bmp", "1 .webp", "1 .txt", "1 .img", "1 .bak", "1 without suffix"}
        assert "7 files left out: 2 .bmp, " in line
        assert set(line.partition("left out: ")[2].split(", ")) == others

    def test_only_other_files_are_named(self, tmp_path):
        touch(tmp_path / "a" / "x.bmp")
        with pytest.raises(DataError, match=r"no image found.*there are 1 \.bmp"):
            ADAPTERS["folder"](str(tmp_path))

    def test_usual_names_of_splits(self, tmp_path):
        for name in ("training", "dev", "Testing", "annotations"):
            touch(tmp_path / name / "mass" / ("a.png" if name != "annotations" else "a.json"))
        records = ADAPTERS["folder"](str(tmp_path))
        assert sorted(records.split) == ["test", "train", "validation"]
        assert set(records.label) == {"mass"}

    @pytest.mark.parametrize("options", ["", ":labels=none"])
    def test_splits_beside_other_folders_are_refused(self, tmp_path, options):
        """They became the classes train, val, test and masks."""
        for name in ("train", "val", "test", "masks"):
            touch(tmp_path / name / "mass" / "a.png")
        with pytest.raises(DataError, match="test, train, val would be splits, but masks beside"):
            ADAPTERS["folder"](str(tmp_path) + options)

    def test_a_data_set_one_level_deeper_is_not_a_class(self, tmp_path):
        """An archive unpacked inside the folder: all was of one class, and no split was kept."""
        for name in ("train", "test"):
            touch(tmp_path / "chest_xray" / name / "mass" / "a.png")
        with pytest.raises(DataError, match="chest_xray would be a class, but it holds the splits"):
            ADAPTERS["folder"](str(tmp_path))
        assert len(ADAPTERS["folder"](f"{tmp_path}:labels=none")) == 2
        assert set(ADAPTERS["folder"](str(tmp_path / "chest_xray")).split) == {"train", "test"}

    def test_classes_that_seem_to_be_splits_are_refused(self, tmp_path):
        for name in ("1.Training", "2.Validation"):
            touch(tmp_path / name / "mass" / "1.png")
        with pytest.raises(DataError, match=r"1\.Training and 2\.Validation would be classes; ren"):
            ADAPTERS["folder"](str(tmp_path))
        assert len(ADAPTERS["folder"](f"{tmp_path}:labels=none")) == 2
        touch(tmp_path / "a:b=c" / "x" / "test positive" / "1.png")
        touch(tmp_path / "a:b=c" / "x" / "test negative" / "1.png")
        assert len(ADAPTERS["folder"](f"{tmp_path}/a:b=c/x")) == 2

    def test_names_in_any_script_and_encoding(self, tmp_path):
        for name in ("5²3.png", "٣.png", os.fsdecode(b"f\xe9vrier.png")):
            touch(tmp_path / os.fsdecode(b"Tum\xe9ur") / name)
        records = ADAPTERS["folder"](str(tmp_path))
        assert len(records) == 3
        assert set(records.label) == {"Tum\\xe9ur"}  # As text: it is written to many files.

    def test_links_that_lead_back_are_not_followed(self, tmp_path):
        touch(tmp_path / "images" / "mass" / "a.png")
        touch(tmp_path / "images" / "normal" / "b.png")
        (tmp_path / "images" / "mass" / "loop").symlink_to("../mass")
        (tmp_path / "images" / "all").symlink_to(".")
        (tmp_path / "images" / "mass" / "other").symlink_to("../normal")
        (tmp_path / "images" / "normal" / "back").symlink_to("../mass")
        records = ADAPTERS["folder"](str(tmp_path / "images"))
        names = [path.removeprefix(f"{tmp_path}/images/") for path in records.image_path]
        assert names == ["mass/a.png", "mass/other/b.png", "normal/b.png", "normal/back/a.png"]
        (tmp_path / "images" / "knot").symlink_to("knot")
        assert len(ADAPTERS["folder"](str(tmp_path / "images"))) == 4

    def test_folders_that_link_to_each_other_end(self, tmp_path):
        names = [str(i) for i in range(12)]
        for name in names:
            touch(tmp_path / "mass" / name / "a.png")
            for other in names:
                (tmp_path / "mass" / name / f"to{other}").symlink_to(f"../{other}")
        assert 12 <= len(ADAPTERS["folder"](str(tmp_path))) <= 24

    def test_a_folder_that_may_not_be_read_is_one_clear_line(self, tmp_path, monkeypatch):
        touch(tmp_path / "mass" / "a.png")
        scandir = os.scandir

        def refusing(folder):
            if str(folder).endswith("mass"):  # Whoever runs the tests may be allowed everything.
                raise PermissionError(13, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refusing)
        with pytest.raises(DataError, match=r"mass cannot be read \(Permission denied\)"):
            ADAPTERS["folder"](str(tmp_path))


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


def test_kermany(tmp_path):
    radiographs = {
        "train/NORMAL/IM-0115-0001.jpeg": b"one",
        "train/NORMAL/NORMAL2-IM-0503-0001.jpeg": b"two",
        "train/NORMAL/NORMAL2-IM-0503-0001-0001.jpeg": b"two",
        "train/PNEUMONIA/person1_bacteria_1.jpeg": b"three",
        "train/PNEUMONIA/person1_virus_6.jpeg": b"again",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg": b"five5",
        "test/PNEUMONIA/person1_virus_7.jpeg": b"again",
    }
    for name, content in radiographs.items():
        touch(tmp_path / "chest_xray" / name, content)
    records = ADAPTERS["kermany"](f"{tmp_path}:classes=3")
    assert table(records, "patient_id", "label", "split") == {
        "IM-0115-0001.jpeg": ("kermany-train-im-0115", "NORMAL", "train"),
        "NORMAL2-IM-0503-0001-0001.jpeg": ("kermany-train-normal2-im-0503", "NORMAL", "train"),
        "person1_bacteria_1.jpeg": ("kermany-train-person1-bacteria", "BACTERIA", "train"),
        "NORMAL2-IM-1427-0001.jpeg": ("kermany-val-normal2-im-1427", "NORMAL", "validation"),
        # The repeat in training is left out, not the image in test.
        "person1_virus_7.jpeg": ("kermany-test-person1-virus", "VIRUS", "test"),
    }
    assert set(ADAPTERS["kermany"](str(tmp_path)).label) == {"NORMAL", "PNEUMONIA"}
    with pytest.raises(DataError, match="classes is 4"):
        ADAPTERS["kermany"](f"{tmp_path}:classes=4")


def build_original_kermany(root, names):
    for i, name in enumerate(names):
        touch(root / "CellData" / "chest_xray" / f"{name}.jpeg", str(i).encode())
    return str(root)


def test_kermany_as_on_mendeley(tmp_path):
    place = build_original_kermany(
        tmp_path,
        (
            "train/PNEUMONIA/BACTERIA-1008087-0001",
            "train/PNEUMONIA/BACTERIA-1008087-0002",
            "train/PNEUMONIA/VIRUS-40699-0001",
            "train/NORMAL/NORMAL-7422-0001",
            "test/NORMAL/NORMAL-7422-0002",
        ),
    )
    records = ADAPTERS["kermany"](f"{place}:classes=3")
    assert table(records, "patient_id", "label", "split") == {
        "BACTERIA-1008087-0001.jpeg": ("kermany-1008087", "BACTERIA", "train"),
        "BACTERIA-1008087-0002.jpeg": ("kermany-1008087", "BACTERIA", "train"),
        "VIRUS-40699-0001.jpeg": ("kermany-40699", "VIRUS", "train"),
        # One person: the leak is seen when the images are divided.
        "NORMAL-7422-0001.jpeg": ("kermany-7422", "NORMAL", "train"),
        "NORMAL-7422-0002.jpeg": ("kermany-7422", "NORMAL", "test"),
    }
    assert set(ADAPTERS["kermany"](place).label) == {"NORMAL", "PNEUMONIA"}


def test_numbers_of_kermany_that_begin_again_in_every_split(tmp_path):
    """Two splits use one name for different images."""
    names = [
        f"{split}/{kind}-{n}-0001"
        for split in ("train", "test")
        for kind, n in (("PNEUMONIA/VIRUS", 1), ("NORMAL/NORMAL", 2))
    ]
    records = ADAPTERS["kermany"](build_original_kermany(tmp_path, names))
    assert set(records.patient_id) == {f"kermany-{s}-{n}" for s in ("train", "test") for n in "12"}


@pytest.mark.parametrize("name", ["scan1", "person1", "IM0115", "BACTERIA-x-1", "COVID-1-1"])
def test_other_names_than_kermanys_are_refused(tmp_path, name):
    touch(tmp_path / "train" / "NORMAL" / "IM-0115-0001.jpeg", b"x")
    touch(tmp_path / "train" / "NORMAL" / f"{name}.jpeg", b"y")
    with pytest.raises(DataError, match=rf"1 of 2 files are not named as in .*{name}\.jpeg"):
        ADAPTERS["kermany"](str(tmp_path))


def test_files_of_kermany_in_the_wrong_folder_are_named(tmp_path, caplog):
    names = ("train/NORMAL/BACTERIA-1-0001", "train/NORMAL/NORMAL-2-0001")
    ADAPTERS["kermany"](build_original_kermany(tmp_path, names))
    assert "1 files are named like another class than that of their folder" in caplog.text
    assert "BACTERIA-1-0001.jpeg" in caplog.text


def test_files_of_macos_and_synology_are_passed_over(tmp_path):
    junk = b"\0\5\x16\7Mac OS X \xff\xfe"
    touch(tmp_path / "ker" / "train" / "NORMAL" / "IM-0115-0001.jpeg", b"x")
    touch(tmp_path / "ker" / "train" / "NORMAL" / "._IM-0115-0001.jpeg", junk)
    touch(tmp_path / "ker" / "train" / "NORMAL" / "@eaDir" / "IM-0116-0001.jpeg", junk)
    assert len(ADAPTERS["kermany"](str(tmp_path / "ker"))) == 1
    write(tmp_path / "rsna" / "boneage-training-dataset.csv", "id,boneage,male\n1,180,False\n")
    touch(tmp_path / "rsna" / "._boneage-training-dataset.csv", junk)
    touch(tmp_path / "rsna" / "boneage-training-dataset" / "1.png")
    touch(tmp_path / "rsna" / "boneage-training-dataset" / "._1.png", junk)
    assert len(ADAPTERS["rsna_bone_age"](str(tmp_path / "rsna"))) == 1
    write(tmp_path / "graz" / "dataset.csv", "filestem,patient_id,age,fracture_visible\na,1,2,\n")
    touch(tmp_path / "graz" / "._dataset.csv", junk)
    touch(tmp_path / "graz" / "@eaDir" / "a.png", junk)
    touch(tmp_path / "graz" / "images" / "a.png")
    (path,) = ADAPTERS["grazpedwri"](str(tmp_path / "graz")).image_path
    assert path.endswith("images/a.png")


class TestPartialDownloads:
    """What is there is kept, and the rest is counted."""

    def check(self, name, folder, caplog, *names):
        records = ADAPTERS[name](str(folder))
        assert [Path(path).name for path in records.image_path] == list(names)
        assert all(map(os.path.exists, records.image_path))
        assert "images listed are not on disk; left out" in caplog.text
        for path in records.image_path:
            os.unlink(path)
        with pytest.raises(DataError, match=r"none of the \d images listed was found"):
            ADAPTERS[name](str(folder))

    def test_padchest(self, tmp_path, caplog):
        """The first archive is missing: all paths were those of a flat folder."""
        header = "ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,Labels\n"
        rows = "x0.png,0,20140915,9,1930.0,['normal']\nx3.png,3,20140915,10,1930.0,['mass']\n"
        write(tmp_path / "PADCHEST_labels.csv", header + rows)
        touch(tmp_path / "3" / "x3.png")
        self.check("padchest", tmp_path, caplog, "x3.png")

    def test_chexpert(self, tmp_path, caplog):
        rows = [f"CheXpert-v1.0/train/patient{i:05}/study1/view1.jpg,Male,50" for i in range(3)]
        write(tmp_path / "train.csv", "\n".join(["Path,Sex,Age", *rows]))
        valid = "CheXpert-v1.0/valid/patient64541/study1/v.jpg,Male,50\n"
        write(tmp_path / "valid.csv", "Path,Sex,Age\n" + valid)
        touch(tmp_path / "CheXpert-v1.0" / "train" / "patient00002" / "study1" / "view1.jpg")
        self.check("chexpert", tmp_path, caplog, "view1.jpg")

    def test_mimic_cxr(self, tmp_path, caplog):
        rows = "a,10000032,50414267,PA\nb,11000032,50414268,PA\n"
        header = "dicom_id,subject_id,study_id,ViewPosition\n"
        write(tmp_path / "mimic-cxr-2.0.0-metadata.csv", header + rows)
        write(tmp_path / "mimic-cxr-2.0.0-split.csv", "dicom_id,split\na,train\nb,test\n")
        touch(tmp_path / "files" / "p11" / "p11000032" / "s50414268" / "b.jpg")
        self.check("mimic_cxr", tmp_path, caplog, "b.jpg")

    def test_rsna_bone_age(self, tmp_path, caplog):
        """An image of another split with the same number is another person's."""
        write(tmp_path / "boneage-training-dataset.csv", "id,boneage,male\n7,180,False\n")
        write(tmp_path / "boneage-test-dataset.csv", "Case ID,Sex\n7,F\n")
        touch(tmp_path / "boneage-training-dataset" / "7.png")
        self.check("rsna_bone_age", tmp_path, caplog, "7.png")


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


class TestAihub:
    def label(self, **values):
        content = {"meta": {"age": 14, "sex": "여", "id": "P1"}, "annotations": [{"name": "변비"}]}
        content["meta"].update(values)
        return json.dumps(content, ensure_ascii=False)

    def build(self, root):
        base = root / "소아 복부.X-ray" / "3.개방데이터" / "1.데이터"
        # macOS hands out names decomposed; labels come in both encodings.
        training = base / "Training"
        decomposed = unicodedata.normalize("NFD", "TS_2.변비_1")
        touch(training / "01.원천데이터" / decomposed / "film1.png")
        touch(training / "01.원천데이터" / "TS_정상" / "film2.png")
        touch(base / "Validation" / "01.원천데이터" / "VS_장중첩증" / "film1.png")
        labels = training / "02.라벨링데이터"
        touch(labels / "TL_2.변비_1" / "film1.json", b"\xef\xbb\xbf" + self.label().encode())
        touch(labels / "TL_정상" / "film2.json", self.label(age=3, id="P2").encode("cp949"))
        write(
            base / "Validation" / "02.라벨링데이터" / "VL_장중첩증" / "film1.json",
            self.label(age=7, sex="남", id="P3"),
        )
        return root

    def profile(self, tmp_path, **values):
        keys = {"class": "folder", "age": "meta.age", "age_unit": "months", "sex": "meta.sex",
                "patient_id": "meta.id"}  # fmt: skip
        return write(tmp_path / "profile.json", json.dumps(keys | values))

    def test_by_folder(self, tmp_path):
        root = self.build(tmp_path / "data")
        records = ADAPTERS["aihub"](f"{root}:profile={self.profile(tmp_path)}")
        columns = ("label", "age_months", "sex", "patient_id", "split")
        found = sorted(zip(*(getattr(records, c).tolist() for c in columns), strict=True))
        assert found == [
            ("constipation", 14.0, "F", "P1", "train"),
            ("intussusception", 7.0, "M", "P3", "test"),
            ("normal", 3.0, "F", "P2", "train"),
        ]

    def test_by_key_with_names_of_its_own(self, tmp_path):
        root = self.build(tmp_path / "data")
        profile = self.profile(
            tmp_path, **{"class": "annotations.0.name", "age_unit": "days"}
        )  # fmt: skip
        records = ADAPTERS["aihub"](f"{root}:profile={profile}")
        assert set(records.label) == {"constipation"}
        assert records.age_months.max() == pytest.approx(14 * 12 / 365.25)
        profile = self.profile(
            tmp_path, **{"class": "annotations.0.name", "classes": {"변비": "mass"}}
        )
        assert set(ADAPTERS["aihub"](f"{root}:profile={profile}").label) == {"mass"}

    def numbered(self, root, labels=("TL_정상", "TL_변비")):
        """Names begin again at 1 in every class."""
        for i, (images, label) in enumerate(zip(("TS_정상", "TS_변비"), labels, strict=True)):
            for image in range(3):
                touch(root / "Training" / images / f"{image}.png")
                content = self.label(age=10 * i + image, id=f"P{i}{image}")
                write(root / "Training" / label / f"{image}.json", content)
        return root

    def test_equal_names_in_two_folders_are_two_images(self, tmp_path):
        root = self.numbered(tmp_path / "data")
        records = ADAPTERS["aihub"](f"{root}:profile={self.profile(tmp_path)}")
        found = sorted(zip(records.age_months.tolist(), records.label, strict=True))
        assert found == [
            *((age, "normal") for age in (0.0, 1.0, 2.0)),
            *((age, "constipation") for age in (10.0, 11.0, 12.0)),
        ]
        assert len(set(records.patient_id)) == 6

    def test_labels_that_may_belong_to_several_images_are_refused(self, tmp_path):
        root = self.numbered(tmp_path / "data", labels=("TL_one", "TL_two"))
        with pytest.raises(DataError, match=r"TS_.*0\.png has a name that others have too.*TL_"):
            ADAPTERS["aihub"](f"{root}:profile={self.profile(tmp_path)}")

    def test_two_formats_of_one_image_are_refused(self, tmp_path):
        root = self.numbered(tmp_path / "data")
        touch(root / "Training" / "TS_변비" / "1.dcm")
        with pytest.raises(DataError, match=r"1\.dcm and .*1\.png share their name"):
            ADAPTERS["aihub"](f"{root}:profile={self.profile(tmp_path)}")

    def test_unknown_classes_are_named(self, tmp_path):
        root = self.build(tmp_path / "data")
        profile = self.profile(tmp_path, **{"class": "meta.id"})
        with pytest.raises(DataError, match="unknown class names P1, P2, P3; map them"):
            ADAPTERS["aihub"](f"{root}:profile={profile}")

    def test_without_patient_the_split_is_said_to_be_unknown(self, tmp_path, caplog):
        root = self.build(tmp_path / "data")
        ADAPTERS["aihub"](f"{root}:profile={self.profile(tmp_path, patient_id='')}")
        assert "cannot be known" in caplog.text

    def test_no_profile_names_the_command_that_writes_one(self, tmp_path):
        root = self.build(tmp_path / "data")
        with pytest.raises(DataError, match=r"python -m data_pipeline\.adapters\.aihub"):
            ADAPTERS["aihub"](str(root))
        done = subprocess.run(
            [sys.executable, "-m", "data_pipeline.adapters.aihub", str(root)],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["class"] == "folder"
        assert "meta.age  (int, in 3)" in done.stderr
        assert "annotations.0.name  (str, in 3)" in done.stderr
        assert "14" not in done.stderr  # Keys and types, never values.

    def test_archives_are_explained(self, tmp_path):
        touch(tmp_path / "Training" / "TS_변비.zip.part0")
        touch(tmp_path / "Training" / "TL_변비.zip")
        with pytest.raises(DataError, match=r"2 archives .* still packed.*cat X\.zip\.part"):
            ADAPTERS["aihub"](str(tmp_path))

    def test_the_synthetic_look_alike_is_refused_by_name(self, tmp_path):
        touch(tmp_path / "Source_Data" / "1.Pyloric_Stenosis" / "1_1816.png")
        with pytest.raises(DataError, match="synthetic set of five classes, not 71432"):
            ADAPTERS["aihub"](str(tmp_path))


def test_real_manifests(real_images):
    children = ADAPTERS["manifest"](str(real_images / "children" / "manifest.csv"))
    assert len(children) == 6247
    adults = ADAPTERS["folder"](f"{real_images / 'adult'}:labels=none")
    assert len(adults) > 11_000
    headers = ADAPTERS["folder"](str(real_images / "dicom"))
    assert headers.has_age.sum() >= 2
