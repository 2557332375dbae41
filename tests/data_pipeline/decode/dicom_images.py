"""Elements of DICOM files, and what their images should show."""

import numpy as np
from image_files import ramp

FULL = {"WindowCenter": 2048, "WindowWidth": 4096}


RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
YBR = RGB | {"PhotometricInterpretation": "YBR_FULL"}


def eight_bits(radiograph):
    maximum = np.iinfo(radiograph.pixels.dtype).max
    return np.rint(radiograph.pixels * (255 / maximum)).astype(int)


def expected():
    return np.rint(ramp() * (255 / 4095)).astype(int)


def signed(radiograph):
    return (radiograph.astype(np.int16) - 2048).astype(np.uint16)
