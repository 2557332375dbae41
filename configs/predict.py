"""Predicts conditions and ages of images without labels, with a finished stage two.

    python main.py --config=configs/predict.py --config.checkpoint=runs/finetune \
        --config.data.test=folder:/data/new_images

writes `predictions.csv`; about 50 images a second on two CPU cores at 64 px.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "predict"
    config.checkpoint = "runs/finetune"  # The workdir of stage two.
    config.batch_size = 32
    config.data = common.test_data()  # data.test is required.
    return config
