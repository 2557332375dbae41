import csv
import math
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest import Box, Records, read_manifest, spelled_apart, write_manifest
from data_pipeline.splits import patient_keys

COLUMNS = ("image_path", "patient_id", "sex", "view", "label", "split", "site")


def _write(folder, text, name="films.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def _assert_equal(a: Records, b: Records):
    for name in COLUMNS:
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    np.testing.assert_array_equal(a.age_months, b.age_months)


def test_every_column_is_read(tmp_path):
    path = _write(
        tmp_path,
        "image_path,patient_id,age_months,sex,view,label,split,site\n"
        "a.png,p1,3.5,F,AP,mass,train,north\n",
    )
    records = read_manifest(path)
    assert records.image_path.tolist() == [str(tmp_path / "a.png")]
    assert [getattr(records, n)[0] for n in COLUMNS[1:]] == [
        "p1", "F", "AP", "mass", "train", "north",
    ]  # fmt: skip
    assert records.age_months.dtype == np.float32
    assert records.age_months[0] == 3.5
    assert records.source.tolist() == [f"manifest:{path}"]


def test_paths_are_relative_to_the_manifest_and_not_to_the_process(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    _write(tmp_path / "sub", "image_path\nx/a.png\n/absolute/b.png\n../c.png\n")
    monkeypatch.chdir(tmp_path)
    records = read_manifest("sub/films.csv")
    assert [os.path.normpath(p) for p in records.image_path] == [
        str(tmp_path / "sub" / "x" / "a.png"),
        "/absolute/b.png",
        str(tmp_path / "c.png"),
    ]


def test_one_file_has_one_name_whatever_the_detour(tmp_path):
    """Leaks are found by comparing names."""
    (tmp_path / "lists").mkdir()
    direct = read_manifest(_write(tmp_path, "image_path\nimages/a.png\n"))
    detour = read_manifest(_write(tmp_path / "lists", "image_path\n../images/./a.png\n"))
    assert direct.image_path.tolist() == detour.image_path.tolist()
    again = read_manifest(tmp_path / "lists" / ".." / "films.csv")
    assert again.source.tolist() == direct.source.tolist()


def test_byte_order_mark_and_windows_lines(tmp_path):
    path = _write(tmp_path, "image_path,label\r\na.png,mass\r\n", encoding="utf-8-sig")
    records = read_manifest(path)
    assert records.label.tolist() == ["mass"]
    assert records.image_path.tolist() == [str(tmp_path / "a.png")]


def test_quoting(tmp_path):
    path = _write(tmp_path, 'image_path,label\n"a, b.png","air ""liquid"" shadow, left"\n')
    records = read_manifest(path)
    assert records.image_path.tolist() == [str(tmp_path / "a, b.png")]
    assert records.label.tolist() == ['air "liquid" shadow, left']


def test_empty_values_are_unknown_and_never_zero(tmp_path):
    path = _write(tmp_path, "image_path,patient_id,age_months,sex,label,split\na.png,,,,,\n\n")
    records = read_manifest(path)
    assert len(records) == 1
    assert math.isnan(records.age_months[0])
    assert not records.has_age[0]
    assert not records.has_label[0]
    assert (records.patient_id[0], records.sex[0], records.split[0]) == ("", "", "")


def test_newborns_have_an_age(tmp_path):
    records = read_manifest(_write(tmp_path, "image_path,age_months\na.png,0\nb.png,nan\n"))
    assert records.has_age.tolist() == [True, False]


def test_capitals_and_spaces_in_the_header_do_not_matter(tmp_path, caplog):
    """A `Split` that was passed over in silence would put test patients into training."""
    (tmp_path / "m.csv").write_text(
        "Image_Path,Patient ID,Label,SPLIT,Age-Months,Folder\na.png,p1,mass,test,7,x\n"
    )
    with caplog.at_level("INFO", logger="data_pipeline"):
        records = read_manifest(tmp_path / "m.csv")
    assert records.patient_id.tolist() == ["p1"]
    assert records.split.tolist() == ["test"]
    assert records.age_months.tolist() == [7]
    assert "columns not used: Folder (known: image_path, patient_id" in caplog.text


def test_unknown_columns_are_ignored_and_order_does_not_matter(tmp_path):
    path = _write(tmp_path, "comment,label,image_path, patient_id \nhello,mass,a.png,p1\n")
    records = read_manifest(path)
    assert records.label.tolist() == ["mass"]
    assert records.patient_id.tolist() == ["p1"]


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((name, "validation") for name in ("VAL", "dev", "Validate", "eval")),
        *(("Training", "train"), ("test", "test"), ("TESTING", "test")),
    ],
)
def test_usual_names_of_splits(tmp_path, word, split):
    records = read_manifest(_write(tmp_path, f"image_path,split\na.png,{word}\n"))
    assert records.split.tolist() == [split]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,mass\n", r"no column 'image_path' \(columns found: path, label\)"),
        ("", "no column 'image_path'"),
        ("image_path,age_months\na.png,3 months\n", "line 2: age_months is '3 months'"),
        ("image_path,age_months\na.png,1\nb.png,-1\n", "line 3: age_months is -1"),
        ("image_path,age_months\na.png,inf\n", "age_months is inf"),
        ("image_path,age_months\na.png,20000\n", "age_months is 20000"),
        ("image_path,age_months\na.png,1_5\n", "line 2: age_months is '1_5'"),
        ("image_path;label\na.png;mass\n", "is separated by semicolons; save it as CSV UTF-8"),
        ("Label\tImage_Path\nmass\ta.png\n", "is separated by tabs; save it as CSV UTF-8"),
        ("PatientID,patientid,image_path\np,p,a.png\n", "more than once: PatientID, patientid"),
        ('image_path,label\na.png,"ma"ss\n', "line 2: not valid CSV"),
        ('image_path,label\na.png,"mass\nleft"\n', "line 2: the value of 'label' goes on over sev"),
        ("image_path,split\na.png,holdout\n", "line 2: split is 'holdout'"),
        ("image_path,sex\na.png,W\n", "line 2: sex is 'W'"),
        ("image_path,label,label\na.png,mass,normal\n", "column 'label' more than once"),
        ("image_path,label\na.png,mass, left\n", "line 2: 3 values for 2 columns"),
        ("image_path,label\na.png\n", "line 2: 1 values for 2 columns"),
        ("image_path,label\n,mass\n", "line 2: image_path is empty"),
        ("image_path,label\n", "lists no image"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path, text, message):
    path = _write(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(DataError, match=r"does not exist"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"is a folder.*folder:"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"not UTF-8"):
        read_manifest(_write(tmp_path, "image_path,label\na.png,Säugling\n", encoding="latin-1"))
    for content, what in (
        ("image_path\na.png\n".encode("utf-16"), "UTF-16 text"),
        (b"PK\x03\x04\x14\x00\x06\x00", "an Excel workbook"),
    ):
        (tmp_path / "films.csv").write_bytes(content)
        with pytest.raises(DataError, match=f"is {what}, not CSV text; save it as CSV UTF-8"):
            read_manifest(tmp_path / "films.csv")


def test_an_unclosed_quote_takes_no_rows_with_it(tmp_path):
    """Five rows would become two, the rest of the file one long label."""
    rows = 'a.png,normal\nb.png,"mass\nc.png,normal\nd.png,mass\ne.png,normal\n'
    with pytest.raises(DataError, match=r"line 3: not valid CSV.*a quote that is not closed"):
        read_manifest(_write(tmp_path, "image_path,label\n" + rows))
    # Closed by chance, further down.
    rows = 'a.png,normal\nb.png,"mass\nc.png,normal\nd.png,mass"\ne.png,normal\n'
    with pytest.raises(DataError, match="line 3: the value of 'label' goes on over several lines"):
        read_manifest(_write(tmp_path, "image_path,label\n" + rows))
    assert len(read_manifest(_write(tmp_path, 'image_path,label\n"a\nb.png",mass\n'))) == 1
    # A column that is not used may hold whole reports.
    report = 'image_path,report,label\na.png,"Chest.\nNo fracture.",mass\nb.png,,mass\n'
    assert len(read_manifest(_write(tmp_path, report))) == 2


def test_rows_of_commas_at_the_end_are_none(tmp_path):
    records = read_manifest(_write(tmp_path, "image_path,label\na.png,mass\n,\n , \n,,,,\n"))
    assert records.label.tolist() == ["mass"]


def test_names_of_columns_as_dicom_has_them(tmp_path, caplog):
    """A PatientID that was passed over would divide the images of a patient one by one."""
    caplog.set_level("INFO", logger="data_pipeline")
    text = "ImagePath,PatientID,PatientSex,ViewPosition,PatientAge\na.png,p1,M,AP,003M\n"
    records = read_manifest(_write(tmp_path, text))
    assert (records.patient_id[0], records.sex[0], records.view[0]) == ("p1", "M", "AP")
    assert not records.has_age.any()  # Years in one table, `003M` in another.
    assert "columns not used: PatientAge (known" in caplog.text
    both = read_manifest(_write(tmp_path, "image_path,PatientID,patient_id\na.png,x,p1\n"))
    assert both.patient_id.tolist() == ["p1"]


def test_empty_cells_as_other_programs_write_them(tmp_path, caplog):
    records = read_manifest(
        _write(
            tmp_path,
            "image_path,patient_id,age_months,sex,label,view\n"
            "a.png,nan,NA,N/A,null,NA\nb.png,NaN,2,F,mass,\n",
        )
    )
    assert records.patient_id.tolist() == ["", ""]
    assert records.label.tolist() == ["", "mass"]
    assert records.has_age.tolist() == [False, True]
    assert records.sex.tolist() == ["", "F"]
    assert records.view[0] == "NA"
    assert (
        "taken as empty: age_months in 1 rows, label in 1 rows, patient_id in 2 rows, sex in 1 rows"
        in caplog.text
    )


def test_words_that_may_stand_for_nothing_are_named(tmp_path, caplog):
    """And believed: there may be a condition of that name."""
    text = "image_path,patient_id,label\na.png,ANONYMOUS,none\nb.png,ANONYMOUS,none\n"
    records = read_manifest(_write(tmp_path, text))
    assert records.label.tolist() == ["none", "none"]
    assert "label is 'none' in 2 rows, and counts as a condition" in caplog.text
    assert "patient_id is 'ANONYMOUS' in 2 rows, and counts as one patient" in caplog.text


def test_names_of_files_need_not_be_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"f\xe9vrier.png")).write_bytes(b"")
    (tmp_path / "m.csv").write_bytes(b"image_path,label\nf\xe9vrier.png,mass\n")
    records = read_manifest(tmp_path / "m.csv")
    assert os.path.exists(records.image_path[0])
    for relative in (True, False):
        write_manifest(tmp_path / "out.csv", records, relative=relative)
        _assert_equal(read_manifest(tmp_path / "out.csv"), records)
    # A table in another encoding, whose names lead nowhere.
    (tmp_path / "m.csv").write_bytes(b"image_path,label\nao\xfbt.png,mass\n")
    with pytest.raises(DataError, match="line 2: not UTF-8 text; save it as CSV UTF-8"):
        read_manifest(tmp_path / "m.csv")


def test_spelled_apart():
    names = ["P17", "p17 ", "p\u200b17", "p18", "Müller", unicodedata.normalize("NFD", "müller")]
    assert spelled_apart(names) == [("Müller", names[-1]), ("P17", "p17 ", "p\u200b17")]
    assert spelled_apart(["017", "17", "17"]) == []


class TestPatients:
    records = Records.concatenate(
        Records.create(["x/a", "x/b", "x/c"], source=source, patient_id=["p1", "p1", ""])
        for source in ("one", "two")
    )

    def test_an_image_without_an_id_is_a_person_of_its_own(self):
        assert self.records.patient.tolist() == ["patient:p1", "patient:p1", "image:x/c"] * 2

    @pytest.mark.parametrize("mode", ["shared", "source"])
    def test_they_are_resolved_as_splits_resolves_them(self, mode):
        found = self.records.with_patients(mode)
        assert found.patient.tolist() == patient_keys(self.records, mode).tolist()
        # They stay with their rows.
        assert found.take([4, 1]).patient.tolist() == [found.patient[4], found.patient[1]]
        joined = Records.concatenate([found, found.replace(label=found.patient_id)])
        assert joined.patient.tolist() == found.patient.tolist() * 2

    def test_other_ids_or_paths_resolve_them_anew(self):
        ids = np.array(["", "p2", "p3"] * 2, dtype=object)
        found = self.records.replace(patient_id=ids)
        assert found.patient[:3].tolist() == ["image:x/a", "patient:p2", "patient:p3"]
        paths = np.array(list("abcdef"), dtype=object)
        assert self.records.replace(image_path=paths).patient[2] == "image:c"
        kept = self.records.replace(patient_id=ids, patient=self.records.patient)
        assert kept.patient.tolist() == self.records.patient.tolist()


def test_boxes_and_uncertain_findings_are_tuples():
    box = Box(1, 2, 3, 4, "mass")
    records = Records.create(["a", "b"], source="s", boxes=[(box,), ()], uncertain=[(), ("x", "y")])
    assert records.boxes.tolist() == [(box,), ()]
    assert records.uncertain.tolist() == [(), ("x", "y")]
    plain = Records.create(["a", "b"], source="s")
    assert plain.boxes.tolist() == plain.uncertain.tolist() == [(), ()]


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Records.create(["a", "b"], source="s", label=["mass"])


def test_extra_columns_are_written_beside(tmp_path):
    records = Records.create(["/x/a.png"], source="s", label=["mass"])
    write_manifest(tmp_path / "m.csv", records, {"reason": ["dark"]}, relative=False)
    with open(tmp_path / "m.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["image_path"], row["reason"]) == ("/x/a.png", "dark")
    assert read_manifest(tmp_path / "m.csv").image_path.tolist() == ["/x/a.png"]


_text = (
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\x85"),
        max_size=12,
    )
    .map(str.strip)
    # Words for a missing value come back empty, with a warning: tested above.
    .filter(lambda text: text.lower() not in {"nan", "na", "n/a", "#n/a", "<na>", "null"})
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.from_regex(r"[a-z]{1,8}( ,|\"|é)?\.png", fullmatch=True),
            _text,
            st.one_of(st.just(math.nan), st.floats(0, 1500, width=32)),
            st.sampled_from(["", "F", "M"]),
            _text,
            st.sampled_from(["", "train", "validation", "test"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_round_trip(tmp_path, rows):
    paths, patients, ages, sexes, labels, splits = zip(*rows, strict=True)
    written = Records.create(
        [str(tmp_path / "images" / p) for p in paths],
        source="s",
        patient_id=patients,
        age_months=ages,
        sex=sexes,
        label=labels,
        split=splits,
    )
    for relative in (True, False):
        write_manifest(tmp_path / "out.csv", written, relative=relative)
        _assert_equal(read_manifest(tmp_path / "out.csv"), written)


def test_a_relative_manifest_moves_with_its_images(tmp_path):
    (tmp_path / "here").mkdir()
    records = Records.create([str(tmp_path / "here" / "i" / "a.png")], source="s")
    write_manifest(tmp_path / "here" / "m.csv", records)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = read_manifest(tmp_path / "there" / "m.csv")
    assert moved.image_path.tolist() == [str(tmp_path / "there" / "i" / "a.png")]
