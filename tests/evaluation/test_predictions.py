import numpy as np

from data_pipeline.manifest import Records
from infantxray.evaluation.predictions import Predictions, read_predictions, write_predictions


def make(classes):
    records = Records.create(
        ["/a/1.png", "/a/2.png", "/a/3.png"],
        source="s",
        patient_id=["p1", "p1", ""],
        label=["mass", "", "other"],
        age_months=[1.5, np.nan, 30.0],
    )
    predictions = Predictions(
        classes=classes,
        probabilities=np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)[
            :, : len(classes)
        ],
        label=np.array([1, -1, -1]),
        age_months=records.age_months,
        age_predicted_months=np.array([1.25, 7.0, np.nan], np.float32),
        patient=np.array(["patient:p1", "patient:p1", "image:/a/3.png"], dtype=object),
    )
    return predictions, records


def test_what_is_written_is_read_back(tmp_path):
    for classes in (("normal", "mass"), ()):
        predictions, records = make(classes)
        path = tmp_path / "predictions.csv"
        write_predictions(path, predictions, records)
        found, paths = read_predictions(path)
        assert paths == list(records.image_path)
        assert found.classes == classes
        for name in ("probabilities", "age_months", "age_predicted_months"):
            np.testing.assert_array_equal(getattr(found, name), getattr(predictions, name))
        np.testing.assert_array_equal(found.label, predictions.label if classes else [-1] * 3)
        assert found.patient.tolist() == predictions.patient.tolist()
        assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]  # No rest.


def test_unknown_values_are_empty(tmp_path):
    write_predictions(tmp_path / "p.csv", *make(("normal", "mass")))
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "image_path,patient_id,label,predicted,p_normal,p_mass,age_months,age_predicted_months",
        "/a/1.png,p1,mass,mass,0.25,0.75,1.5,1.25",
        "/a/2.png,p1,,normal,0.5,0.5,,7",
        "/a/3.png,,other,normal,1,0,30,",
    ]


def test_take():
    predictions, _ = make(("normal", "mass"))
    part = predictions.take(np.array([2, 0]))
    assert part.label.tolist() == [-1, 1]
    assert part.classes == ("normal", "mass")
    assert len(predictions.take(np.array([True, False, True]))) == 2
