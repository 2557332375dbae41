"""Phantom images as files: PNG of 8 or 16 bits, or DICOM. Only this module of the phantom needs
Pillow and pydicom."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data_pipeline.phantom.rendering import pixel_spacing, render, render_raw

if TYPE_CHECKING:
    from pydicom import Dataset

FORMATS = ("png", "png16", "dicom")
_SUFFIX = {"png": ".png", "png16": ".png", "dicom": ".dcm"}
_STUDY_DATE = datetime.date(2020, 1, 1)  # of every image; birth dates follow from the ages
_DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"


def file_name(address: str, form: str) -> str:
    """Name of the file that holds the image of this address."""
    return address.replace(":", "_").replace("=", "-") + _SUFFIX[form]


def write_image(
    folder: Path,
    address: str,
    size: int,
    form: str,
    *,
    patient_id: str,
    age_months: float,
    sex: str,
) -> None:
    """Writes one image `[size, size]` in one of `FORMATS`.

    A file that is there already stays, if it is of this size and format.

    The 8-bit picture of the PNG, of the 16-bit PNG after division by 257, and of the DICOM behind
    its window are the same bytes as `render` gives.

    Args:
      folder: output folder.
      address: address of the image.
      size: in pixels.
      form: one of `FORMATS`.
      patient_id, age_months, sex: for the DICOM header; NaN and empty are left out.
    """
    path = folder / file_name(address, form)
    if path.exists() and _is_of(path, size, form):
        return
    # Under another name first: a run that is stopped leaves no half image behind.
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        if form == "png":
            Image.fromarray(render(address, size)).save(file, "PNG")
        elif form == "png16":
            full = np.rint(render_raw(address, size) * (65535 / 4095)).astype(np.uint16)
            Image.fromarray(full).save(file, "PNG")
        else:
            dataset = _dataset(address, size, patient_id, age_months, sex)
            dataset.save_as(file, enforce_file_format=True)
    os.replace(unfinished, path)


def _is_of(path: Path, size: int, form: str) -> bool:
    """Whether a file that is there has an image of this size and format."""
    if form == "dicom":
        import pydicom

        try:
            return int(pydicom.dcmread(path, specific_tags=["Rows"]).Rows) == size
        except (pydicom.errors.InvalidDicomError, AttributeError, OSError):
            return False
    try:
        with Image.open(path) as image:
            # Both PNG formats have the same file names.
            return image.size == (size, size) and (image.mode == "L") == (form == "png")
    except OSError:
        return False


def _age_string(age_months: float) -> str:
    """DICOM's age: three digits and the finest unit that they can hold."""
    days = int(age_months * 30.4375)
    for unit, length in (("D", 1), ("W", 7), ("Y", 365.25)):
        if days / length < 1000:
            return f"{int(days / length):03d}{unit}"
    raise ValueError(f"An age of {age_months} months does not fit a DICOM age.")


def _dataset(address: str, size: int, patient_id: str, age_months: float, sex: str) -> Dataset:
    import pydicom
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    from data_pipeline.phantom import VERSION

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_DX_FOR_PRESENTATION)
    # UIDs follow from the address, so that exporting twice gives the same files.
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[VERSION, address, str(size)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = pydicom.Dataset()
    film.file_meta = meta
    film.SpecificCharacterSet = "ISO_IR 192"
    film.ImageType = ["ORIGINAL", "PRIMARY"]
    film.SOPClassUID = meta.MediaStorageSOPClassUID
    film.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    film.StudyDate = film.SeriesDate = film.ContentDate = _STUDY_DATE.strftime("%Y%m%d")
    film.StudyTime = film.ContentTime = "120000"
    film.AccessionNumber = ""
    film.Modality = "DX"
    film.Manufacturer = "infantxray"
    film.ManufacturerModelName = VERSION
    film.ReferringPhysicianName = ""
    film.PresentationIntentType = "FOR PRESENTATION"
    film.PatientName = f"PHANTOM^{patient_id}"
    film.PatientID = patient_id
    film.PatientBirthDate = ""
    film.PatientSex = sex
    if not math.isnan(age_months):
        born = _STUDY_DATE - datetime.timedelta(days=int(age_months * 30.4375))
        film.PatientBirthDate = born.strftime("%Y%m%d")
        film.PatientAge = _age_string(age_months)
    film.BodyPartExamined = "ABDOMEN"
    film.ViewPosition = "AP"
    film.StudyInstanceUID = generate_uid(entropy_srcs=[VERSION, address, "study"])
    film.SeriesInstanceUID = generate_uid(entropy_srcs=[VERSION, address, "series"])
    film.StudyID = film.SeriesNumber = film.InstanceNumber = "1"
    film.PatientOrientation = ["L", "F"]
    film.ImageLaterality = "U"
    # A digital radiograph must have these, if only empty.
    film.AnatomicRegionSequence = film.AcquisitionContextSequence = []
    film.DetectorType = film.PositionerType = ""
    film.BurnedInAnnotation = "NO"
    film.LossyImageCompression = "00"
    film.SamplesPerPixel = 1
    film.PhotometricInterpretation = "MONOCHROME2"
    film.Rows = film.Columns = size
    spacing = pixel_spacing(address, size)
    film.ImagerPixelSpacing = film.PixelSpacing = [f"{spacing:.6f}"] * 2
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.PixelRepresentation = 0
    film.PixelIntensityRelationship = "LOG"
    film.PixelIntensityRelationshipSign = -1  # higher values: less radiation
    film.RescaleIntercept, film.RescaleSlope, film.RescaleType = 0, 1, "US"
    film.WindowCenter, film.WindowWidth = 2048, 4096  # the full range, as `render` shows it
    film.VOILUTFunction = "LINEAR"
    film.PresentationLUTShape = "IDENTITY"
    film.PixelData = render_raw(address, size).astype("<u2").tobytes()
    return film
