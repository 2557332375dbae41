"""Nothing but the anatomy tells the condition or the age."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from data_pipeline.phantom import open_phantom, render, render_raw, truth

N, SIZE = 880, 48
CHANCE = 1 / 11


@pytest.fixture(scope="module")
def films():
    records = open_phantom(f"infant:films={N}:site=both")
    records = records.take(np.arange(N))
    return records, np.stack([render(a, SIZE) for a in records.image_path]).astype(np.float32)


def accuracy(features, records):
    """Of a forest that learns from other patients."""
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0)
    predicted = cross_val_predict(
        forest, features, records.label, groups=records.patient_id, cv=GroupKFold(4)
    )
    return (predicted == records.label).mean()


def borders(pixels):
    """Statistics of the film's edges and of the collimation."""
    edges = [pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:]]
    columns = [
        f(edge.reshape(len(pixels), -1), axis=1) for edge in edges for f in (np.mean, np.std)
    ]
    columns += [(pixels[:, SIZE // 2] < 8).mean(1), (pixels[:, :, SIZE // 2] < 8).mean(1)]
    return np.stack(columns, 1)


def test_brightness_tells_nothing(films):
    records, pixels = films
    flat = pixels.reshape(N, -1)
    features = np.stack([flat.mean(1), np.median(flat, axis=1), flat.max(1), flat.min(1)], 1)
    # Metal is white: the maximum is left to the foreign bodies.
    assert accuracy(features[:, [0, 1, 3]], records) < CHANCE + 0.035


def test_borders_tell_nothing(films):
    records, pixels = films
    assert accuracy(borders(pixels), records) < CHANCE + 0.035


def test_sex_site_view_and_age_tell_almost_nothing(films):
    # Air-fluid levels exist in upright and decubitus films alone; that is in the nature of things.
    records, _ = films
    features = np.stack([records.sex == "F", records.site == "b", records.age_months / 36], 1)
    assert accuracy(features, records) < CHANCE + 0.035


def test_the_pictures_do_tell(films):
    records, pixels = films
    assert accuracy(pixels.reshape(N, -1), records) > 2 * CHANCE


def markers(records):
    """Where the letter is, and how large; -1 where there is none."""
    rows = []
    for address in records.image_path:
        mask = truth(address, SIZE).masks.get("marker")
        if mask is None:
            rows.append((-1, -1, -1))
        else:
            y, x = np.nonzero(mask)
            rows.append((x.mean(), y.mean(), mask.sum()))
    return np.array(rows)


def test_the_marker_tells_neither_condition_nor_situs(films):
    records, _ = films
    features = markers(records)
    assert (features[:, 0] >= 0).mean() > 0.8
    assert accuracy(features, records) < CHANCE + 0.035
    left = features[:, 0] < SIZE / 2
    inverted = records.label == "situs inversus totalis"
    assert abs(left[inverted].mean() - left[~inverted].mean()) < 0.17  # three standard errors


@pytest.mark.parametrize("place", ["infant", "infant:site=b", "adult"])
def test_noise_does_not_tell_the_age(place):
    records = open_phantom(f"{place}:films=160").take(np.arange(160))
    noise = []
    for address in records.image_path:
        clean = address.replace(":split", ":dose=10000:split")
        difference = render_raw(address, SIZE).astype(float) - render_raw(clean, SIZE)
        noise.append(difference[12:36, 15:33].std())
    assert abs(np.corrcoef(np.log(noise), records.age_months)[0, 1]) < 0.25
