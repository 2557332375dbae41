"""JPEG Lossless, JPEG-LS and JPEG of 12 bits, where their packages are installed."""

import numpy as np
import pytest
from image_files import dicom_bytes, ramp
from pydicom.uid import JPEGLSLossless

from data_pipeline.decode import read_radiograph

HIP = "cr_hip_mono2_10bit_"


def test_jpeg_ls(tmp_path):
    codec = pytest.importorskip("jpeg_ls", reason="JPEG-LS needs pyjpegls")
    image = ramp()
    compressed = bytes(codec.encode_array(image))
    path = tmp_path / "image"
    path.write_bytes(
        dicom_bytes(
            image, syntax=JPEGLSLossless, compressed=compressed, WindowCenter=2048, WindowWidth=4096
        )
    )
    pixels = read_radiograph(path).pixels
    assert np.abs(pixels / 257 - image * (255 / 4095)).max() <= 1


def test_jpeg_lossless(real_images):
    pytest.importorskip("gdcm", reason="JPEG Lossless needs python-gdcm")
    image = read_radiograph(real_images / "dicom" / f"{HIP}jpeglosslessSV1_RG2.dcm").pixels
    assert image.shape == (2140, 1760)
    # Bone is brighter than the air beside the thigh.
    assert image[1000:1100, 800:900].mean() > image[1200:1300, 300:350].mean()


def test_twelve_bits_agree_with_lossless(real_images):
    pytest.importorskip("gdcm", reason="JPEG Lossless needs python-gdcm")
    pytest.importorskip("libjpeg", reason="JPEG of 12 bits needs pylibjpeg-libjpeg")
    exact, lossy = (
        read_radiograph(real_images / "dicom" / f"{HIP}{name}_RG2.dcm").pixels / 257
        for name in ("jpeglosslessSV1", "jpegextended12")
    )
    assert np.abs(exact - lossy).mean() < 1.5
