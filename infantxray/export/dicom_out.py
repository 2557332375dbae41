"""DICOM output: a Structured Report of a prediction, and its saliency as a secondary capture."""

from __future__ import annotations

import datetime
import os
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from data_pipeline.decode import looks_like_dicom
from data_pipeline.errors import UserError
from data_pipeline.extras import install_line
from infantxray.reports.predictions_page import Card

INSTALL = install_line("dicom")
_MAKER = "infantxray"
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber")
_PRIVATE = "99INFANTXRAY"  # Coding scheme of findings and of the probability.


def check_installed() -> Any:
    """The module highdicom.

    Raises:
      UserError: it is not installed.
    """
    try:
        import highdicom
    except ImportError:
        raise UserError(f"DICOM output needs highdicom: {INSTALL}") from None
    return highdicom


def write(
    folder: str,
    name: str,
    path: str,
    answer: dict[str, Any],
    image: np.ndarray,
    heat: np.ndarray | None,
    *,
    model: str,
) -> None:
    """Writes `<name>_report.dcm` and, with saliency, `<name>_saliency.dcm`.

    They belong to the study and patient of the image where that is DICOM.

    Args:
      folder: output folder.
      name: name of the files.
      path: path of the image.
      answer: the JSON of the image, as `predict` writes it.
      image: uint8 `[S, S]`, as the model saw it.
      heat: saliency of the most probable condition in [0, 1], `[S, S]`.
      model: identity of the model.
    """
    source = _source(path)
    report = structured_report(source, answer, model)
    report.save_as(os.path.join(folder, f"{name}_report.dcm"), enforce_file_format=True)
    if heat is not None:
        # Of several findings the map is that of the most probable one, predicted or not.
        shown = max(answer["probabilities"], key=answer["probabilities"].get)
        capture = secondary_capture(source, image, heat, shown, model)
        capture.save_as(os.path.join(folder, f"{name}_saliency.dcm"), enforce_file_format=True)


def _source(path: str) -> Dataset:
    """The header of an image; made up for an image that is not DICOM."""
    if os.path.isfile(path) and looks_like_dicom(path):
        source: Any = pydicom.dcmread(path, stop_before_pixels=True)
    else:
        source = Dataset()
    # What highdicom copies; the standard wants them present, if empty.
    for keyword in (*_PATIENT, *_STUDY, "ReferringPhysicianName"):
        if keyword not in source:
            setattr(source, keyword, "")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not source.get(keyword):
            setattr(source, keyword, generate_uid(entropy_srcs=[keyword, path]))
    if not source.get("SOPClassUID"):
        source.SOPClassUID = ComputedRadiographyImageStorage
    return source


def structured_report(source: Dataset, answer: dict[str, Any], model: str) -> Dataset:
    """A Comprehensive SR (TID 1500) with a probability for each condition.

    Args:
      source: the header of the image.
      answer: the JSON of the image.
      model: identity of the model.
    """
    hd = check_installed()
    from pydicom.sr.codedict import codes

    sr = hd.sr
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[model]), name=model[:64], manufacturer_name=_MAKER
        ),
    )
    image = sr.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=source.SOPClassUID,
        referenced_sop_instance_uid=source.SOPInstanceUID,
    )
    probability = sr.CodedConcept("PROBABILITY", _PRIVATE, "Probability of the finding")
    groups = []
    for condition, value in answer["probabilities"].items():
        finding = sr.CodedConcept(_code(condition), _PRIVATE, condition[:64])
        groups.append(_group(sr, image, model, finding, probability, value, codes.UCUM.NoUnits))
    if answer["age_predicted_months"] is not None:
        age = sr.CodedConcept("AGE", _PRIVATE, "Age from the image")
        groups.append(
            _group(
                sr, image, model, age, codes.DCM.SubjectAge, answer["age_predicted_months"],
                codes.UCUM.Month if hasattr(codes.UCUM, "Month") else
                sr.CodedConcept("mo", "UCUM", "month"),
            )
        )  # fmt: skip
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("363680008", "SCT", "Radiographic imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.ComprehensiveSR(
        evidence=[source],
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=model[:64],
        series_description="Prediction, research use only",
        is_complete=True,
        is_final=False,
    )


def _group(
    sr: Any, image: Any, model: str, finding: Any, name: Any, value: float, unit: Any
) -> Any:
    algorithm = sr.AlgorithmIdentification(name=_MAKER, version=model[:64])
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=finding.meaning),
        finding_type=finding,
        algorithm_id=algorithm,
        measurements=[sr.Measurement(name=name, value=round(float(value), 6), unit=unit)],
        source_images=[image],
    )


def _code(condition: str) -> str:
    code = "".join(c if c.isalnum() else "_" for c in condition.upper())
    return code[:16]


def secondary_capture(
    source: Dataset, image: np.ndarray, heat: np.ndarray, condition: str, model: str
) -> Dataset:
    """The image with its saliency in red, as an RGB secondary capture.

    Args:
      source: the header of the image.
      image: uint8 `[S, S]`.
      heat: in [0, 1], `[S, S]`.
      condition: the explained condition.
      model: identity of the model.
    """
    pixels = Card(image, heat, {}).overlay
    assert pixels is not None
    now = datetime.datetime.now()
    capture = Dataset()
    for keyword in (*_PATIENT, *_STUDY, "ReferringPhysicianName"):
        setattr(capture, keyword, source.get(keyword))
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.SOPInstanceUID, capture.SeriesInstanceUID = generate_uid(), generate_uid()
    capture.Modality, capture.ConversionType = "OT", "WSD"
    capture.SeriesNumber, capture.InstanceNumber = 101, 1
    capture.Laterality, capture.PatientOrientation = "", ""
    capture.Manufacturer, capture.ManufacturerModelName = _MAKER, model[:64]
    capture.SeriesDescription = f"Saliency: {condition}, research use only"[:64]
    capture.ContentDate, capture.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    capture.BurnedInAnnotation = "NO"
    capture.SamplesPerPixel, capture.PhotometricInterpretation = 3, "RGB"
    capture.PlanarConfiguration, capture.PixelRepresentation = 0, 0
    capture.Rows, capture.Columns = pixels.shape[:2]
    capture.BitsAllocated, capture.BitsStored, capture.HighBit = 8, 8, 7
    capture.PixelData = pixels.tobytes()
    capture.file_meta = pydicom.dataset.FileMetaDataset()
    capture.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    capture.file_meta.MediaStorageSOPClassUID = capture.SOPClassUID
    capture.file_meta.MediaStorageSOPInstanceUID = capture.SOPInstanceUID
    return capture
