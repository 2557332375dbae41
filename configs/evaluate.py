"""Evaluates a finished stage two on its test patients, or on another data set.

    python main.py --config=configs/evaluate.py --config.checkpoint=runs/finetune

takes half a minute on two CPU cores. An external test set:

    python main.py --config=configs/evaluate.py --config.checkpoint=runs/finetune \
        --config.data.test=manifest:/data/other_hospital.csv --workdir=runs/external

Thresholds at another sensitivity, and predictive values where one child in fifty is ill:

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
    config.batch_size = 32
    config.bootstrap_samples = 1000
    common.review(config)
    config.data = common.test_data()  # Empty data.test: the test patients of stage two.
    # "keep": only the test part of sources that have a split. Or "ignore": all images.
    config.data.given_splits = "keep"
    # Other names for the labels of data.test, as in configs/finetune.py, such as
    # "normal=No Finding|no finding". Those of stage two are not used for it.
    config.data.label_map = ""
    return config
