"""Reads images from bytes, for all tests of decoding."""

import pytest

from data_pipeline.decode import read_radiograph


@pytest.fixture
def read(tmp_path):
    def read(data, **options):
        path = tmp_path / "image"
        path.write_bytes(data)
        return read_radiograph(path, **options)

    return read
