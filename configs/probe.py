"""Probes of a frozen encoder: a linear classifier and nearest neighbours on its pooled last map.

    python main.py --config=configs/probe.py --config.pretrained=runs/pretrain

takes half a minute on two CPU cores, on embedded data (infant phantom, 64 px). Without
`--config.pretrained` the encoder has random weights.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "probe"
    config.seed = 0  # Of random weights and of the selection of images.
    config.encoder = "resnet50"
    config.pretrained = ""  # As in configs/finetune.py.
    # "single": one condition an image. "multi": any number of findings, joined by | in the label.
    config.labels = "single"
    config.dtype = "float32"
    config.batch_size = 16
    config.train_films = 5000  # At most, of the images with a label or an age.
    config.bootstrap_samples = 200
    config.data = common.data()
    return config
