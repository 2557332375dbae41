"""Looks at the data before hours of training: what cannot be read, what leaks, what misleads.

    python main.py --config=configs/check_data.py --config.data.train=folder:/data/films

About 800 small JPEG images a second on a core, 1.5 DICOM images of JPEG 2000. Writes report.html,
problems.csv and films.csv; ends with exit code 1 where something must be mended: unreadable images,
a patient or an image on two sides of the split, labelled images that stage two refuses. Give
--config.other_stage the data of the other stage to check that it does not show this one's test
patients.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "check_data"
    config.other_stage = ""  # What stage one trains on (data.train there), if it is not this data.
    config.num_processes = 0  # 0: one a core.
    everything = common.data()
    config.data = ConfigDict()
    for name in (
        *("train", "validation", "test", "validation_fraction", "test_fraction"),
        *("given_splits", "split_seed", "patient_ids", "classes", "on_error"),
    ):
        config.data[name] = everything[name]
    return config
