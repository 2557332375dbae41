"""Writes phantom images as files, for other programs or for viewing.

    python main.py --config=configs/export_phantom.py --config.data.train=phantom:infant:films=50

writes about 15 images of 512 px a second on two busy cores, and `manifest.csv` with the boxes of
the findings. The data set `manifest:runs/export_phantom/manifest.csv` gives the same images, except
that 16-bit PNG is clipped by half a per cent of the greys at each end, like any 16-bit PNG.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "export_phantom"
    config.format = "png"  # 8 bits; "png16": 16 bits; "dicom": 12 bits and a header.
    config.data = ConfigDict()
    config.data.train = "phantom:infant:films=50"  # One or more phantom places, comma-separated.
    config.data.image_size = 512  # Pixels, a multiple of 32.
    return config
