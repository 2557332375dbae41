import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.division import divide, keep_labels, split_by_patient
from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS, Records
from data_pipeline.sources import open_sources
from data_pipeline.splits import (
    Split,
    check_classes,
    check_disjoint,
    check_unseen,
    read_split,
    write_split,
)

FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.2}


def images(patients, labels, source="s", split=None, ages=None, start=0):
    """One image a row; `patients` and `labels` of equal length."""
    return Records.create(
        [f"/{source}/{start + i}.png" for i in range(len(patients))],
        source=source,
        patient_id=[str(p) for p in patients],
        label=labels,
        split=split,
        age_months=ages,
    )


def cohort(n_patients=60, source="s", classes=("mass", "normal"), images_each=2, prefix="p"):
    patients = np.repeat([f"{prefix}{i}" for i in range(n_patients)], images_each)
    labels = np.repeat([classes[i % len(classes)] for i in range(n_patients)], images_each)
    return images(patients, labels.tolist(), source)


def roles(records, patient_ids="shared", seed=0, fractions=FRACTIONS):
    """Patient key -> split."""
    done = split_by_patient(records.with_patients(patient_ids), **fractions, seed=seed)
    assert done.image_path.tolist() == records.image_path.tolist()
    result = {}
    for key, role in zip(done.patient, done.split, strict=True):
        assert result.setdefault(key, role) == role, f"{key} is on two sides"
    return result


def count(result, role):
    return sum(r == role for r in result.values())


def test_fractions_are_of_the_patients_and_every_class_is_everywhere():
    records = cohort(100, classes=("mass", "normal", "normal", "normal"))
    done = split_by_patient(records, **FRACTIONS, seed=0)
    result = roles(records)
    assert [count(result, role) for role in SPLITS] == [60, 20, 20]
    for role in SPLITS:
        share = (done.label[done.split == role] == "mass").mean()
        assert share == pytest.approx(0.25, abs=0.02)


def test_rounding_leaves_the_total_right():
    # Ten classes of seven patients: 1.4 each would be truncated to 10 of 70, not 14.
    result = roles(cohort(70, classes=tuple("abcdefghij")))
    assert count(result, "test") == 14
    assert count(result, "validation") == 14


def test_deterministic_whatever_the_order_of_rows_and_dependent_on_the_seed():
    records = cohort()
    shuffled = records.take(np.random.default_rng(0).permutation(len(records)))
    assert roles(records) == roles(shuffled)
    assert roles(records) != roles(records, seed=1)


def test_the_split_of_a_known_cohort_never_changes():
    """Published results hang on who was tested: a change of the hash must be noticed."""
    result = roles(cohort(10, classes=("mass",)))
    tested = sorted(k for k, r in result.items() if r == "test")
    validated = sorted(k for k, r in result.items() if r == "validation")
    assert tested == ["patient:p5", "patient:p6"]
    assert validated == ["patient:p1", "patient:p9"]


def test_what_else_is_loaded_changes_nothing():
    infants = cohort(40, "infants", prefix="i")
    adults = cohort(80, "adults", classes=("pneumonia", "normal", "fracture"), prefix="a")
    alone = roles(infants)
    together = roles(Records.concatenate([adults, infants]))
    assert {key: together[key] for key in alone} == alone


def test_a_shared_patient_of_two_sources_is_as_protected_as_in_the_stricter_one():
    a = images(["x", "y", "z"], ["m"] * 3, "a", split=["train", "test", "train"])
    b = images(["x", "y", "w"], ["m"] * 3, "b", split=["test", "train", "train"], start=9)
    none = {"validation_fraction": 0.0, "test_fraction": 0.0}
    result = roles(Records.concatenate([a, b]), fractions=none)
    assert result["patient:x"] == result["patient:y"] == "test"
    assert result["patient:z"] == result["patient:w"] == "train"


def test_given_splits_are_kept_and_missing_roles_are_cut_from_training():
    records = cohort(50)
    given = np.where(np.arange(100) < 20, "test", "train").astype(object)
    result = roles(records.replace(split=given))
    assert {k for k, r in result.items() if r == "test"} == {f"patient:p{i}" for i in range(10)}
    assert count(result, "validation") == 8  # A fifth of the 40 who are left.
    assert count(result, "train") == 32

    complete = np.tile(["train", "train", "validation", "validation", "test", "test"], 10)
    records = cohort(30).replace(split=complete.astype(object))
    assert split_by_patient(records, **FRACTIONS, seed=0).split.tolist() == complete.tolist()


def test_unassigned_rows_of_a_source_with_a_test_set_are_for_training():
    records = cohort(20)
    given = np.where(np.arange(40) < 10, "test", "").astype(object)
    result = roles(
        records.replace(split=given), fractions={"validation_fraction": 0.0, "test_fraction": 0.3}
    )
    assert count(result, "test") == 5
    assert count(result, "train") == 15


def test_a_patient_on_two_sides_of_a_given_split_is_an_error():
    records = images(["p1", "p2", "p1"], ["m", "m", "m"], split=["train", "train", "test"])
    with pytest.raises(DataError, match=r"patient 'p1' is in 'train' and in 'test'"):
        split_by_patient(records, **FRACTIONS, seed=0)


def test_a_class_of_one_patient_is_an_error_where_it_is_to_be_learned():
    records = images(["a", "a", "b", "c"], ["rare", "rare", "normal", "normal"])
    # Stage one, which has no use for labels, may train on it.
    split = divide(records, **FRACTIONS, seed=0)
    assert set(split.train.patient_id[split.train.label == "rare"]) == {"a"}
    with pytest.raises(DataError, match=r"class 'rare' has one patient \(patient 'a'\)"):
        check_classes(split, ["normal", "rare"])
    check_classes(split, ["normal"])


def test_two_patients_are_one_for_training_and_one_for_testing():
    result = roles(images(["a", "b"], ["rare", "rare"]))
    assert sorted(result.values()) == ["test", "train"]


def test_a_patient_counts_for_the_rarest_of_their_conditions():
    """One with a common and a rare finding must not leave the rare class without a stratum."""
    patients = [f"n{i}" for i in range(20)] + ["r1", "r1", "r2", "r2"]
    labels = ["normal"] * 20 + ["normal", "rare", "normal", "rare"]
    for seed in range(8):
        result = roles(images(patients, labels), seed=seed)
        assert sorted([result["patient:r1"], result["patient:r2"]]) == ["test", "train"]


def test_images_without_patient_are_a_patient_each():
    records = images([""] * 20, ["mass", "normal"] * 10)
    result = roles(records)
    assert len(result) == 20
    assert count(result, "test") == 4
    assert all(key.startswith("image:") for key in result)


def test_images_without_label_and_age_are_not_wasted_on_testing():
    unlabelled = images([f"p{i}" for i in range(20)], [""] * 20)
    result = roles(unlabelled)
    assert (count(result, "test"), count(result, "validation")) == (0, 4)
    aged = unlabelled.replace(age_months=np.full(20, 3.0, np.float32))
    assert count(roles(aged), "test") == 4


def test_nor_are_those_of_a_source_that_knows_of_others():
    """A large cohort of which a few are labelled: the many are what stage one learns from."""
    known = [f"k{i}" for i in range(20)]
    unknown = [f"u{i}" for i in range(200)]
    result = roles(images(known + unknown, ["mass", "normal"] * 10 + [""] * 200))
    assert {result[f"patient:{name}"] for name in unknown} == {"train", "validation"}
    alone = roles(images(known, ["mass", "normal"] * 10))
    assert (count(result, "test"), count(alone, "test")) == (4, 4)
    tested = {key for key, role in alone.items() if role == "test"}
    assert tested == {key for key, role in result.items() if role == "test"}
    one = roles(images(["k", *unknown], ["mass"] + [""] * 200))
    assert (count(one, "test"), count(one, "validation")) == (0, 40)


@pytest.mark.parametrize("what", ["label", "age"])
def test_few_answers_among_many_images_are_learned_from(what):
    """A validation part of them could not choose a checkpoint: see finetune."""

    def divided(answered, unanswered=700):
        total = answered + unanswered
        labels, ages = [""] * total, np.full(total, np.nan, np.float32)
        if what == "label":
            labels[:answered] = (["mass", "normal"] * answered)[:answered]
            ages[:] = 3.0  # Which everybody has.
        else:
            ages[:answered] = 3.0
        result = roles(images([f"p{i}" for i in range(total)], labels, ages=ages))
        own = [result[f"patient:p{i}"] for i in range(answered)]
        return [own.count(role) for role in SPLITS], result

    (train, validation, test), result = divided(500)
    assert (train, validation, test) == (400, 0, 100)
    # 20 % of the others; with the tested, where all are one stratum.
    assert count(result, "validation") == (140 if what == "label" else 160)
    (train, validation, test), _ = divided(700)
    assert (train + validation, test) == (560, 140)
    assert validation > 50
    # Where everybody is answered for, validation has its part, however few they are.
    (train, validation, test), _ = divided(60, unanswered=0)
    assert (train, validation, test) == (36, 12, 12)


def test_ids_of_sources_that_both_count_from_one():
    a, b = cohort(30, "a", prefix=""), cohort(30, "b", prefix="")
    both = Records.concatenate([a, b])
    assert len(roles(both, "shared")) == 30
    assert len(roles(both, "source")) == 60


_image = st.tuples(
    st.integers(0, 12),
    st.sampled_from(["", "normal", "mass", "rare"]),
    st.sampled_from(["north", "south"]),
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(_image, min_size=1, max_size=60),
    anonymous=st.booleans(),
    validation_fraction=st.floats(0, 0.45),
    test_fraction=st.floats(0, 0.45),
    seed=st.integers(0, 5),
    patient_ids=st.sampled_from(["shared", "source"]),
)
def test_no_patient_is_ever_on_two_sides(
    rows, anonymous, validation_fraction, test_fraction, seed, patient_ids
):
    records = Records.create(
        [f"/{source}/{i}.png" for i, (_, _, source) in enumerate(rows)],
        source="",
        patient_id=["" if anonymous and p == 0 else str(p) for p, _, _ in rows],
        label=[label for _, label, _ in rows],
    ).replace(source=np.array([source for _, _, source in rows], dtype=object))
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    try:
        split = divide(records.with_patients(patient_ids), **fractions, seed=seed)
    except DataError as error:
        assert "left to train on" in str(error)  # noqa: PT017
        return
    paths = [p for role in SPLITS for p in split[role].image_path]
    assert sorted(paths) == sorted(records.image_path)
    keys = [set(split[role].patient) for role in SPLITS]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    of_patient: dict[str, set[str]] = {}
    for key, label in zip(records.with_patients(patient_ids).patient, records.label, strict=True):
        of_patient.setdefault(key, set()).add(label)
    # Neither people of two sources nor of two conditions, who count for the rarest alone.
    if patient_ids == "source" and max(map(len, of_patient.values())) == 1:
        for source in ("north", "south"):
            labels = set(records.label[records.source == source]) - {""}
            assert labels <= set(split.train.label[split.train.source == source])


def test_given_validation_and_test_are_used_whole_or_their_own_part():
    train = cohort(30, "a")
    whole = cohort(5, "b", prefix="v")
    given = np.repeat(["train", "test", "test", "train", "train"], 2).astype(object)
    partly = cohort(5, "c", prefix="t").replace(split=given)
    split = divide(train, whole, partly, **FRACTIONS, seed=0)
    assert len(split.train) == len(train)
    assert set(split.validation.patient_id) == {f"v{i}" for i in range(5)}
    assert set(split.test.patient_id) == {"t1", "t2"}
    for role in SPLITS:
        assert set(split[role].split) == {role}


def test_a_given_test_set_with_a_training_patient_is_an_error():
    train = cohort(10, "a")
    with pytest.raises(DataError, match=r"patient 'p3' is in train and in test.*patient_ids"):
        divide(train, None, images(["p3"], ["mass"], "b"), validation_fraction=0.0,
               test_fraction=0.0, seed=0)  # fmt: skip
    split = divide(
        train.with_patients("source"), None, images(["p3"], ["mass"], "b").with_patients("source"),
        validation_fraction=0.0, test_fraction=0.0, seed=0,
    )  # fmt: skip
    assert len(split.test) == 1


def test_the_same_file_under_two_patients_is_an_error():
    a = Records.create(["/x/1.png"], source="a", patient_id=["p1"])
    b = Records.create(["/x/1.png"], source="b", patient_id=["q1"])
    nothing = a.take(np.zeros(0, int))
    with pytest.raises(DataError, match=r"image '/x/1\.png' is in train and in test"):
        check_disjoint(Split(train=a, validation=nothing, test=b))


def test_the_advice_fits_what_is_on_two_sides():
    a = images([1, 2], ["a", "b"], source="x")
    nothing = a.take(np.zeros(0, int))
    with pytest.raises(DataError, match=r"patient '1' .*config.data.patient_ids=source"):
        check_disjoint(Split(train=a, validation=nothing, test=images([1], ["a"], source="y")))
    a = a.replace(patient_id=np.array(["", ""], object))
    with pytest.raises(DataError, match=r"x lists it more than once: keep one row$"):
        check_disjoint(Split(train=a, validation=nothing, test=a.take([1])))
    again = a.replace(source=np.array(["z", "z"], object))
    with pytest.raises(DataError, match=r"listed by x and by z: name each image in one source$"):
        check_disjoint(Split(train=a, validation=nothing, test=again))


def test_nothing_left_to_train_on():
    records = cohort(4).replace(split=np.full(8, "test", dtype=object))
    with pytest.raises(DataError, match="no image is left to train on"):
        divide(records, **FRACTIONS, seed=0)


def labelled_patients(records):
    return set(records.patient_id[records.has_label])


def test_smaller_label_fractions_are_subsets_of_larger_ones_by_patient():
    records = cohort(100, classes=("mass",) + ("normal",) * 9)
    records = records.replace(age_months=np.full(200, 5.0, np.float32))
    before = set(records.patient_id)
    for fraction, expected in ((1.0, 100), (0.5, 50), (0.2, 20), (0.01, 2)):
        kept = keep_labels(records, fraction, seed=3)
        patients = labelled_patients(kept)
        assert len(patients) == expected
        assert patients <= before
        assert set(kept.label) - {""} == {"mass", "normal"}
        # All images of a patient, and the age with the label.
        assert kept.has_label.sum() == 2 * expected
        np.testing.assert_array_equal(kept.has_age, kept.has_label)
        assert kept.image_path.tolist() == records.image_path.tolist()
        before = patients
    assert labelled_patients(keep_labels(records, 0.2, 3)) != labelled_patients(
        keep_labels(records, 0.2, 4)
    )


def test_other_draws_label_other_patients_of_the_same_strata():
    records = cohort(100, classes=("mass",) + ("normal",) * 9)
    draws = [keep_labels(records, 0.2, 3, draw=draw) for draw in (0, 1, 1, 2)]
    patients = [frozenset(labelled_patients(kept)) for kept in draws]
    assert patients[1] == patients[2]
    assert len(set(patients)) == 3
    for kept in draws:
        assert (kept.label == "mass").sum() == 4
        assert kept.has_label.sum() == 40


@pytest.mark.parametrize("patient_ids", ["shared", "source"])
def test_the_same_images_keep_their_labels_wherever_they_lie(patient_ids):
    """With ids and without; the split itself is tested above."""
    kept = []
    for root in ("/data", "/elsewhere/data"):
        patients = [f"p{i}" for i in range(30)] + [""] * 30
        records = images(patients, ["mass"] * 60)
        records = records.replace(
            image_path=np.array([f"{root}/{i}.png" for i in range(60)], dtype=object),
            source=np.full(60, f"manifest:{root}/films.csv", dtype=object),
        )
        kept.append(keep_labels(records.with_patients(patient_ids), 0.3, 0).has_label)
    assert 10 < kept[0].sum() < 26
    np.testing.assert_array_equal(*kept)


def test_ages_without_label_are_reduced_too():
    records = images([f"p{i}" for i in range(20)], [""] * 20, ages=[4.0] * 20)
    assert keep_labels(records, 0.25, 0).has_age.sum() == 5


def test_split_csv_round_trip(tmp_path):
    records = images(
        ["p1", "p2", "", "p4"],
        ["mass", "", 'air, "liquid"', "mass"],
        ages=[np.nan, 0.1, 7.25, 216.0],
    ).replace(source=np.array(["a:x", "b:y", "a:x", "b:y"], dtype=object))
    split = Split(
        train=records.take(np.array([0, 3])),
        validation=records.take(np.array([1])),
        test=records.take(np.array([2])),
    )
    write_split(tmp_path / "split.csv", split)
    again = read_split(tmp_path / "split.csv")
    for role in SPLITS:
        for name in ("image_path", "patient_id", "label", "sex", "view", "site", "source"):
            assert getattr(again[role], name).tolist() == getattr(split[role], name).tolist()
        np.testing.assert_array_equal(again[role].age_months, split[role].age_months)
        assert again[role].age_months.dtype == np.float32
        assert set(again[role].split) == {role}


def test_reading_a_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="not the workdir of a run"):
        read_split(tmp_path / "split.csv")


def test_a_split_without_its_checksum_that_is_cut_short(tmp_path):
    write_split(tmp_path / "split.csv", divide(cohort(20), **FRACTIONS, seed=0))
    (tmp_path / "split.csv.sha256").unlink()  # As in runs of earlier versions.
    whole = (tmp_path / "split.csv").read_bytes()
    read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="ends within a line: it was cut short"):
        read_split(tmp_path / "split.csv")


def test_images_without_a_split_among_others_are_counted(caplog):
    records = cohort(20)
    split = np.where(np.arange(len(records)) < 4, "", "train").astype(object)
    split[-2:] = "test"
    divided = split_by_patient(
        records.replace(split=split), validation_fraction=0, test_fraction=0, seed=0
    )
    assert set(divided.split[:4]) == {"train"}
    assert "4 images have no split, unlike the others; they count as training" in caplog.text


def test_check_unseen(tmp_path):
    nobody = cohort(1).take(np.zeros(0, int))
    stage_one = divide(cohort(20), **FRACTIONS, seed=0)
    path = tmp_path / "split.csv"
    write_split(path, stage_one)
    check_unseen(path, stage_one.test, "shared", "trained on")
    check_unseen(path, stage_one.validation, "shared", "trained on")
    with pytest.raises(DataError, match=r"^validated on \d+ of these"):
        check_unseen(path, stage_one.validation, "shared", "validated on", role="validation")
    check_unseen(path, stage_one.train, "shared", "validated on", role="validation")
    check_unseen(path, nobody, "shared", "trained on")
    with pytest.raises(DataError, match=r"^trained on \d+ of these .* such as .*split_seed"):
        check_unseen(path, stage_one.train, "shared", "trained on")
    # The same people under other files, and the same file under another name.
    patient = str(stage_one.train.patient_id[0])
    with pytest.raises(DataError, match=rf"trained on 1 of these .* patient '{patient}'"):
        check_unseen(path, images([patient], ["mass"], "other"), "shared", "trained on")
    check_unseen(path, images([patient], ["mass"], "other"), "source", "trained on")
    renamed = stage_one.train.take(np.array([0])).replace(
        patient_id=np.array(["somebody"], dtype=object)
    )
    with pytest.raises(DataError, match="trained on 1 of these"):
        check_unseen(path, renamed, "source", "trained on")
    # Another seed tests other patients: that is what the check is for.
    other = divide(cohort(20), **FRACTIONS, seed=1)
    with pytest.raises(DataError, match="trained on"):
        check_unseen(path, other.test, "shared", "trained on")


@pytest.mark.parametrize("patients", [["", "p"], ["p", "q"]])
def test_moving_the_data_moves_nobody(patients):
    def tested(root, patient_ids):
        records = Records.create(
            [f"{root}/films/{i}.png" for i in range(60)],
            source=f"manifest:{root}/films.csv",
            patient_id=[patients[i % 2] and f"{patients[i % 2]}{i // 3}" for i in range(60)],
            label=["a", "b", "c"] * 20,
        )
        split = divide(records.with_patients(patient_ids), **FRACTIONS, seed=0)
        return [path.removeprefix(root) for path in split.test.image_path]

    for patient_ids in ("shared", "source"):
        assert tested("/data/here", patient_ids) == tested("/mnt/there", patient_ids)


def pictures(folder, n=20):
    """Empty images of two classes; a split opens none."""
    for i in range(n):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[i % 2] / f"{i}.png").touch()
    return folder


def test_one_file_under_two_names_is_one_file(tmp_path, monkeypatch):
    pictures(tmp_path / "images")
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("images")
    rows = "".join(f"images/{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "test.csv").write_text("image_path,label\n" + rows)
    monkeypatch.chdir(tmp_path / "run")
    test = open_sources("manifest:../test.csv")
    for place in ("../images", f"{tmp_path}/images", "../link"):
        with pytest.raises(DataError, match=r"image '/.*png' is in \w+ and in test"):
            divide(open_sources(f"folder:{place}"), test=test, **FRACTIONS, seed=0)


def test_a_source_is_divided_alike_however_it_is_spelled(tmp_path, monkeypatch):
    """Without ids an image's place hangs on its name within the source."""
    pictures(tmp_path / "images", 60)
    monkeypatch.chdir(tmp_path)

    def tested(place):
        split = divide(open_sources(f"folder:{place}"), **FRACTIONS, seed=0)
        return set(split.test.image_path)

    plain = tested(f"{tmp_path}/images")
    assert len(plain) == 12
    for place in ("images", "./images/", f"{tmp_path}/images/", f"{tmp_path}/images:headers=no"):
        assert tested(place) == plain
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").rename(tmp_path / "elsewhere" / "images")
    moved = {path.replace("/elsewhere", "") for path in tested("elsewhere/images:headers=no")}
    assert moved == plain


@pytest.mark.parametrize(
    ("source", "tested", "validated"),
    [("folder:/data/films", "02", "15"), ("manifest:/data/films.csv", "45", "17")],
)
def test_the_split_of_known_images_without_ids_never_changes(source, tested, validated):
    paths = [f"/data/films/{i}.png" for i in range(10)]
    result = roles(Records.create(paths, source=source, label=["a"] * 10))
    for role, names in (("test", tested), ("validation", validated)):
        found = {key for key, where in result.items() if where == role}
        assert found == {f"image:/data/films/{name}.png" for name in names}


def test_names_of_files_need_not_be_utf8(tmp_path):
    paths = [f"/data/f\udce9{i}.png" for i in range(20)]
    records = Records.create(paths, source="folder:/data", label=["a", "b"] * 10)
    split = divide(records, **FRACTIONS, seed=0)
    write_split(tmp_path / "split.csv", split)
    again = read_split(tmp_path / "split.csv")
    assert sorted(path for role in SPLITS for path in again[role].image_path) == sorted(paths)
    keep_labels(split.train, 0.5, 0)


def test_images_that_are_left_out_for_a_role_given_besides_are_counted(caplog):
    train = images([f"p{i}" for i in range(10)], ["m"] * 10, split=["train"] * 6 + ["test"] * 4)
    split = divide(train, None, cohort(2, "b", prefix="t"), **FRACTIONS, seed=0)
    assert len(split.test) == 4
    assert (
        "4 images that data.train assigns to test are left out: data.test is given" in caplog.text
    )


def test_patients_whose_ids_are_spelled_much_like_those_trained_on_are_named(tmp_path, caplog):
    path = tmp_path / "split.csv"
    trained = images(["P17", "p18"], ["m", "n"])
    nothing = trained.take(np.zeros(0, int))
    write_split(path, Split(train=trained, validation=nothing, test=nothing))
    check_unseen(path, images(["p19", "P19"], ["m", "n"], "t"), "shared", "it was trained on")
    assert caplog.text == ""
    check_unseen(path, images(["p17 "], ["m"], "t"), "shared", "it was trained on")
    assert (
        "it was trained on patients whose ids differ from some of these only in spelling"
        in caplog.text
    )
    assert "'P17' and 'p17 '" in caplog.text
