import csv
import math
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.ages import SELDOM_AGES
from data_pipeline.cells import NO_VALUE, is_formula_error
from data_pipeline.errors import DataError
from data_pipeline.manifest import Box, Records, read_manifest, unused_age_columns
from data_pipeline.manifest_writing import write_manifest

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
        (
            "image_path,age_months\na.png,3 moons\n",
            "line 2: age_months is '3 moons'; expected a num",
        ),
        ("image_path,age_months\na.png,1\nb.png,-1\n", "line 3: age_months is '-1'; a usual code"),
        ("image_path,age_months\na.png,inf\n", "age_months is 'inf'"),
        ("image_path,age_months\na.png,20000\n", "age_months is '20000'; expected a number of mon"),
        ("image_path,age_months\na.png,1_5\n", "line 2: age_months is '1_5'"),
        ("image_path;label\na.png;mass;left\n", "a value that holds a semicolon must stand in quo"),
        (
            "image_path,label\nC:\\x\\a.png,mass\n",
            r"is 'C:\\\\x.*path of a Windows machine; write it rel",
        ),
        ("image_path\n\\\\server\\a.png\n", "a path of a Windows machine"),
        ("image_path\nhttps://example.org/a.png\n", "an address, not a path; download the files"),
        ("image_path,box_x0\na.png,1\n", "has columns of boxes, but no 'box_y0'"),
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
    text = "ImagePath,PatientID,PatientSex,ViewPosition,PatientAge,Rows\na.png,p1,M,AP,003M,9\n"
    records = read_manifest(_write(tmp_path, text))
    assert (records.patient_id[0], records.sex[0], records.view[0]) == ("p1", "M", "AP")
    assert records.age_months[0] == 3
    assert "columns not used: Rows (known" in caplog.text
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


class TestPatients:
    records = Records.concatenate(
        Records.create(["x/a", "x/b", "x/c"], source=source, patient_id=["p1", "p1", ""])
        for source in ("one", "two")
    )

    def test_an_image_without_an_id_is_a_person_of_its_own(self):
        assert self.records.patient.tolist() == ["patient:p1", "patient:p1", "image:x/c"] * 2

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("shared", ["patient:p1", "patient:p1", "image:x/c"] * 2),
            (
                "source",
                [key for s in ("one", "two") for key in (*[f"patient:{s}:p1"] * 2, "image:x/c")],
            ),
        ],
    )
    def test_ids_are_those_of_all_sources_or_of_one(self, mode, expected):
        found = self.records.with_patients(mode)
        assert found.patient.tolist() == expected
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
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="|\u2028\u2029\x85"),
        max_size=12,
    )
    .map(str.strip)
    # Words for a missing value come back empty, with a warning: tested above.
    .filter(lambda text: text.lower() not in NO_VALUE and not is_formula_error(text))
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.from_regex(r"[a-z]{1,8}( ,|\"|é)?\.png", fullmatch=True),
            _text,
            st.one_of(
                st.just(math.nan),
                st.floats(0, 1500, width=32).filter(lambda age: age not in SELDOM_AGES),
            ),
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


def test_ages_with_their_units(tmp_path):
    cells = {"6 months": 6, "006M": 6, "2y": 24, "18 d": 18 * 12 / 365.25, "1 yr, 3 mo": 15}
    cells |= {"2 weeks": 14 * 12 / 365.25, "6개월": 6, "058Y": 696, "3.5": 3.5, "1 Year": 12}
    rows = "".join(f'a.png,"{cell}"\n' for cell in cells)
    records = read_manifest(_write(tmp_path, "image_path,age_months\n" + rows))
    assert records.age_months.tolist() == pytest.approx(list(cells.values()))


def test_all_cells_that_cannot_be_used_are_listed_at_once(tmp_path):
    rows = [*("a.png,3 moons,F",) * 8, "a.png,x,W", "a.png,999,F", "a.png,5,M", "a.png,-9,F"]
    text = "image_path,age_months,sex\n" + "\n".join(rows)
    with pytest.raises(DataError) as caught:
        read_manifest(_write(tmp_path, text))
    message = str(caught.value)
    assert (
        "lines 2, 3, 4, 5, 6 and 3 more: age_months is '3 moons', line 10: age_months is 'x'; ex"
        in (message)
    )
    assert (
        "line 11: age_months is '999', line 13: age_months is '-9'; a usual code for an" in message
    )
    assert "line 10: sex is 'W'; expected F, M or empty" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("ages", "refused"),
    [
        ("1 2 999", "999"),  # Infants.
        ("30 999 999", "999"),
        ("30 888", "888"),
        ("700 999 850", ""),  # Adults.
        ("3 30 99 99", "99"),
        ("3 30 99", ""),  # One child of eight years is possible.
        ("99 99", ""),
        ("60 99 99", ""),
        ("999", "999"),
    ],
)
def test_codes_for_an_unknown_age(tmp_path, ages, refused):
    path = _write(tmp_path, "image_path,age_months\n" + "".join(f"a,{a}\n" for a in ages.split()))
    if refused:
        with pytest.raises(DataError, match=f"age_months is '{refused}'; a usual code"):
            read_manifest(path)
    else:
        assert read_manifest(path).age_months.tolist() == [float(age) for age in ages.split()]


def test_columns_of_ages_in_an_unknown_unit_are_named(tmp_path, caplog):
    path = _write(tmp_path, "image_path,Age,bone_age,agent,page\na,1,2,3,4\n")
    assert unused_age_columns(path) == ["Age", "bone_age"]
    assert not read_manifest(path).has_age.any()
    assert "no age is read from Age, bone_age; name a column age_months" in caplog.text
    caplog.set_level("INFO", logger="data_pipeline")
    path = _write(tmp_path, "image_path,age,age_months\na,1,2\n")
    assert unused_age_columns(path) == []
    assert read_manifest(path).age_months.tolist() == [2]
    assert "columns not used: age (known" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "image_path,Age (years)\na.png,1.5\nb.png,NA\n",
        "image_path,PatientAge\na.png,018M\nb.png,-\n",
        "image_path;age_in_years\na.png;1,5\nb.png;\n",
    ],
)
def test_columns_of_ages_in_a_stated_unit_are_read(tmp_path, text):
    path = _write(tmp_path, text)
    records = read_manifest(path)
    assert records.age_months[0] == 18
    assert records.has_age.tolist() == [True, False]
    assert unused_age_columns(path) == []


def test_numbers_without_a_unit_among_others_are_refused_with_their_lines(tmp_path):
    path = _write(tmp_path, "image_path,age\na,6 months\nb,7\nc,8\nd,moon\n")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert "line 3: age is '7', line 4: age is '8'; a number without a unit" in str(caught.value)
    assert "line 5: age is 'moon'; expected an age with its unit" in str(caught.value)


class TestSpreadsheets:
    def test_backslashes_are_slashes(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="data_pipeline")
        records = read_manifest(_write(tmp_path, "image_path\nx\\a.png\n.\\y\\b.png\n"))
        assert records.image_path.tolist() == [f"{tmp_path}/x/a.png", f"{tmp_path}/y/b.png"]
        assert "backslashes in image_path are read as slashes" in caplog.text

    def test_unless_a_file_has_such_a_name(self, tmp_path):
        (tmp_path / "x\\a.png").write_bytes(b"")
        records = read_manifest(_write(tmp_path, "image_path\nx\\a.png\n"))
        assert records.image_path.tolist() == [f"{tmp_path}/x\\a.png"]

    def test_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", "/home/someone")
        records = read_manifest(_write(tmp_path, "image_path\n~/x/a.png\n~\\b.png\n~c.png\n"))
        expected = ["/home/someone/x/a.png", "/home/someone/b.png", f"{tmp_path}/~c.png"]
        assert records.image_path.tolist() == expected

    @pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "SEP=;\n", ""])
    def test_semicolons(self, tmp_path, first):
        text = f"{first}Image_Path;label;age_months\na.png;mass, left;3,5\n"
        records = read_manifest(_write(tmp_path, text))
        assert records.label.tolist() == ["mass, left"]
        assert records.age_months.tolist() == [3.5]
        with pytest.raises(DataError, match=f"line {3 + bool(first)}: age_months is 'x'"):
            read_manifest(_write(tmp_path, text + "b.png;;x\n"))

    def test_tabs_and_bars(self, tmp_path):
        for separator in "\t|":
            path = _write(tmp_path, f"label{separator}image_path\nmass{separator}a,b.png\n")
            records = read_manifest(path)
            assert records.image_path.tolist() == [f"{tmp_path}/a,b.png"]

    def test_failed_formulas_are_refused_with_their_lines(self, tmp_path):
        text = "image_path,patient_id,label\na,#VALUE!,x\nb,#VALUE!,#REF!\nc,p,y\n"
        with pytest.raises(
            DataError, match=r"lines 2, 3: patient_id is '#VALUE!'; a formula that f"
        ):
            read_manifest(_write(tmp_path, text))
        with pytest.raises(
            DataError, match=r"Also line 3: label is '#REF!'; a formula that failed"
        ):
            read_manifest(_write(tmp_path, text))

    @pytest.mark.parametrize(
        "cell", ["#DIV/0!", "#name?", "#BEZUG!", "#¡VALOR!", "####", "Err:502"]
    )
    def test_failed_formulas_in_other_languages(self, tmp_path, cell):
        for name in ("label", "age_months", "sex"):
            with pytest.raises(DataError, match="a formula that failed"):
                read_manifest(_write(tmp_path, f"image_path,{name}\na,{cell}\n"))
        assert read_manifest(_write(tmp_path, "image_path,label\na,#1\n")).label[0] == "#1"

    def test_a_dash_is_no_value(self, tmp_path, caplog):
        text = "image_path,patient_id,age_months,sex,view,label,split\na,-,-,–,-,-,--\n"
        records = read_manifest(_write(tmp_path, text))
        assert [getattr(records, name)[0] for name in COLUMNS[1:6]] == [""] * 5
        assert not records.has_age[0]
        assert (
            "taken as empty: age_months in 1 rows, label in 1 rows, patient_id in 1" in caplog.text
        )

    def test_unless_it_is_the_opposite_of_plus(self, tmp_path):
        records = read_manifest(_write(tmp_path, "image_path,label\na,+\nb,-\n"))
        assert records.label.tolist() == ["+", "-"]


def test_several_findings_are_one_label_in_one_order(tmp_path):
    text = "image_path,label,uncertain\na,b | a|b,d|c\nb,|a,\n"
    records = read_manifest(_write(tmp_path, text))
    assert records.label.tolist() == ["a|b", "a"]
    assert records.uncertain.tolist() == [("c", "d"), ()]
    write_manifest(tmp_path / "out.csv", records)
    again = read_manifest(tmp_path / "out.csv")
    assert again.uncertain.tolist() == records.uncertain.tolist()


def test_boxes(tmp_path):
    text = (
        "image_path,label,box_x0,box_y0,box_x1,box_y1\n"
        "a,mass,1,2,30.25,4\nb,a|b,1|5,2|6,3|7,4|8\nc,normal,,,,\n"
    )
    records = read_manifest(_write(tmp_path, text))
    first, second, third = records.boxes
    assert first == (Box(1, 2, 30.25, 4, "mass"),)
    assert second == (Box(1, 2, 3, 4, "a"), Box(5, 6, 7, 8, "b"))
    assert third == ()
    write_manifest(tmp_path / "out.csv", records)
    assert read_manifest(tmp_path / "out.csv").boxes.tolist() == records.boxes.tolist()
    for row in ("a,m,5,2,3,4", "a,m,1,,3,4", "a,m,x,2,3,4", "a,m,1,2,inf,4", "a,m,1|2,2,3,4"):
        with pytest.raises(
            DataError, match=r"line 2: box_x0 is .*; expected four numbers of pixels"
        ):
            read_manifest(_write(tmp_path, text.splitlines()[0] + f"\n{row}\n"))


def test_formulas_in_names_are_written_as_text_and_read_back(tmp_path):
    names = ['=HYPERLINK("x")', "+1-1", "@a", "'=b", "-5"]
    written = Records.create(
        [f"{tmp_path}/{name}.png" for name in ("=1", "'-1", "@", "+", "ok")],
        source="s",
        patient_id=names,
        label=[f"{name} x" for name in names],
        site=names,
    )
    for relative in (True, False):
        write_manifest(tmp_path / "out.csv", written, {"note": names}, relative=relative)
        _assert_equal(read_manifest(tmp_path / "out.csv"), written)
        with (tmp_path / "out.csv").open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(tuple("=+-@")) and cell != "-5" for cell in cells)
