"""The page reads a file as Python does: the same pixels, so the same probabilities."""

import io

import numpy as np
import pydicom
import pytest
from export_folder import PREPROCESSING, write_export
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.phantom.rendering import render_raw

pytestmark = pytest.mark.xdist_group("reader")

ADDRESS = "phantom:infant:seed=0:site=a:split=test:film=3"
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def pixels(height=190, width=150):
    """A phantom of 12 bits, not square."""
    return render_raw(ADDRESS, 200)[5 : 5 + height, 20 : 20 + width].astype(np.uint16)


def dicom(values, syntax=ExplicitVRLittleEndian, frame=None, **elements):
    """A DICOM file of `values` `[H, W]` or `[H, W, 3]`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DX, "1.2.3"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = DX, "1.2.3", "DX"
    data.PatientName = "Geheim^Patient"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    data.BitsAllocated = 8 * values.dtype.itemsize
    data.BitsStored = 12 if values.dtype.itemsize == 2 else 8
    data.PixelRepresentation = 0
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    for name, value in elements.items():
        setattr(data, name, value)
    data.HighBit = elements.get("HighBit", data.BitsStored - 1)
    if frame is not None:
        data.PixelData = encapsulate([frame])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
        data["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer,
        data,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def run_length(content):
    data = pydicom.dcmread(io.BytesIO(content))
    data.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def jpeg_2000(values, bits):
    return pytest.importorskip("openjpeg.utils").encode_array(values, bits_stored=bits)


def jpeg_ls(values):
    return bytes(pytest.importorskip("jpeg_ls").encode_array(values))


def picture(values, kind, **options):
    buffer = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_lossless(content):
    gdcm = pytest.importorskip("gdcm")
    # GDCM writes from file to file alone.
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder) / "in"), str(Path(folder) / "out")
        Path(source).write_bytes(content)
        reader = gdcm.ImageReader()
        reader.SetFileName(source)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(target).read_bytes()


def lut(entries, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return item


def files():
    """`{name: content}`: every way of storing and displaying that the decoder knows."""
    raw = pixels()
    low = (raw >> 4).astype(np.uint8)
    color = np.stack([low, low, low], axis=-1)
    tinted = np.stack([low, low // 2, 255 - low], axis=-1)
    large = np.asarray(Image.fromarray(low).resize((750, 950), Image.Resampling.BICUBIC))
    window = {"WindowCenter": 1500, "WindowWidth": 2200}
    signed = (raw.astype(np.int32) - 2000).astype(np.int16)
    plain = dicom(raw, **window)
    turned = Image.fromarray(low)
    exif = turned.getexif()
    exif[0x0112] = 6
    faded = np.dstack(
        [color, np.broadcast_to(np.linspace(0, 255, 150).astype(np.uint8), (190, 150))]
    )
    padded = raw.copy()
    padded[:, :30] = 4000
    palette = Image.fromarray(color).quantize(40)
    return {
        "window": plain,
        "implicit": dicom(raw, ImplicitVRLittleEndian, **window),
        "big_endian": dicom(raw, ExplicitVRBigEndian, **window),
        "deflated": dicom(raw, DeflatedExplicitVRLittleEndian, **window),
        "no_window": dicom(raw),
        "useless_window": dicom(raw, WindowCenter=-9000, WindowWidth=10),
        "monochrome1": dicom(raw, PhotometricInterpretation="MONOCHROME1", **window),
        "inverse": dicom(raw, PresentationLUTShape="INVERSE", **window),
        "signed": dicom(signed, PixelRepresentation=1, WindowCenter=-500, WindowWidth=2200),
        "rescale": dicom(raw, RescaleSlope=2.5, RescaleIntercept=-300, WindowCenter=3000,
                         WindowWidth=5000),
        "sigmoid": dicom(raw, VOILUTFunction="SIGMOID", **window),
        "linear_exact": dicom(raw, VOILUTFunction="LINEAR_EXACT", **window),
        "voi_lut": dicom(raw, VOILUTSequence=[lut((np.arange(4096) / 4095) ** 2 * 1023, 0, 10)]),
        "modality_lut": dicom(raw, ModalityLUTSequence=[lut(np.arange(4096)[::-1] // 2, 0, 12)],
                              WindowCenter=1000, WindowWidth=1800),
        "padding": dicom(padded, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1"),
        "padding_range": dicom(padded, PixelPaddingValue=3900, PixelPaddingRangeLimit=4095),
        "padding_signed": dicom((padded - 2000).astype(np.int16), PixelRepresentation=1,
                                PixelPaddingValue=2000),
        "shutter": dicom(raw, ShutterShape=["RECTANGULAR", "CIRCULAR"], ShutterLeftVerticalEdge=20,
                         ShutterRightVerticalEdge=130, ShutterUpperHorizontalEdge=15,
                         ShutterLowerHorizontalEdge=180, CenterOfCircularShutter=[95, 75],
                         RadiusOfCircularShutter=80),
        "polygon": dicom(raw, ShutterShape="POLYGONAL",
                         VerticesOfThePolygonalShutter=[10, 20, 30, 140, 180, 120, 150, 15]),
        "mirrored": dicom(raw, PatientOrientation=["R", "F"], **window),
        "quarter_turn": dicom(raw, PatientOrientation=["F", "R"], PixelSpacing=[0.3, 0.2]),
        "upside_down": dicom(raw, PatientOrientation=["R", "H"], **window),
        "extremity": dicom(raw, PatientOrientation=["R", "F"], BodyPartExamined="HAND"),
        "high_bit": dicom(raw << 4, HighBit=15, BitsStored=12, **window),
        "more_bits": dicom(raw, BitsStored=10),
        "eight_bits": dicom(low),
        "aspect": dicom(raw, PixelSpacing=[0.3, 0.2], **window),
        "rgb": dicom(color),
        "rgb_planar": dicom(tinted, PlanarConfiguration=1),
        "eight_bits_big_endian": dicom(low, ExplicitVRBigEndian),
        "rle": run_length(plain),
        "jpeg_2000": dicom(raw, JPEG2000Lossless, jpeg_2000(raw, 12), **window),
        "jpeg_2000_signed": dicom(signed, JPEG2000Lossless, jpeg_2000(signed, 12),
                                  PixelRepresentation=1, WindowCenter=-500, WindowWidth=2200),
        "jpeg_2000_8": dicom(low, JPEG2000Lossless, jpeg_2000(low, 8)),
        "jpeg_2000_rgb": dicom(color, JPEG2000Lossless, jpeg_2000(color, 8)),
        "jpeg_2000_without_end": dicom(raw, JPEG2000Lossless, jpeg_2000(raw, 12)[:-2], **window),
        "rle_rgb": run_length(dicom(tinted)),
        "jpeg_ls": dicom(raw, JPEGLSLossless, jpeg_ls(raw), **window),
        "jpeg_lossless": jpeg_lossless(plain),
        "dicom_jpeg": dicom(low, JPEGBaseline8Bit, picture(low, "JPEG")),
        "dicom_jpeg_large": dicom(large, JPEGBaseline8Bit, picture(large, "JPEG", quality=90)),
        "png": picture(low, "PNG"),
        "png_16": picture(raw << 2, "PNG"),
        "png_rgb": picture(color, "PNG"),
        "png_alpha": picture(faded, "PNG"),
        "png_palette": picture(palette, "PNG"),
        "png_1_bit": picture(Image.fromarray(low).convert("1"), "PNG"),
        "png_transparent": picture(low, "PNG", transparency=int(low[80, 80])),
        "jpeg": picture(low, "JPEG"),
        "jpeg_progressive": picture(low, "JPEG", progressive=True),
        "jpeg_rgb": picture(color, "JPEG"),
        "jpeg_turned": picture(turned, "JPEG", exif=exif),
        "jpeg_large": picture(large, "JPEG", quality=92),
    }  # fmt: skip


def expected(folder, path, preprocessing):
    """Python's pixels and the outputs of onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")
    image = load_image(str(path), Preprocessing(**preprocessing))
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return image, dict(
        zip(names, session.run(None, {"image": image[None, ..., None]}), strict=True)
    )


@pytest.mark.parametrize(
    "preprocessing",
    [
        PREPROCESSING,
        pytest.param(
            {"image_size": 48, "resize": "crop", "trim_borders": True}, marks=pytest.mark.slow
        ),
        {"image_size": 96, "resize": "squash", "trim_borders": False},
    ],
    ids=lambda p: p["resize"],
)
def test_pixels_and_probabilities_are_pythons(tmp_path, open_page, preprocessing):
    folder = write_export(tmp_path / "export", preprocessing)
    page = open_page(folder)
    wrong = []
    for name, content in files().items():
        path = tmp_path / name
        path.write_bytes(content)
        image, outputs = expected(folder, path, preprocessing)
        answer = page.read(path)
        if answer["type"] != "reading":
            wrong.append(f"{name}: {answer['reason']}")
            continue
        seen = np.rint(np.asarray(answer["features"]) * 255).reshape(image.shape)
        apart = np.abs(seen - image)
        # libjpeg reduces before it rounds, the page after it.
        reduced = "large" in name
        allowed = 1 if reduced else 0
        if apart.max() > allowed:
            wrong.append(
                f"{name}: pixels differ by {apart.max():.0f} at {(apart > 0).sum()} places"
            )
        given = [*outputs["probabilities"][0], outputs["age_months"][0] / 10]
        off = np.abs(
            [*answer["probabilities"], answer["age_months"] / 10] - np.asarray(given)
        ).max()
        if off > (1e-2 if reduced else 1e-3):
            wrong.append(f"{name}: answers differ by {off:.1e}")
    assert not wrong, "\n".join(wrong)
    assert page.errors == []


def test_real_files_are_read_as_python_reads_them(tmp_path, open_page, real_images):
    page = open_page(write_export(tmp_path / "export"))
    wrong, read = [], 0
    for path in sorted((real_images / "dicom").glob("*.dcm")):
        answer = page.read(path)
        try:
            image = load_image(str(path), Preprocessing(**PREPROCESSING))
        except UnreadableImage as error:
            if answer["type"] != "refused":
                wrong.append(f"{path.name}: read, and Python says {error.reason}")
            continue
        if answer["type"] == "refused":
            if "12 bits" not in answer["reason"]:  # No kept decoder for browsers.
                wrong.append(f"{path.name}: {answer['reason']}")
            continue
        read += 1
        apart = np.abs(np.rint(np.asarray(answer["features"]) * 255).reshape(image.shape) - image)
        if apart.max() > 1 or (apart.any() and "jpegbaseline" not in path.name):
            wrong.append(f"{path.name}: pixels differ by up to {apart.max():.0f}")
    assert not wrong, "\n".join(wrong)
    assert read > 10


def broken():
    """`{name: (content, words)}`: files that must be refused, and words of the reason."""
    whole = dicom(pixels(), WindowCenter=1500, WindowWidth=2200)
    mammogram = dicom(pixels(), Modality="MG")
    cut = picture(pixels(), "PNG")
    return {
        "empty": (b"", "empty"),
        "cut": (whole[: len(whole) // 2], "cut short"),
        "mammogram": (mammogram, "mammogram"),
        "ct": (dicom(pixels(), Modality="CT"), "CT slice"),
        "animal": (dicom(pixels(), PatientBreedDescription="Beagle"), "animal"),
        "frames": (dicom(pixels(), NumberOfFrames=3), "3 frames"),
        "web_page": (b"<!doctype html><p>404", "web page"),
        "zip": (b"PK\x03\x04" + bytes(200), "ZIP archive"),
        "text": (b"hello" * 100, "neither DICOM"),
        "cut_jpeg_2000": (
            dicom(pixels(), JPEG2000Lossless, jpeg_2000(pixels(), 12)[:9000]), "cut short"),
        "cut_jpeg_ls": (dicom(pixels(), JPEGLSLossless, jpeg_ls(pixels())[:9000]), "cut short"),
        "cut_png": (cut[: len(cut) // 2], "damaged or cut short"),
        "cut_jpeg": (picture((pixels() >> 4).astype(np.uint8), "JPEG")[:1500], "damaged"),
        "wrong_size": (
            dicom(pixels(), JPEG2000Lossless,
                  picture(pixels(60, 60), "JPEG2000", irreversible=False, no_jp2=True)),
            "its header says",
        ),
    }  # fmt: skip


def test_a_broken_file_gets_its_sentence(tmp_path, open_page):
    page = open_page(write_export(tmp_path / "export"))
    for name, (content, words) in broken().items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UnreadableImage):  # Python refuses it too.
            load_image(str(path), Preprocessing(**PREPROCESSING))
        answer = page.read(path)
        assert answer["type"] == "refused", name
        assert words in answer["reason"], name
        shown = page.page.inner_text("#problem")
        assert shown == f"This file cannot be read: {answer['reason']}."
        assert "Geheim" not in shown
        assert not page.page.is_visible("#reading")
    # The page goes on.
    path = tmp_path / "whole"
    path.write_bytes(files()["window"])
    assert page.read(path)["type"] == "reading"
    assert not page.page.is_visible("#problem")
    assert page.errors == []
