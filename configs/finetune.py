"""Stage two, transfer: trains the encoder of stage one on conditions and ages of infants.

    python main.py --config=configs/finetune.py --config.pretrained=runs/pretrain

takes about three minutes on two CPU cores, on embedded data (infant phantom, 64 px,
ShuffleNet), and writes `report.html`. Without `--config.pretrained` the encoder starts from random
weights.

    python main.py --config=configs/finetune.py:paper \
        --config.data.train=manifest:/data/infant.csv --config.pretrained=runs/pretrain

is the paper's size: 224 px, for GPUs.

    python main.py --config=configs/finetune.py:best --workdir=runs/best/finetune \
        --config.data.train=manifest:/data/infant.csv --config.pretrained=runs/best/pretrain

continues `configs/pretrain.py:best` with self-training: a teacher learns from the labelled images;
a student learns from the labels and, on the other images, from the teacher's predictions
(docs/few_labels.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "cpu"):
    config = common.training()
    config.task = "finetune"
    # A stage-one workdir, "torch:FILE" (a torch state dict), or empty for random weights.
    config.pretrained = ""
    # "single": one condition an image. "multi": any number of findings, joined by | in the label.
    config.labels = "single"
    # Further inputs of the heads, if the data contains them: "sex", "view" or "sex,view".
    config.condition_on = ""
    config.age_head = True  # AgePredictionNet; False in the paper's ablation "without APN".
    config.age_weight = 0.8  # α of Equation 4, as in the paper.
    config.age_loss = "mse"  # Equation 3. Or "distribution": over ages, with the loss of DLDL-v2.
    # Weights of the two losses: "fixed" uses α; "uncertainty" learns them (Kendall 2018) and
    # ignores α.
    config.age_weighting = "fixed"
    config.age_film = False  # The predicted age modulates the condition head's features (FiLM).
    config.freeze_encoder = False  # True: a linear probe; only the heads learn.
    config.encoder_learning_rate_factor = 1.0
    # Learning rate of a pyramid level of the encoder, relative to the next deeper level. Below 1
    # the first layers change least; 1 = the same everywhere.
    config.layer_decay = 1.0
    config.class_weights = "none"  # "balanced": inverse frequency in the loss.
    # MixUp: training on weighted means of two images; α of the Beta distribution. 0 = off.
    config.mixup = 0.0
    # Weight of the squared difference between the probabilities in two augmented views of an image.
    # A step then takes twice as long. 0 = off: one view.
    config.consistency = 0.0
    config.ema_decay = 0.0  # Above 0: evaluate an exponential moving average of the weights.
    # BatchNorm statistics at evaluation are means over batches of this number of training images
    # without augmentation; 0 = running averages over the augmented images.
    config.batch_norm_images = 1000
    # The checkpoint with the best value of this metric on the validation images is evaluated at the
    # end. If fewer than 100 validation images have the label or age for it, the last one is.
    config.best_metric = "roc_auc"  # Or accuracy, recall, precision, f1, loss, age_mae_months.
    # Stop after this number of evaluations without improvement; 0 = never. Ignored if the last
    # checkpoint is used.
    config.early_stopping_evals = 0
    config.bootstrap_samples = 1000
    common.review(config)
    # Coverage: the share of validation images with the truth in the prediction set and in the age
    # interval. Calibration, prediction sets and outlier detection are fitted after training
    # (trust.json); 0 = none.
    config.coverage = 0.9
    config.encoder = "shufflenet"
    config.batch_size = 32
    config.train_steps = 1800
    config.eval_every_steps = 600
    config.checkpoint_every_steps = 600
    config.optimizer.learning_rate = 2e-3
    # Self-training. A teacher first learns from the labelled images. A student then starts from
    # `pretrained` and trains for train_steps on the labels and, on training images without a label,
    # on the teacher's predictions. Skipped if every training image has a label.
    config.self_training = ConfigDict()
    # The teacher is a linear probe of the frozen encoder that the student starts from.
    config.self_training.linear_probe = False
    # Further stage-one workdirs, joined by +. The teacher is then the mean of all probes.
    config.self_training.committee = ""
    config.self_training.teacher_steps = 0  # Or a network, fine-tuned for this many steps.
    config.self_training.teachers = 1  # Fine-tuned teachers, with different seeds.
    # Students in turn, each the teacher of the next. They share the steps of training equally.
    config.self_training.rounds = 1
    # Share of images with a condition in a student's batch. It also applies without self-training
    # if images with a condition are rarer than this (all images have an age, few a condition). A
    # teacher's batch has this share of batch_size.
    config.labelled_fraction = 0.25

    if variant == "paper":
        # The paper gives only α. 224 px and batches of 64 are customary. With 30 epochs over 70,353
        # images and early stopping, the validation patients determine the length. ResNet-50 is the
        # paper's best encoder.
        config.encoder = "resnet50"
        config.data.image_size = 224
        config.data.num_threads = 16
        config.batch_size = 64
        config.dtype = "bfloat16"
        config.train_steps = 0
        config.train_epochs = 30.0
        config.optimizer.learning_rate = 3e-4
        config.log_every_steps = 50
        config.eval_every_steps = 500
        config.checkpoint_every_steps = 500
        config.early_stopping_evals = 10
        config.batch_norm_images = 0
    elif variant == "best":
        # The augmentation is the default: a stronger one showed no gain (docs/first_split.md).
        # configs/pretrain.py:best gives the reason for a ShuffleNet. With few labels a probe of the
        # frozen encoder is as good a teacher as a fine-tuned network on validation patients, and
        # takes seconds (docs/results.md).
        config.self_training.linear_probe = True
        config.batch_size = 64
        config.optimizer.learning_rate = 1e-3
        config.train_steps = 0  # Length by the data: 240 steps for 70 labels, 920 for 3,900.
        config.eval_every_steps = 50  # This and the next are used if train_steps is set.
        config.checkpoint_every_steps = 50
        config.ema_decay = 0.99
        config.batch_norm_images = 0
    elif variant != "cpu":
        raise ValueError(
            f"configs/finetune.py has the variants cpu, paper and best, not {variant!r}"
        )
    return config
