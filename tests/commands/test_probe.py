import csv
import json

from frozen_features import Tiny

from configs import probe as probe_config
from infantxray.commands import probe
from infantxray.models import encoders


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
