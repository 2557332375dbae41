"""What every adapter does with missing, empty and partial downloads."""

import os
from pathlib import Path

import pytest
from layouts import touch, write

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError


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


def test_real_manifests(real_images):
    children = ADAPTERS["manifest"](str(real_images / "children" / "manifest.csv"))
    assert len(children) == 6247
    adults = ADAPTERS["folder"](f"{real_images / 'adult'}:labels=none")
    assert len(adults) > 11_000
    headers = ADAPTERS["folder"](str(real_images / "dicom"))
    assert headers.has_age.sum() >= 2
