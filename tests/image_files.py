"""Images of known content in every format that the decoder reads, for several test files."""

import io
import tempfile
from pathlib import Path

import gdcm
import jpeg_ls
import numpy as np
import pydicom
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

SECRET = "Geheim^Patient"


def ramp(height=60, width=80, bits=12):
    """A smooth image that uses all of its bits: dark at the left, dense at the right."""
    x = np.linspace(0.0, 1.0, width)[None, :]
    y = np.linspace(0.0, 1.0, height)[:, None]
    image = 0.85 * x + 0.15 * y
    return np.rint(image * (2**bits - 1)).astype(np.uint16)


def dicom_bytes(
    pixels,
    *,
    syntax=ExplicitVRLittleEndian,
    compressed=None,
    pixel_data=None,
    remove=(),
    tags=(),
    **elements,
):
    """A DICOM file of `pixels` `[H, W]`, MONOCHROME2, 12 bits unless `elements` say otherwise.

    `remove` names elements to leave out, `tags` adds some as `(tag, representation, value)`,
    `compressed` is a stream and `pixel_data` a representation with bytes to store instead.
    """
    with pydicom.config.disable_value_validation():  # Wrong values are what is tested.
        return _dicom_bytes(pixels, syntax, compressed, pixel_data, remove, tags, elements)


def _dicom_bytes(pixels, syntax, compressed, pixel_data, remove, tags, elements):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.PatientName = SECRET
    dataset.PatientID = "4711"
    dataset.PatientBirthDate = "20200115"
    dataset.StudyDate = "20200415"
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = 12 if pixels.dtype.itemsize == 2 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    for name in remove:
        delattr(dataset, name)
    for tag, representation, value in tags:
        dataset.add_new(tag, representation, value)
    if compressed is not None:
        dataset.PixelData = encapsulate([compressed])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    elif pixel_data is not None:
        dataset.add_new("PixelData", *pixel_data)
    elif syntax == RLELossless:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = pixels.tobytes()
        dataset.compress(RLELossless)
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def lut_item(entries, first, bits):
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return item


def picture_bytes(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_2000(pixels):
    """A lossless codestream, as it stands in DICOM."""
    return picture_bytes(pixels, "JPEG2000", irreversible=False, no_jp2=True)


def jpeg_2000_of(pixels, bits, **options):
    """The same of any precision, by OpenJPEG."""
    return bytes(encode_array(pixels, bits_stored=bits, **options))


def gdcm_dicom(pixels, syntax, **elements):
    """A DICOM file in an encoding that GDCM writes; `syntax` is GDCM's name for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image"
        Path(path).write_bytes(dicom_bytes(pixels, **elements))
        reader = gdcm.ImageReader()
        reader.SetFileName(path)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(path)
        assert writer.Write()
        return Path(path).read_bytes()


def every_format():
    """`{name: file}`: one image of 8 or 12 bits in each format and transfer syntax."""
    image = ramp()
    small = (image >> 4).astype(np.uint8)
    wide = image << 4
    return {
        "png8": picture_bytes(small, "PNG"),
        "png16": picture_bytes(wide, "PNG"),
        "jpeg": picture_bytes(small, "JPEG"),
        "progressive": picture_bytes(small, "JPEG", progressive=True),
        "tiff8": picture_bytes(small, "TIFF"),
        "tiff16": picture_bytes(wide, "TIFF"),
        "tiff_lzw": picture_bytes(small, "TIFF", compression="tiff_lzw"),
        "tiff_deflate": picture_bytes(wide, "TIFF", compression="tiff_deflate"),
        "explicit": dicom_bytes(image),
        "implicit": dicom_bytes(image, syntax=ImplicitVRLittleEndian),
        "big_endian": dicom_bytes(image, syntax=ExplicitVRBigEndian),
        "deflated": dicom_bytes(image, syntax=DeflatedExplicitVRLittleEndian),
        "rle": dicom_bytes(image, syntax=RLELossless),
        "jpeg_2000": dicom_bytes(image, syntax=JPEG2000Lossless, compressed=jpeg_2000(image),
                                 BitsStored=16, HighBit=15, WindowCenter=2048, WindowWidth=4096),
        "jpeg_ls": dicom_bytes(image, syntax=JPEGLSLossless,
                               compressed=bytes(jpeg_ls.encode_array(image))),
        "jpeg_lossless": gdcm_dicom(image, "JPEGLosslessProcess14_1"),
        "jpeg_12_bits": gdcm_dicom(image, "JPEGExtendedProcess2_4"),
        "dicom_jpeg": dicom_bytes(small, syntax=JPEGBaseline8Bit,
                                  compressed=picture_bytes(small, "JPEG")),
    }  # fmt: skip
