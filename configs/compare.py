"""Compares two or more finished runs on the same test patients.

    python main.py --config=configs/compare.py --config.runs=runs/finetune,runs/other

takes half a minute. A run is the workdir of configs/finetune.py or configs/evaluate.py; the first
one is the reference. Results on other patients stand beside them, unpaired:

    python main.py --config=configs/compare.py --config.runs=runs/finetune,runs/other \\
        --config.beside=runs/external
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "compare"
    config.runs = ""  # Workdirs, separated by commas, or NAME=FOLDER. A comma in a path: \,.
    config.beside = ""  # Evaluations on other patients, such as external ones, likewise.
    config.permutations = 999  # Of the permutation tests.
    config.seed = 0
    return config
