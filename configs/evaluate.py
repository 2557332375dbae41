"""Evaluates a finished stage two on its test patients, or on another data set.

    python main.py --config=configs/evaluate.py --config.checkpoint=runs/finetune

takes half a minute on two CPU cores. An external test set:

    python main.py --config=configs/evaluate.py --config.checkpoint=runs/finetune \
        --config.data.test=manifest:/data/other_hospital.csv --workdir=runs/external

Thresholds at another sensitivity, and predictive values at a prevalence of one in fifty:

    python main.py --config=configs/evaluate.py --config.checkpoint=runs/finetune \
        --config.operating_points=sensitivity:0.98 --config.prevalence=0.02
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "evaluate"
    config.checkpoint = "runs/finetune"  # The workdir of stage two.
    config.seed = 0
    config.batch_size = 32  # Images at a time on each device, at most 64.
    config.bootstrap_samples = 1000
    common.review(config)
    config.data = common.test_data()  # Empty data.test: the test patients of stage two.
    # "keep": only the test part of sources that have a split. Or "ignore": all images.
    config.data.given_splits = "keep"
    # Other names for the labels of data.test, such as "normal=No Finding|no finding". The map of
    # stage two is not used here.
    config.data.label_map = ""
    return config
