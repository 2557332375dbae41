"""What is measured of images; tests/commands/test_check_data.py has what is found."""

from image_files import dicom_bytes, picture_bytes, ramp

from data_pipeline import audit


def test_dicom_under_the_name_of_a_picture_is_noted(tmp_path):
    """Adapters read headers of files that are called DICOM, or that have an unknown suffix."""
    (tmp_path / "a.png").write_bytes(dicom_bytes(ramp()))
    (tmp_path / "b.dcm").write_bytes(dicom_bytes(ramp()))
    (tmp_path / "c.png").write_bytes(picture_bytes(ramp(), "PNG"))
    paths = [str(tmp_path / name) for name in ("a.png", "b.dcm", "c.png")]
    images = audit.measure(paths, num_processes=1)
    assert images.readable.all()
    assert images.note.tolist() == [
        "DICOM under the name of a picture; its patient, age and sex are not read", "", ""
    ]  # fmt: skip
