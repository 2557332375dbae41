"""Label efficiency of frozen encoders: linear probes over many draws of labelled patients.

    python main.py --config=configs/label_efficiency.py --config.encoders=random,runs/pretrain

takes under two minutes on two CPU cores, on embedded data (infant phantom, 64 px), and writes
`report.html`: ROC AUC and age error by share of labels, with intervals over patients and draws, and
paired differences of the last encoder from the others. Use it to choose between stage-one runs
before you fine-tune any of them.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "label_efficiency"
    config.seed = 0  # Of random weights, and of the resampling.
    # Separated by commas: stage-one workdirs, "torch:FILE" (weights of config.encoder), "random"
    # (random weights), "pixels" (the image at 32 x 32) or "features:FILE.npz" (vectors of any
    # program, see docs/few_labels.md), each optionally with a name. A comma in a path: \,.
    # The draws use workdirs joined by "+" in turn, such as runs of several seeds:
    # "random,l1=runs/l1_a+runs/l1_b,hog=runs/hog_a+runs/hog_b".
    config.encoders = "pixels,random"
    config.encoder = "resnet50"  # For random weights; a stage-one workdir has its own.
    config.label_fractions = (0.02, 0.1, 1.0)  # Shares of training patients with labels.
    config.draws = 20  # Of the labelled patients, for fractions below 1.
    # "single": one condition an image. "multi": any number of findings, joined by | in the label.
    config.labels = "single"
    config.dtype = "float32"
    config.batch_size = 16
    config.train_films = 5000  # At most, of the images with a label or an age.
    config.bootstrap_samples = 500
    config.data = common.data()
    return config
