"""A folder of images: classes from folders, headers and names."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_files import dicom_bytes, ramp
from layouts import table, touch, write

from data_pipeline.adapters import ADAPTERS
from data_pipeline.doubts import doubtful_spellings
from data_pipeline.errors import DataError
from data_pipeline.records import Records
from data_pipeline.splits import Split, check_unseen, write_split


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
