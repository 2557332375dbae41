"""Checks the data before training: unreadable images, leaks between splits, shortcuts.

    python main.py --config=configs/check_data.py --config.data.train=folder:/data/images

It reads about 800 small JPEG images a second on a core, or 1.5 DICOM images of JPEG 2000. It writes
report.html, problems.csv and films.csv, and exits with code 1 if something must be fixed:
unreadable images, a patient or an image in two splits, or labelled images that stage two refuses.
Set --config.other_stage to the data of the other stage to check that it does not contain this one's
test patients.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "check_data"
    config.other_stage = ""  # The data.train of stage one, if it differs from this data.
    config.num_processes = 0  # 0: one per core.
    # "single": one condition an image. "multi": any number of findings, joined by | in the label.
    config.labels = "single"
    everything = common.data()
    config.data = ConfigDict()
    for name in (
        *("train", "validation", "test", "validation_fraction", "test_fraction"),
        *("given_splits", "split_seed", "patient_ids", "classes", "on_error"),
        *("label_map", "normal_names", "uncertain"),
    ):
        config.data[name] = everything[name]
    return config
