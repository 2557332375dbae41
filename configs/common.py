"""Settings that every task shares. Base values only: what follows from them (steps from epochs,
the learning-rate schedule) is derived in code after the command line has been applied."""

from ml_collections import ConfigDict


def data() -> ConfigDict:
    """Where radiographs come from and how they are divided and read."""
    config = ConfigDict()
    # Comma-separated `source:place`, e.g. "manifest:/data/a.csv,folder:/data/b,phantom:infant".
    config.train = "phantom:infant"
    config.validation = ""  # Empty: split from train, by patient.
    config.test = ""  # Empty: split from train, by patient.
    config.given_splits = "keep"  # Or "ignore" the splits that sources bring, and cut new ones.
    config.validation_fraction = 0.15  # Of the patients of a source that brings no split.
    config.test_fraction = 0.15
    config.split_seed = 0  # Keep it equal in both stages, so that they agree on who is tested.
    # "shared": the same patient_id in two sources is the same person. "source": ids of one source
    # mean nothing in another (hospitals that both count from 1).
    config.patient_ids = "shared"
    # Empty: the labels found in the training data. Or names, separated by commas.
    config.classes = ()
    # Of the training patients; the rest keep their images and lose labels and ages, in both stages
    # (stage one uses labels for its probe alone).
    config.label_fraction = 1.0
    config.label_seed = 0  # Another one keeps the labels of other patients.
    config.image_size = 64  # Pixels, a multiple of 32.
    config.resize = "pad"  # "pad" keeps the aspect ratio, "crop" too; "squash" does not.
    config.trim_borders = False  # Cut collimated margins before resizing.
    config.on_error = "raise"  # A file that cannot be read: "raise", or "skip" and list it.
    config.cache = ""  # Folder written by configs/prepare.py.
    config.memory_mb = 1024  # Decoded images stay in memory where all of them fit into so much.
    config.num_threads = 4  # Decoding threads.
    return config


def test_data() -> ConfigDict:
    """Where the images of evaluation and prediction come from; the rest is the checkpoint's."""
    config = ConfigDict()
    config.test = ""
    config.on_error = "raise"
    config.cache = ""
    config.num_threads = 4
    return config


def augment() -> ConfigDict:
    """Random changes to training images; 0 switches one off.

    No flips by default, in either stage. Situs inversus, hepatomegaly and splenomegaly are about
    sides, which a left-right flip destroys; air-fluid levels and free air are about gravity, which
    an up-down flip destroys.
    """
    config = ConfigDict()
    config.rotation_degrees = 7.0  # Half-ranges, but for noise and erase.
    config.scale = 0.1  # Relative.
    config.shift = 0.05  # Of the image side.
    config.contrast = 0.2
    config.brightness = 0.1  # Of the intensity range.
    config.gamma = 0.2  # In log units.
    config.noise = (
        0.02  # Largest standard deviation, of the intensity range; an image has 0 to that.
    )
    config.erase = 0.0  # The largest side of a square that is greyed out, of the image side.
    config.flip_left_right = False
    config.flip_up_down = False
    return config


def optimizer() -> ConfigDict:
    config = ConfigDict()
    config.name = "adamw"  # Or "sgd" (Nesterov momentum 0.9).
    config.learning_rate = 1e-3  # At the end of the warm-up; cosine to zero from there.
    config.warmup_fraction = 0.05  # Of all steps.
    # On kernels alone, not on biases and normalisation. It is multiplied by the learning rate: at
    # the lengths of these files it takes well under 1 % off a kernel.
    config.weight_decay = 1e-4
    config.clip_norm = 1.0  # Of the whole gradient; 0 = no clipping.
    # Times learning_rate, for encoders without BatchNorm (VGG19). At the rate that suits the others
    # their weights turn over in a few steps, and they learn nothing.
    config.factor_without_batchnorm = 0.03
    return config


def training() -> ConfigDict:
    """What both stages share."""
    config = ConfigDict()
    config.seed = 0
    config.encoder = "resnet50"
    config.batch_size = 16
    # Splits a batch where it does not fit in memory. BatchNorm then sees the parts one by one.
    config.accumulate_steps = 1
    config.dtype = "float32"  # Or "bfloat16": of the computation; parameters stay float32.
    # Exactly one of the two is above 0.
    config.train_steps = 0
    config.train_epochs = 0.0
    config.log_every_steps = 20
    config.eval_every_steps = 100
    config.checkpoint_every_steps = 100
    config.data = data()
    config.augment = augment()
    config.optimizer = optimizer()
    return config
