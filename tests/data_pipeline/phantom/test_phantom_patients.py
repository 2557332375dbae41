"""Who is on which film: classes, ages, patients, splits and sites."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data_pipeline.phantom import CLASSES, open_phantom, render, truth
from data_pipeline.phantom.address import parse_address
from data_pipeline.phantom.patients import film_at


@pytest.fixture(scope="module")
def infants():
    return open_phantom("infant:films=1100")


def test_columns_of_the_full_set():
    records = open_phantom("infant")
    assert Counter(records.split) == {"train": 2000, "validation": 400, "test": 600}
    assert set(records.source) == {"phantom:infant"}
    assert set(records.label) == set(CLASSES)
    assert len(CLASSES) == 11
    assert set(records.sex) == {"F", "M"}
    assert set(records.view) == {"supine", "upright", "decubitus"}
    assert set(records.site) == {"a"}
    assert len(set(records.image_path)) == len(records)
    assert records.has_age.all()


def test_a_small_set_has_a_film_in_every_split():
    assert Counter(open_phantom("adult:films=1").split) == {"train": 1, "validation": 1, "test": 1}


def test_no_patient_is_in_two_splits(infants):
    splits = defaultdict(set)
    for patient, split in zip(infants.patient_id, infants.split, strict=True):
        splits[patient].add(split)
    assert max(map(len, splits.values())) == 1
    films = Counter(Counter(infants.patient_id[infants.split == "train"]).values())
    assert set(films) == {1, 2, 3, 4}


def test_a_patient_grows_older_and_keeps_sex_and_condition(infants):
    rows = defaultdict(list)
    for i, patient in enumerate(infants.patient_id):
        rows[patient].append(i)
    for films in rows.values():
        assert (np.diff(infants.age_months[films]) >= 0).all()
        assert len(set(infants.sex[films])) == 1
        assert len(set(infants.label[films])) == 1


@pytest.mark.parametrize(
    ("place", "low", "high"),
    [("infant", 0, 36), ("infant:max_age_months=216", 0, 216), ("adult", 216, 1080)],
)
def test_ages_fill_the_range(place, low, high):
    ages = open_phantom(f"{place}:films=550").age_months
    assert low <= ages.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < ages.max() <= high


def test_balanced_and_rare_classes(infants):
    train = infants.label[infants.split == "train"]
    counts = Counter(train)
    assert min(counts.values()) > 0.75 * len(train) / 11
    assert max(counts.values()) < 1.25 * len(train) / 11
    rare = open_phantom("infant:films=1100:frequencies=rare")
    counts = Counter(rare.label[rare.split == "train"])
    assert counts["normal"] > 0.4 * len(train)
    assert counts["situs inversus totalis"] < 0.03 * len(train)


def test_age_and_condition_are_independent(infants):
    # In life they are not; here that would be a shortcut.
    train = infants.take(infants.split == "train")
    for name in CLASSES:
        assert abs(train.age_months[train.label == name].mean() - 18) < 4.5


def test_missing_ages_hit_the_asked_share_and_nothing_else(infants):
    missing = open_phantom("infant:films=1100:age_missing=0.3")
    assert abs(1 - missing.has_age.mean() - 0.3) < 0.05
    assert (missing.image_path == infants.image_path).all()
    known = missing.has_age
    assert (missing.age_months[known] == infants.age_months[known]).all()


def test_label_noise_touches_training_films_alone(infants):
    noisy = open_phantom("infant:films=1100:label_noise=0.2")
    wrong = noisy.label != infants.label
    assert abs(wrong[infants.split == "train"].mean() - 0.2) < 0.04
    assert not wrong[infants.split != "train"].any()
    assert (noisy.image_path == infants.image_path).all()


def test_the_same_patients_at_another_site_and_dose(infants):
    other = open_phantom("infant:films=1100:site=b:dose=0.1")
    assert set(other.site) == {"b"}
    for column in ("patient_id", "age_months", "sex", "view", "label"):
        assert (getattr(other, column) == getattr(infants, column)).all()
    assert not set(other.image_path) & set(infants.image_path)
    both = open_phantom("infant:films=1100:site=both")
    assert 0.35 < (both.site == "b").mean() < 0.65


def test_other_seeds_and_ranges_are_other_patients(infants):
    for place in ("infant:seed=1", "infant:max_age_months=60", "adult"):
        assert not set(open_phantom(f"{place}:films=50").patient_id) & set(infants.patient_id)


def test_more_films_only_add(infants):
    fewer = open_phantom("infant:films=301")
    n = 301
    assert (fewer.image_path[:n] == infants.image_path[:n]).all()
    assert (fewer.label[:n] == infants.label[:n]).all()


class TestConditionsThatCombine:
    PLACE = "infant:findings=2:films=220:seed=3"

    def test_only_compatible_conditions_combine(self):
        records = open_phantom(self.PLACE)
        train = records.take(records.split == "train")
        several = [set(label.split("|")) for label in train.label if "|" in label]
        assert 0.3 < len(several) / len(train) < 0.6
        for names in several:
            assert len(names) == 2
            assert names <= set(CLASSES) - {"normal"}
            # Both would rearrange the bowel.
            assert not names <= {"mass", "intussusception", "air-liquid shadow", "constipation"}

    def test_the_first_condition_is_that_of_the_plain_phantom(self):
        many = open_phantom(self.PLACE)
        plain = open_phantom(self.PLACE.replace("findings=2:", ""))
        for label, names in zip(plain.label, many.label, strict=True):
            assert label in names.split("|")
        assert many.age_months.tolist() == plain.age_months.tolist()

    def test_images_of_one_condition_are_those_of_the_plain_phantom(self):
        many = open_phantom(self.PLACE)
        row = next(i for i, label in enumerate(many.label) if "|" not in label)
        plain = many.image_path[row].replace(":findings=2", "")
        assert plain != many.image_path[row]
        assert (render(many.image_path[row], 32) == render(plain, 32)).all()

    def test_each_finding_has_its_box_and_changes_the_image(self):
        many = open_phantom(self.PLACE)
        row = next(i for i, label in enumerate(many.label) if "|" in label)
        found = truth(many.image_path[row], 64)
        assert sorted(box.label for box in found.boxes) == many.label[row].split("|")
        plain = many.image_path[row].replace(":findings=2", "")
        assert (render(many.image_path[row], 64) != render(plain, 64)).any()


def test_by_age_norms_the_label_depends_on_the_age_given_the_size():
    """The same sizes are findings in the young and normal in the old; pixels do not change."""
    names = ("hepatomegaly", "splenomegaly")
    fixed, aged = (open_phantom(f"infant:films=2200{n}") for n in ("", ":norms=age"))
    organ = np.isin(fixed.label, names)
    assert (fixed.label[~organ] == aged.label[~organ]).all()
    size = np.array([film_at(parse_address(p)).severity for p in aged.image_path[organ]])
    age, found = aged.age_months[organ], aged.label[organ] != "normal"
    assert (found == (size > age / 36)).all()
    assert 0.4 < found.mean() < 0.6
    middle = (size > 0.4) & (size < 0.6)
    assert found[middle & (age < 9)].all()
    assert not found[middle & (age > 27)].any()
    # Neither the size nor the age alone tells; both do.
    assert roc_auc_score(found, size) < 0.95
    assert roc_auc_score(found, -age) < 0.95
    path = aged.image_path[organ][~found][0]
    assert (render(path, 32) == render(path.replace(":norms=age", ""), 32)).all()
    assert not truth(path, 32).boxes
    assert truth(aged.image_path[organ][found][0], 32).boxes
    digest = hashlib.sha256("\n".join(aged.label).encode()).hexdigest()
    assert digest.startswith("546388d5e4fb1e05"), (
        "labels of norms=age are frozen; raise the version"
    )
