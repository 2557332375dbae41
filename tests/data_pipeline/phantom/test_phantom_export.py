"""Films as files: they read back to the pictures that the phantom gives."""

import numpy as np
import pydicom
import pytest
from PIL import Image

from configs import export_phantom as config_file
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import read_manifest
from data_pipeline.phantom import open_phantom, render, truth
from data_pipeline.sources import open_sources
from infantxray.commands import export_phantom

PLACE = "infant:films=12:age_missing=0.2:site=both"


def export(folder, form, place="phantom:" + PLACE, size=96):
    config = config_file.get_config()
    config.format = form
    config.data.train = place
    config.data.image_size = size
    export_phantom.run(config, str(folder))
    return folder


@pytest.mark.parametrize("form", ["png", "png16", "dicom"])
def test_reads_back_to_the_same_pictures_and_columns(tmp_path, form):
    export(tmp_path, form)
    records = read_manifest(tmp_path / "manifest.csv")
    original = open_phantom(PLACE)
    for column in ("patient_id", "sex", "view", "label", "split", "site"):
        assert (getattr(records, column) == getattr(original, column)).all(), column
    np.testing.assert_array_equal(records.age_months, original.age_months)
    how = Preprocessing(image_size=96)
    for path, address in zip(records.image_path, original.image_path, strict=True):
        expected = render(address, 96)
        if form == "png16":  # Read by percentiles, as every picture of 16 bits.
            low, high = np.percentile(expected, (0.5, 99.5), method="inverted_cdf").astype(float)
            expected = np.rint(np.clip((expected - low) / (high - low), 0, 1) * 255)
        np.testing.assert_allclose(
            load_image(path, how), expected, atol=2 if form == "png16" else 0
        )


def test_the_folder_source_reads_the_same_pictures(tmp_path):
    export(tmp_path, "dicom")
    records = open_sources(f"folder:{tmp_path / 'images'}")
    original = {render(address, 96).tobytes() for address in open_phantom(PLACE).image_path}
    how = Preprocessing(image_size=96)
    assert {load_image(path, how).tobytes() for path in records.image_path} == original


def test_dicom_headers(tmp_path):
    export(tmp_path, "dicom")
    records = read_manifest(tmp_path / "manifest.csv")
    seen = set()
    for i, path in enumerate(records.image_path):
        film = pydicom.dcmread(path)
        seen.add(film.SOPInstanceUID)
        assert film.file_meta.MediaStorageSOPInstanceUID == film.SOPInstanceUID
        assert film.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
        assert (film.Modality, film.PhotometricInterpretation) == ("DX", "MONOCHROME2")
        assert (film.BitsAllocated, film.BitsStored, film.HighBit) == (16, 12, 11)
        assert film.PatientID == records.patient_id[i]
        assert film.PatientSex == records.sex[i]
        assert ("PatientAge" in film) == bool(records.has_age[i])
        if records.has_age[i]:
            days = int(records.age_months[i] * 30.4375)
            assert film.PatientAge == (f"{days:03d}D" if days < 1000 else f"{days // 7:03d}W")
        assert film.pixel_array.max() <= 4095
        assert 1 < film.PixelSpacing[0] < 5
    assert len(seen) == len(records)


def test_the_manifest_has_the_boxes(tmp_path):
    export(tmp_path, "png")
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    assert lines[0].endswith("box_x0,box_y0,box_x1,box_y1,phantom_address")
    for line in lines[1:]:
        *_, x0, y0, x1, y1, address = line.split(",")
        boxes = truth(address, 96).boxes
        expected = (boxes[0].x0, boxes[0].y0, boxes[0].x1, boxes[0].y1) if boxes else ("",) * 4
        assert (x0, y0, x1, y1) == tuple(map(str, expected))


def test_exporting_again_writes_nothing_new(tmp_path):
    export(tmp_path, "dicom")
    before = {
        p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "images").iterdir()
    }
    manifest = (tmp_path / "manifest.csv").read_bytes()
    export(tmp_path, "dicom")
    after = {
        p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "images").iterdir()
    }
    assert after == before
    assert (tmp_path / "manifest.csv").read_bytes() == manifest


def test_an_unknown_format_and_other_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="png, png16, dicom"):
        export(tmp_path, "jpeg")
    export(tmp_path / "images", "png")
    with pytest.raises(DataError, match="only phantom images"):
        export(tmp_path / "again", "png", f"folder:{tmp_path / 'images' / 'images'}")


def test_another_size_or_format_is_written_anew(tmp_path):
    for form, size in (("png", 64), ("png", 96), ("png16", 96), ("png", 96)):
        export(tmp_path, form, size=size)
        for path in read_manifest(tmp_path / "manifest.csv").image_path:
            with Image.open(path) as image:
                assert image.size == (size, size)
                assert image.mode == ("L" if form == "png" else "I;16")


def test_a_dicom_file_of_another_size_is_written_anew(tmp_path):
    for size in (64, 96):
        export(tmp_path, "dicom", size=size)
        paths = read_manifest(tmp_path / "manifest.csv").image_path
        assert all(pydicom.dcmread(path).pixel_array.shape == (size, size) for path in paths)


def test_every_finding_has_its_box(tmp_path):
    place = "infant:films=12:findings=2"
    export(tmp_path, "png", "phantom:" + place)
    records = read_manifest(tmp_path / "manifest.csv")
    several = 0
    for boxes, address in zip(records.boxes, open_phantom(place).image_path, strict=True):
        expected = truth(address, 96).boxes
        assert boxes == tuple((b.x0, b.y0, b.x1, b.y1, b.label) for b in expected)
        several += len(expected) > 1
    assert several
