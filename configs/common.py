"""Settings shared by all tasks. Base values only: derived values (steps from epochs, the
learning-rate schedule) are computed in code after the command line has been applied."""

from ml_collections import ConfigDict


def data() -> ConfigDict:
    """Sources of the radiographs, their split, and how they are read."""
    config = ConfigDict()
    # Comma-separated `source:place`, e.g. "manifest:/data/a.csv,folder:/data/b,phantom:infant".
    config.train = "phantom:infant"
    config.validation = ""  # Empty: split from train, by patient.
    config.test = ""  # Empty: split from train, by patient.
    config.given_splits = "keep"  # Or "ignore": make a new split even if a source has one.
    config.validation_fraction = 0.15  # Of the patients of a source without a split.
    config.test_fraction = 0.15
    config.split_seed = 0  # Use the same in both stages, so that they agree on the test patients.
    # "shared": the same patient_id in two sources is the same person. "source": ids are unique
    # within a source only (hospitals that both count from 1).
    config.patient_ids = "shared"
    # Class names, separated by commas. Empty: the labels found in the training data.
    config.classes = ()
    # Other names for labels: "normal=No Finding|no finding,mass=Mass", or a file with such a line
    # for each. The log and the report say what was mapped.
    config.label_map = ""
    config.normal_names = "normal,no finding,no findings"  # No finding, with config.labels=multi.
    # Uncertain findings of training images, with config.labels=multi: "ignore", "positive" or
    # "negative". Uncertain findings of validation and test images are always ignored.
    config.uncertain = "ignore"
    # Share of the training patients with labels and ages; of the others only the images are used.
    # It applies to both stages (stage one uses labels in its probe, and if it is supervised).
    config.label_fraction = 1.0
    config.label_seed = 0  # Another seed draws other labelled patients.
    config.image_size = 64  # Pixels, a multiple of 32.
    config.resize = "pad"  # "pad" and "crop" keep the aspect ratio; "squash" does not.
    config.trim_borders = False  # Cut collimated margins before resizing.
    config.on_error = "raise"  # For a file that cannot be read. Or "skip": list it and continue.
    config.cache = ""  # Folder written by configs/prepare.py.
    config.memory_mb = 1024  # Decoded images stay in memory if all of them fit in this size.
    config.num_threads = 4  # Decoding threads.
    return config


def test_data() -> ConfigDict:
    """Images of evaluation and prediction; the other data settings are the checkpoint's."""
    config = ConfigDict()
    config.test = ""
    config.on_error = "raise"
    config.cache = ""
    config.num_threads = 4
    return config


def review(config: ConfigDict) -> None:
    """Adds what a report shows beside the headline metrics."""
    # Rules for thresholds: sensitivity:X, specificity:X and youden, separated by commas. Thresholds
    # are fixed on validation patients. Empty: no thresholds.
    config.operating_points = "sensitivity:0.95,youden"
    config.prevalence = ""  # Also state predictive values at these, such as "0.01,0.1".
    # Columns of subgroups: sex, age, view, site, source; manufacturer, year and kvp (of DICOM
    # headers); and any other column of the manifest, such as "sex,site,incubator".
    config.subgroups = "sex,age,view,site"


def augment() -> ConfigDict:
    """Random changes of training images; 0 switches a change off.

    No flips by default, in either stage. Situs inversus, hepatomegaly and splenomegaly depend on
    the side, which a left-right flip destroys; air-fluid levels and free air depend on gravity,
    which an up-down flip destroys.
    """
    config = ConfigDict()
    config.rotation_degrees = 7.0  # Half-range, as in all settings below except noise and erase.
    config.scale = 0.1  # Relative.
    config.shift = 0.05  # Of the image side.
    config.contrast = 0.2
    config.brightness = 0.1  # Of the intensity range.
    config.gamma = 0.2  # In log units.
    config.noise = (
        0.02  # Standard deviation, of the intensity range; drawn from 0 to this for each image.
    )
    config.erase = 0.0  # Largest side of a square painted grey, of the image side.
    config.flip_left_right = False
    config.flip_up_down = False
    return config


def optimizer() -> ConfigDict:
    config = ConfigDict()
    config.name = "adamw"  # Or "sgd" (Nesterov momentum 0.9).
    config.learning_rate = 1e-3  # After the warm-up; then cosine decay to zero.
    config.warmup_fraction = 0.05  # Of all steps.
    # On kernels only, not on biases and normalisation. It is multiplied by the learning rate: at
    # the lengths of training in these files it shrinks a kernel by well under 1 %.
    config.weight_decay = 1e-4
    config.clip_norm = 1.0  # Global norm of the gradient; 0 = no clipping.
    # Multiplies learning_rate for encoders without BatchNorm (VGG19). At the learning rate of the
    # other encoders, the weights change completely within a few steps and the encoder learns
    # nothing.
    config.factor_without_batchnorm = 0.03
    return config


def training() -> ConfigDict:
    """Settings of both stages."""
    config = ConfigDict()
    config.seed = 0
    config.encoder = "resnet50"
    config.batch_size = 16
    # Number of parts of a batch, if a batch does not fit in memory. BatchNorm sees one part at a
    # time.
    config.accumulate_steps = 1
    config.dtype = "float32"  # Of the computation, or "bfloat16"; parameters stay float32.
    # Set exactly one of the two above 0. In stage two both may be 0: the length then follows from
    # the number of labelled images, with early stopping if there are enough validation images.
    config.train_steps = 0
    config.train_epochs = 0.0
    config.log_every_steps = 20
    config.eval_every_steps = 100
    config.checkpoint_every_steps = 100
    # The checkpoint from which a run resumes: "latest", or "last_good", which sets damaged
    # checkpoints aside.
    config.resume = "latest"
    config.data = data()
    config.augment = augment()
    config.optimizer = optimizer()
    return config
