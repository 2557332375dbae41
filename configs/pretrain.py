"""Stage one, representation learning: trains an encoder on X-rays, without labels by default.

    python main.py --config=configs/pretrain.py

takes less than two minutes on two CPU cores, on embedded data (adult and infant phantoms, 64 px,
ShuffleNet).

    python main.py --config=configs/pretrain.py:paper \
        --config.data.train=manifest:/data/adult.csv,manifest:/data/infant.csv

is the paper's size: ResNet-50, 224 px, for GPUs. Stage two uses the same `/data/infant.csv`: its
test patients are left out here.

    python main.py --config=configs/pretrain.py:best --workdir=runs/best/pretrain \
        --config.data.train=manifest:/data/adult.csv,manifest:/data/infant.csv

is the recommended start for few labels: masked prediction of edges instead of Equation 1
(docs/results.md), with a ShuffleNet and 96,000 images sampled.
"""

from ml_collections import ConfigDict

from configs import common


def denoise() -> ConfigDict:
    """Settings of objective=denoise."""
    config = ConfigDict()
    config.noise = 0.2  # Standard deviation, of the intensity range.
    return config


def masking() -> ConfigDict:
    """Settings of objective=masked_pixels and objective=masked_hog."""
    config = ConfigDict()
    config.fraction = 0.6  # Of the patches, in each image.
    # Pixels: 4, 8, 16 or 32. 0 = about an eighth of the image's side: 8 at 64 px, 32 at 224.
    config.patch_size = 0
    return config


def views() -> ConfigDict:
    """Settings of objective=simsiam and byol: how the two views of an image differ.

    No flips, for the reasons given in `common.augment`.
    """
    config = common.augment()
    config.rotation_degrees = 15.0
    config.scale = 0.3  # One of the two views can show three times the area of the other.
    config.shift = 0.1
    config.contrast = 0.3
    config.gamma = 0.3
    config.blur = 0.01  # Largest standard deviation, of the image side.
    return config


def supervised() -> ConfigDict:
    """Settings of objective=supervised: conditions and ages of the source data.

    data.label_fraction sets the share of the training patients with labels.
    """
    config = ConfigDict()
    # The sources with labels and ages to learn, "source:place", separated by commas. Empty: all
    # sources of data.train but the last, which is the target. Its labels belong to stage two.
    config.sources = ""
    config.labels = "single"  # "multi": any number of findings, joined by | in the label.
    config.age_head = True  # AgePredictionNet learns the known ages.
    config.age_weight = 0.8
    config.augment = common.augment()
    return config


def weights() -> ConfigDict:
    """Weights of joined objectives. Losses of l1 and denoise are about a tenth of the others."""
    config = ConfigDict()
    config.l1 = 10.0
    config.denoise = 10.0
    config.masked_pixels = 1.0
    config.masked_hog = 1.0
    config.simsiam = 1.0
    config.byol = 1.0
    config.supervised = 1.0
    return config


def get_config(variant: str = "cpu"):
    config = common.training()
    config.task = "pretrain"
    # "l1" (Equation 1), "denoise", "masked_pixels", "masked_hog", "simsiam", "byol" or
    # "supervised": docs/objectives.md. Several are joined by +: "supervised+masked_hog".
    config.objective = "l1"
    config.weights = weights()
    # An earlier stage one (or "torch:FILE") to start from; empty for random weights.
    config.pretrained = ""
    config.supervised = supervised()
    config.teacher_momentum = 0.99  # Of objective=byol: the decay of the moving average.
    config.denoise = denoise()
    config.masking = masking()
    config.views = views()
    config.data.train = "phantom:adult,phantom:infant"
    config.encoder = "shufflenet"
    config.batch_size = 16
    config.train_steps = 640
    config.eval_every_steps = 640
    config.checkpoint_every_steps = 640
    config.optimizer.learning_rate = 2e-3
    # No augmentation: the paper names none. A target that moves along with its input teaches no
    # invariance; it only takes longer to reconstruct.
    for name in config.augment:
        config.augment[name] = type(config.augment[name])(0)
    config.images_every_steps = 640  # Panels of input, reconstruction and difference.
    # A linear classifier on the frozen latent, fitted on labelled training patients and scored on
    # validation patients of the last source of data.train that has labels (so name the target
    # domain last). A falling L1 loss does not show whether the representation transfers.
    config.probe_every_steps = 640  # 0 = never.
    config.probe_images = 512  # At most, in each of the two sets.

    if variant == "paper":
        # The paper gives none of the values below. 224 px and batches of 256 are customary for
        # these encoders; 20 epochs of its 312,000 images are 24,000 steps, after which the L1 loss
        # of autoencoders of this size no longer improves. ResNet-50 is the paper's best encoder.
        config.encoder = "resnet50"
        config.data.image_size = 224
        config.data.num_threads = 16
        config.batch_size = 256
        config.dtype = "bfloat16"
        config.optimizer.learning_rate = 1e-3
        config.train_steps = 0
        config.train_epochs = 20.0
        config.log_every_steps = 50
        config.eval_every_steps = 1000
        config.checkpoint_every_steps = 1000
        config.images_every_steps = 1000
        config.probe_every_steps = 2000
        config.probe_images = 5000
    elif variant == "best":
        config.objective = "masked_hog"
        # At 64 px within .01 of ResNet-50's ROC AUC on validation patients (one seed), in a fifth
        # of the time. To change it, set --config.encoder in both stages.
        config.encoder = "shufflenet"
        config.batch_size = 64
        config.train_steps = 1500
        config.log_every_steps = 50
        config.eval_every_steps = 500
        config.checkpoint_every_steps = 250
        config.images_every_steps = 500
        config.probe_every_steps = 500
    elif variant != "cpu":
        raise ValueError(
            f"configs/pretrain.py has the variants cpu, paper and best, not {variant!r}"
        )
    return config
