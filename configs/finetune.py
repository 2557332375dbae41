"""Stage two, transfer: trains the encoder of stage one on conditions and ages of infants.

    python main.py --config=configs/finetune.py --config.pretrained=runs/pretrain

takes three minutes on two CPU cores, on embedded data (infant phantom, 64 px, ShuffleNet), and
writes `report.html`. Without `--config.pretrained` the encoder starts from random weights.

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
    # Further inputs of the heads, where the data knows them: "sex", "view" or "sex,view".
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
    config.ema_decay = 0.0  # Above 0: evaluate an exponential moving average of the weights.
    # The checkpoint evaluated at the end is the best on the validation images by this metric, or
    # the last if fewer than 100 validation images have an answer for it.
    config.best_metric = "roc_auc"  # Or accuracy, recall, precision, f1, loss, age_mae_months.
    # Stop after so many evaluations without improvement; 0 = never; ignored when the last
    # checkpoint is used.
    config.early_stopping_evals = 0
    config.bootstrap_samples = 1000
    common.review(config)
    # Share of validation images whose prediction set and age interval hold the truth. Calibration,
    # prediction sets and outlier detection are fitted after training (trust.json); 0 = none.
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
    # Further stage-one workdirs, joined by +: the teacher is the mean of the probes of all.
    config.self_training.committee = ""
    config.self_training.teacher_steps = 0  # Or a network fine-tuned for so many steps; 0 = none.
    config.self_training.teachers = 1  # Several teachers have different seeds; their mean is used.
    # Share of images with a condition in a student's batch, and in any batch if they are rarer than
    # this in the data (all images have an age, few a condition). A teacher's batch has this share
    # of batch_size.
    config.labelled_fraction = 0.25

    if variant == "paper":
        # The paper gives α only. 224 px and batch 64 are customary; with 30 epochs over 70,353
        # images and early stopping the validation patients decide the length. The paper's best
        # encoder.
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
    elif variant == "best":
        # The augmentation is the default: a stronger one showed no gain (docs/first_split.md).
        # The encoder is a ShuffleNet for the reason that configs/pretrain.py:best gives.
        # With few labels a probe of the frozen encoder is as good a teacher as a fine-tuned network
        # on validation patients, and takes seconds (docs/results.md).
        config.self_training.linear_probe = True
        config.batch_size = 64
        config.optimizer.learning_rate = 1e-3
        config.train_steps = 0  # By the data: 240 steps for 70 labelled images, 920 for 3,900.
        config.eval_every_steps = 50  # These two where train_steps is set.
        config.checkpoint_every_steps = 50
        config.ema_decay = 0.99
    elif variant != "cpu":
        raise ValueError(
            f"configs/finetune.py has the variants cpu, paper and best, not {variant!r}"
        )
    return config
