import csv
import json

import numpy as np
from frozen_features import Tiny, clusters
from sklearn.neighbors import NearestNeighbors

from configs import probe as probe_config
from infantxray.commands import probe
from infantxray.commands.probe import nearest
from infantxray.models import encoders


def test_neighbours_are_those_of_scikit_learn():
    features, _ = clusters(90, 0)
    other, _ = clusters(20, 1)
    rows, weights = nearest(features, other)
    mean, std = features.mean(0), features.std(0) + 1e-6
    reference = NearestNeighbors(n_neighbors=20, metric="cosine").fit((features - mean) / std)
    distance, expected = reference.kneighbors((other - mean) / std)
    assert [set(row) for row in rows] == [set(row) for row in expected]
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    votes = np.exp(-distance / 0.07)
    np.testing.assert_allclose(weights, votes / votes.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)


def test_fewer_images_than_neighbours():
    features, _ = clusters(3, 0)
    rows, weights = nearest(features, features)
    assert rows.shape == weights.shape == (3, 3)
    assert rows[:, 0].tolist() == [0, 1, 2]  # Each is nearest to itself.


def test_a_frozen_encoder_is_probed(tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "tiny", Tiny)
    config = probe_config.get_config()
    config.encoder = "tiny"
    config.data.train = "phantom:infant:films=60"
    config.data.image_size = 32
    config.data.label_fraction = 0.8
    config.train_films = 40
    config.batch_size = 8
    config.bootstrap_samples = 5
    probe.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    with open(tmp_path / "split.csv", newline="") as file:
        tested = [row["image_path"] for row in csv.DictReader(file) if row["split"] == "test"]
    for method in ("linear", "knn"):
        with open(tmp_path / f"predictions_{method}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image_path"] for row in rows] == tested
        assert all(row["age_predicted_months"] for row in rows)
        assert summary[method]["n"] == len(tested)
        assert 0 <= summary[method]["accuracy"] <= 1
    before = (tmp_path / "metrics.json").stat().st_mtime_ns
    probe.run(config, str(tmp_path))  # Finished: nothing to do.
    assert (tmp_path / "metrics.json").stat().st_mtime_ns == before
