"""Ridge regression on pixels reads the images of the run that it is compared with."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from data_pipeline import loader
from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.decode import Preprocessing
from data_pipeline.phantom import open_phantom
from data_pipeline.splits import Split
from infantxray.evaluation.predictions import Predictions
from infantxray.features import baselines
from infantxray.features.extraction import pixels

CLASSES = ("mass", "normal")


@pytest.fixture(scope="module")
def split():
    records = open_phantom("infant:films=300")
    records = records.take(np.isin(records.label, CLASSES))
    return Split(*(records.take(records.split == part) for part in ("train", "validation", "test")))


def test_images_of_any_size_are_reduced_to_means_of_squares():
    image = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 1), np.uint8)
    found = baselines._reduce(image)
    np.testing.assert_allclose(found, pixels(None, image, None) / 255, rtol=1e-6)
    np.testing.assert_allclose(found[1, 33], image[1, 3:6, 3:6].mean() / 255, rtol=1e-6)


def test_no_image_is_decoded_twice_and_ages_are_those_of_scikit_learn(split, monkeypatch):
    settings = DataSettings(train="phantom:infant", image_size=64, memory_mb=64)
    reader = Reader(settings, CLASSES, Preprocessing(64))
    x, x_val, x_test = (
        np.stack([reader(part)[i]["image"] for i in range(len(part))])
        for part in (split.train, split.validation, split.test)
    )

    def decode(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(loader, "load_image", decode)
    test = split.test
    like = Predictions(
        classes=CLASSES,
        probabilities=np.full((len(test), 2), 0.5),
        label=loader.class_indices(test.label, CLASSES),
        age_months=test.age_months,
        age_predicted_months=np.zeros(len(test)),
        patient=test.patient,
    )
    found = baselines.baselines(settings, split, like, test, reader)[baselines.RIDGE]
    assert np.isfinite(found.probabilities).all()

    x, x_val, x_test = (baselines._reduce(part) for part in (x, x_val, x_test))
    z, z_val, z_test = ((part - x.mean(0)) / (x.std(0) + 1e-6) for part in (x, x_val, x_test))
    fits = [
        Ridge(alpha=penalty * len(z)).fit(z, split.train.age_months)
        for penalty in baselines._PENALTIES
    ]
    errors = [np.abs(fit.predict(z_val) - split.validation.age_months).mean() for fit in fits]
    expected = fits[int(np.argmin(errors))].predict(z_test)
    np.testing.assert_allclose(found.age_predicted_months, expected, atol=0.01)


def test_predictions_are_kept_for_the_same_data_alone(split, tmp_path, monkeypatch):
    calls = []

    def ridge(split, classes, images, reader, num_threads):
        calls.append(1)
        return np.full((len(images), len(classes)), len(calls)), np.full(len(images), 1.0)

    monkeypatch.setattr(baselines, "_ridge", ridge)
    settings = DataSettings(train="phantom:infant", image_size=64)
    cache = str(tmp_path / "kept" / "fraction1.npz")

    def ask(split, settings=settings, classes=CLASSES):
        test = split.test
        like = Predictions(
            classes=classes,
            probabilities=np.full((len(test), 2), 0.5),
            label=loader.class_indices(test.label, classes),
            age_months=test.age_months,
            age_predicted_months=np.zeros(len(test)),
            patient=test.patient,
        )
        reader = Reader(settings, classes)
        found = baselines.baselines(settings, split, like, test, reader, cache)[baselines.RIDGE]
        assert (found.probabilities == len(calls)).all()

    def changed(role, column, value):
        values = getattr(split[role], column).copy()
        values[3] = value
        return dataclasses.replace(split, **{role: split[role].replace(**{column: values})})

    ask(split)
    ask(split)
    assert len(calls) == 1
    others = [
        changed("train", "label", ""),
        changed("train", "age_months", 7.25),
        changed("validation", "age_months", 7.25),
        changed("train", "image_path", "/other.png"),
        changed("test", "image_path", "/other.png"),
        dataclasses.replace(split, test=split.test.take(np.arange(len(split.test))[::-1])),
    ]
    for number, other in enumerate(others, start=2):
        ask(other)
        ask(other)
        assert len(calls) == number
    ask(split, dataclasses.replace(settings, resize="squash"))
    ask(split, classes=CLASSES[::-1])
    assert len(calls) == 9
    # Written by an earlier version, or damaged.
    np.savez(cache, probabilities=np.zeros((len(split.test), 2)), ages=np.zeros(len(split.test)))
    ask(split)
    Path(cache).write_bytes(b"PK damaged")
    ask(split)
    assert len(calls) == 11
