"""Features belong to the image whose label they are paired with, also beside unreadable files."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.manifest import Records
from infantxray.features.extraction import Extractor, pixels

CLASSES = ("bright", "dark")


@pytest.fixture
def reader_and_records(tmp_path):
    """Six images, bright and dark in turn, of which the second cannot be read."""
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        grey = np.full((32, 32), (200, 50)[i % 2], np.uint8)
        grey[0] = 0  # Not constant.
        Image.fromarray(grey).save(path)
    (tmp_path / "1.png").write_bytes(b"not an image")
    records = Records.create(paths, source="s", label=[CLASSES[i % 2] for i in range(6)])
    settings = DataSettings(image_size=32, on_error="skip", num_threads=1)
    return Reader(settings, CLASSES), records


def test_features_keep_their_labels(reader_and_records):
    reader, records = reader_and_records
    found = Extractor(pixels, batch_size=4, num_threads=1)(reader(records))
    assert found.rows.tolist() == [0, 2, 3, 4, 5]
    assert found.label.tolist() == (found.values.mean(axis=1) < 100).astype(int).tolist()


def test_substitutes_are_refused(reader_and_records):
    reader, records = reader_and_records
    with pytest.raises(ValueError, match="those of other images than the labels"):
        Extractor(pixels, batch_size=4, num_threads=1)(reader(records, training=True))
