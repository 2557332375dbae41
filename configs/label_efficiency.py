"""How far frozen encoders get with few labels: linear probes over many draws of labelled patients.

    python main.py --config=configs/label_efficiency.py --config.encoders=random,runs/pretrain

takes under two minutes on two CPU cores, on embedded data (infant phantom, 64 px), and ends with
`report.html`: ROC AUC and age error by share of labels, with intervals over patients and draws, and
paired differences of the last encoder from the others. It is the cheapest honest way to choose
between stages one before fine-tuning any of them.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    config = ConfigDict()
    config.task = "label_efficiency"
    config.seed = 0  # Of random weights, and of the resampling.
    # Separated by commas: stage-one workdirs, "random" (random weights) or "pixels" (the image at
    # 32 x 32), each with a name if wanted; those joined by "+" take turns by draw, such as stages
    # one of several seeds: "random,l1=runs/l1_a+runs/l1_b,hog=runs/hog_a+runs/hog_b".
    config.encoders = "pixels,random"
    config.encoder = "resnet50"  # Of random weights; a stage one knows its own.
    config.label_fractions = (0.02, 0.1, 1.0)  # Of the training patients: labels and ages.
    config.draws = 20  # Of the patients who keep what is known of them, below 1.
    config.dtype = "float32"
    config.batch_size = 16
    config.train_films = 5000  # At most, of those with a label or an age.
    config.bootstrap_samples = 500
    config.data = common.data()
    return config
