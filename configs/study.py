"""The paper in one command: its Tables 1 and 2 and its figures, with statistics, in `report.html`.

    python main.py --config=configs/study.py

takes 21 minutes on two CPU cores, on embedded data: two encoders at 64 px, the paper's three
variants, three seeds. With so few steps the results show what the study measures and how wide its
intervals are, but say little about the method. Selections:

    python main.py --config=configs/study.py --config.study.dry_run=True
    python main.py --config=configs/study.py --config.study.encoders=densenet121,vgg19 \
        --config.study.label_fractions=0.02,0.1,1.0 --config.finetune.train_steps=300
    python main.py --config=configs/study.py --config.study.cells=0-5

The whole paper: eight encoders, five seeds, 224 px, for GPUs:

    python main.py --config=configs/study.py:paper --workdir=/data/study \
        --config.study.pretrain_data=manifest:/data/adult.csv,manifest:/data/infant.csv \
        --config.data.train=manifest:/data/infant.csv

The comparisons of docs/results.md, each at equal budgets: the paper's objective, `best` and their
controls; `best` without one of its terms; `best` with one more method of semi-supervised learning;
stage one by its objective; stage one with and without labels of the source data; the age term; and
the paper's variants with lengths that follow from the number of labels, and early stopping
(docs/few_labels.md):

    python main.py --config=configs/study.py:best --workdir=runs/recipes \
        --config.study.pretrain_data=manifest:/data/adult.csv,manifest:/data/infant.csv \
        --config.data.train=manifest:/data/infant.csv
    python main.py --config=configs/study.py:ablation --workdir=runs/ablation
    python main.py --config=configs/study.py:semi_supervised --workdir=runs/semi_supervised
    python main.py --config=configs/study.py:objectives --workdir=runs/objectives
    python main.py --config=configs/study.py:transfer --workdir=runs/transfer
    python main.py --config=configs/study.py:age --workdir=runs/age
    python main.py --config=configs/study.py:converged --workdir=runs/converged

The same command again resumes a study that was stopped. docs/study.md has Slurm arrays and Ray.
"""

from ml_collections import ConfigDict

from configs import common, finetune, pretrain

ENCODERS = (
    "vgg19",
    "mobilenet_v2",
    "shufflenet",
    "xception",
    "hrnet_w32",
    "resnext50",
    "densenet121",
    "resnet50",
)

# Variants of this file: the recipe in infantxray/studies/recipes.py, and the variant of
# configs/pretrain.py and configs/finetune.py that its runs start from.
VARIANTS = {
    "cpu": ("paper", "cpu"),
    "paper": ("paper", "paper"),
    "best": ("best", "best"),
    "ablation": ("ablation", "best"),
    "semi_supervised": ("semi_supervised", "best"),
    "objectives": ("objectives", "best"),
    "transfer": ("transfer", "best"),
    "age": ("age", "cpu"),
    "converged": ("paper", "cpu"),
}


def _stage(config: ConfigDict) -> ConfigDict:
    """The settings of a stage that are equal in all runs of the study."""
    with config.unlocked():
        for key in ("task", "encoder", "seed", "dtype", "labels", "data", "pretrained"):
            if key in config:
                del config[key]
    return config


def get_config(variant: str = "cpu"):
    if variant not in VARIANTS:
        names = ", ".join(list(VARIANTS)[:-1])
        raise ValueError(
            f"configs/study.py has the variants {names} and {list(VARIANTS)[-1]}, not {variant!r}"
        )
    recipe, size = VARIANTS[variant]
    config = ConfigDict()
    config.task = "study"
    config.study = ConfigDict()
    config.study.recipe = recipe  # In infantxray/studies/recipes.py: the variants by name.
    config.study.size = size  # Variant of configs/pretrain.py and configs/finetune.py.
    config.study.encoders = ("shufflenet", "resnet50")
    config.study.variants = ()  # Names, in order; empty: all of the recipe.
    # Changes of variants, such as "full.finetune.age_weight=0.4,full.pretrain.objective=denoise".
    config.study.changes = ""
    config.study.seeds = (0, 1, 2)
    # Empty: each seed has a separate stage one. Fewer seeds are used in turn, because stage one
    # takes long.
    config.study.pretrain_seeds = ()
    config.study.label_fractions = (1.0,)  # Of the training patients, for stage two.
    # Which patients keep the labels of a fraction. "shared": the same patients in all runs. "seed":
    # every seed draws other patients, the same in all variants.
    config.study.label_draw = "shared"
    # The images of stage one, without labels; those of stage two are data.train.
    config.study.pretrain_data = "phantom:adult,phantom:infant"
    config.study.frozen = True  # A linear probe and k-NN on the frozen features of every encoder.
    config.study.cells = ""  # Which runs, by their numbers in the plan: "0-11,20". Empty: all.
    config.study.dry_run = False  # True: print the plan and stop.
    # Runs at a time on this machine. Several runs share its GPUs; a single run uses all of them.
    config.study.parallel_cells = 1
    config.ray_address = ""  # Of a Ray cluster, such as "auto": a task and a GPU for each run.
    config.bootstrap_samples = 1000  # For the study's intervals.
    config.seed = 0  # Of the resampling.
    # "single": one condition an image. "multi": any number of findings, joined by | in the label.
    config.labels = "single"
    config.dtype = "float32"
    config.variants = ConfigDict()  # More variants, for files of your own: docs/study.md.
    config.data = common.data()  # Of both stages.
    with config.data.unlocked():
        del config.data["label_fraction"]  # The study sets it.
    config.pretrain = _stage(pretrain.get_config(size))
    config.finetune = _stage(finetune.get_config(size))
    if size == "cpu":
        for stage in (config.pretrain, config.finetune):
            stage.batch_size = 16
        config.finetune.optimizer.learning_rate = 1e-3
    config.finetune.batch_norm_images = 0  # As in the published studies.
    if variant == "cpu":
        for stage in (config.pretrain, config.finetune):
            stage.train_steps = 100
            stage.eval_every_steps = 50
            stage.checkpoint_every_steps = 50
        config.pretrain.images_every_steps = 100
        config.pretrain.probe_every_steps = 0  # The study probes every encoder at the end.
        config.finetune.bootstrap_samples = 200  # For the report of each run.
    elif variant == "paper":
        config.study.encoders = ENCODERS
        config.study.seeds = (0, 1, 2, 3, 4)
        config.dtype = "bfloat16"
        config.data.image_size = 224
        config.data.num_threads = 16
    else:
        config.study.encoders = ("shufflenet",)
        config.study.label_draw = "seed"
    if variant == "best":
        config.study.seeds = tuple(range(12))  # Draws of labels differ more than recipes.
        config.study.pretrain_seeds = (0, 1)
        config.study.label_fractions = (0.02, 0.1, 1.0)
    elif variant in ("ablation", "semi_supervised"):
        config.study.label_fractions = (0.02,)
        if variant == "semi_supervised":
            config.study.seeds = tuple(range(6))
            config.study.pretrain_seeds = (0, 1)
    elif variant == "objectives":
        config.study.pretrain_seeds = (0,)
        config.study.label_fractions = (0.02, 0.1, 1.0)
    elif variant == "transfer":
        config.study.seeds = tuple(range(6))
        config.study.pretrain_seeds = (0, 1)
        config.study.label_fractions = (0.02, 0.1)
    elif variant == "age":
        config.finetune.train_steps = 600
        config.finetune.eval_every_steps = 100
        config.finetune.checkpoint_every_steps = 100
    elif variant == "converged":
        config.study.encoders = ("shufflenet", "mobilenet_v2", "resnet50", "densenet121")
        config.study.label_fractions = (0.02, 0.1, 1.0)
        config.pretrain.train_steps = 1500
        for key in ("eval_every_steps", "checkpoint_every_steps", "images_every_steps"):
            config.pretrain[key] = 750
        config.pretrain.probe_every_steps = 0
        config.finetune.train_steps = 0  # Length by the data, with early stopping.
        config.finetune.batch_norm_images = 1000
        config.finetune.bootstrap_samples = 200
        config.finetune.coverage = 0.0
        for stage in (config.pretrain, config.finetune):
            stage.batch_size = 32
            stage.optimizer.learning_rate = 2e-3
    return config
