"""The infant abdomens of AI-Hub, whose labels are JSON in Korean."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from layouts import touch, write

from data_pipeline.adapters import ADAPTERS
from data_pipeline.errors import DataError


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
            cwd=Path(__file__).resolve().parents[3],
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
