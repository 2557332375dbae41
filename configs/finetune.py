"""Stage two, transfer: the encoder of stage one learns conditions and ages of infants.

    python main.py --config=configs/finetune.py --config.pretrained=runs/pretrain

takes under 2 minutes on two CPU cores, on embedded data (infant phantom, 64 px), and ends with
`report.html`. Without `--config.pretrained` the encoder starts from random weights.

    python main.py --config=configs/finetune.py:paper \
        --config.data.train=manifest:/data/infant.csv --config.pretrained=runs/pretrain

is the paper's size: 224 px, for GPUs.

    python main.py --config=configs/finetune.py:best --workdir=runs/best/finetune \
        --config.data.train=manifest:/data/infant.csv --config.pretrained=runs/best/pretrain

goes on from `configs/pretrain.py:best`: a teacher learns from the labels, a student from labels and
from the teacher's answers for images without (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "cpu"):
    config = common.training()
    config.task = "finetune"
    # A stage-one workdir, "torch:FILE" (a torch state dict), or empty for random weights.
    config.pretrained = ""
    config.age_head = True  # AgePredictionNet; off in the paper's ablation "without APN".
    config.age_weight = 0.8  # α of Equation 4, as in the paper.
    config.age_loss = "mse"  # Equation 3. Or "distribution": over ages, by the loss of DLDL-v2.
    # How the two losses are weighed: "fixed" by α, or "uncertainty": learned (Kendall 2018), and α
    # is then not used.
    config.age_weighting = "fixed"
    config.age_film = False  # The predicted age modulates what the condition head reads (FiLM).
    config.freeze_encoder = False  # True: a linear probe, only the heads learn.
    config.encoder_learning_rate_factor = 1.0
    # Each pyramid level of the encoder learns so many times as fast as the next deeper one, so the
    # first layers change least; 1 = all alike.
    config.layer_decay = 1.0
    config.class_weights = "none"  # "balanced": inverse frequency in the loss.
    config.ema_decay = 0.0  # Above 0: evaluate an exponential moving average of the weights.
    # The checkpoint that is evaluated at the end: the best on the validation images by this metric,
    # or the last where fewer than 100 of them have an answer for it.
    config.best_metric = "roc_auc"  # Or accuracy, recall, precision, f1, loss, age_mae_months.
    # Stop after so many evaluations without a better one; 0 = never. Nor where the last counts.
    config.early_stopping_evals = 0
    config.bootstrap_samples = 1000
    config.train_steps = 300
    # Self-training. A teacher first learns from the labelled images; then a student starts from
    # `pretrained` and learns train_steps from labels and, on training images without one, from what
    # the teacher says.
    config.self_training = ConfigDict()
    # The teacher is a linear probe of the frozen encoder that the student starts from.
    config.self_training.linear_probe = False
    config.self_training.teacher_steps = 0  # Or it is fine-tuned for so many steps; 0 = it is not.
    config.self_training.teachers = 1  # Several, of other seeds, answer by their mean.
    # Of a student's batch: images with a condition, and of any other where these are rarer, as where
    # all images carry an age and few a condition. It is also a teacher's batch.
    config.labelled_fraction = 0.25

    if variant == "paper":
        # The paper gives α alone. 224 px and batch 64 are customary; 30 epochs over 70,353
        # images with early stopping leave the length to the validation patients.
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
        # The augmentation is the usual one: no gain from a stronger one was seen
        # (docs/first_split.md).
        config.encoder = "shufflenet"  # As in configs/pretrain.py:best, which says why.
        # With few labels the frozen representation is at its best: a probe of it is as good a
        # teacher as a fine-tuned one on validation patients, and is there in seconds.
        config.self_training.linear_probe = True
        config.batch_size = 64
        # Short, for few labels; with all of them 900 steps give more (docs/results.md).
        config.train_steps = 188
        config.ema_decay = 0.99
        config.eval_every_steps = 50
        config.checkpoint_every_steps = 50
    elif variant != "cpu":
        raise ValueError(
            f"configs/finetune.py has the variants cpu, paper and best, not {variant!r}"
        )
    return config
