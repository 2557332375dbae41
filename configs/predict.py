"""Predicts conditions and ages of images without labels, with a finished stage two.

    python main.py --config=configs/predict.py --config.checkpoint=runs/finetune \
        --config.data.test=/data/new_images

writes `predictions.csv`. `data.test` is a file, a folder, a DICOM series, a manifest, or any
`source:place`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "predict"
    # The workdir of stage two. Several, separated by commas, form an ensemble; a comma that belongs
    # to a path is written \,.
    config.checkpoint = "runs/finetune"
    config.batch_size = 32  # Images at a time on each device, at most 64.
    # Calibrated probabilities, prediction sets, age intervals and a warning of unusual images.
    config.calibrate = True
    # Average predictions with those of this many slightly rotated, scaled and shifted copies. No
    # flips.
    config.augmentations = 0
    # Also write the reconstruction error of the autoencoder that stage two started from.
    config.reconstruction = False
    config.json = False  # One JSON file for each image, in json/.
    config.pictures = False  # predictions.html: images, probabilities, ages and saliency.
    config.dicom = False  # DICOM Structured Reports and saliency, in dicom/; needs highdicom.
    config.data = common.test_data()  # data.test is required.
    return config
