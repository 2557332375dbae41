"""The paper in one command: its Tables 1 and 2 and its figures, with statistics, in `report.html`.

    python main.py --config=configs/study.py

takes 21 minutes on two CPU cores, on embedded data: two encoders at 64 px, the paper's three
variants, three seeds. So few steps say little about the method: they show what the study measures
and how wide its intervals are. Selections:

    python main.py --config=configs/study.py --config.study.dry_run=True
    python main.py --config=configs/study.py --config.study.encoders=densenet121,vgg19 \
        --config.study.label_fractions=0.02,0.1,1.0 --config.finetune.train_steps=300
    python main.py --config=configs/study.py --config.study.cells=0-5

The whole of the paper: eight encoders, five seeds, 224 px, for GPUs:

    python main.py --config=configs/study.py:paper --workdir=/shared/study \
        --config.study.pretrain_data=manifest:/data/adult.csv,manifest:/data/infant.csv \
        --config.data.train=manifest:/data/infant.csv

The comparisons of docs/results.md, each at equal budgets: the paper's objective, `best` and their
controls; `best` without one of its terms at a time; stage one by its objective; the age term:

    python main.py --config=configs/study.py:best --workdir=runs/recipes \
        --config.study.pretrain_data=manifest:/data/adult.csv,manifest:/data/infant.csv \
        --config.data.train=manifest:/data/infant.csv
    python main.py --config=configs/study.py:ablation --workdir=runs/ablation
    python main.py --config=configs/study.py:objectives --workdir=runs/objectives
    python main.py --config=configs/study.py:age --workdir=runs/age

The same command again goes on where it was stopped. docs/study.md has Slurm arrays and Ray.
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


# Variants of this file, and what each takes from configs/pretrain.py and configs/finetune.py.
SIZES = {
    "cpu": "cpu",
    "paper": "paper",
    "best": "best",
    "ablation": "best",
    "objectives": "best",
    "age": "cpu",
}


# What each compares; a ConfigDict forgets the order. The last is what the others are compared with.
VARIANTS = {
    "cpu": ("without_pretraining", "without_apn", "full"),
    "paper": ("without_pretraining", "without_apn", "full"),
    "best": (
        "random",
        "random_self_training",
        "random_fine_tuned_teacher",
        "paper",
        "masked",
        "best",
    ),
    "ablation": (
        "without_masking",
        "without_teachers",
        "fine_tuned_teacher",
        "without_augmentation",
        "strong_augmentation",
        "without_average",
        "best",
    ),
    "objectives": ("random", "l1", "denoise", "simsiam", "masked_pixels", "masked_hog"),
    "age": ("mse", "learned_weights", "distribution", "condition", "all", "none"),
}

_LABELS_ALONE = {"self_training": {"linear_probe": False}}
# For a student of 150 steps: as many images in all as `best` draws.
_FINE_TUNED_TEACHER = {"self_training": {"linear_probe": False, "teacher_steps": 150}}


def _variants() -> ConfigDict:
    """What is compared, by name: whether stage two starts from a stage one, and what each of the
    two stages changes of its settings. Variants that change nothing of stage one, or the same,
    share its runs. Variants that change the teachers of stage two still draw equally many images."""
    config = ConfigDict()
    config.without_pretraining = {"pretrained": False, "pretrain": {}, "finetune": {}}
    config.without_apn = {"pretrained": True, "pretrain": {}, "finetune": {"age_head": False}}
    config.full = {"pretrained": True, "pretrain": {}, "finetune": {}}
    return config


def _recipes() -> ConfigDict:
    """`best`, and what it is compared with: the weights that stage two starts from, and whether a
    teacher comes first, change; the number of images that stage two draws does not."""
    config = ConfigDict()
    for name, pretrained, pretrain_change, finetune_change in (
        ("random", False, {}, _LABELS_ALONE),
        ("paper", True, {"objective": "l1"}, _LABELS_ALONE),
        ("masked", True, {}, _LABELS_ALONE),
        ("random_self_training", False, {}, {}),
        # What suits random weights better than a probe of theirs.
        ("random_fine_tuned_teacher", False, {}, _FINE_TUNED_TEACHER),
        ("best", True, {}, {}),
    ):
        config[name] = {
            "pretrained": pretrained,
            "pretrain": pretrain_change,
            "finetune": finetune_change,
        }
    return config


# Every change about twice as large as the usual ones, and a square that is greyed out.
_STRONG = {
    "rotation_degrees": 12.0,
    "scale": 0.2,
    "shift": 0.1,
    "contrast": 0.4,
    "brightness": 0.2,
    "gamma": 0.4,
    "noise": 0.04,
    "erase": 0.5,
}


def _terms() -> ConfigDict:
    """`best`, and `best` with one of its terms at a time left out or changed."""
    none = {name: type(value)(0) for name, value in common.augment().items()}
    config = ConfigDict()
    config.without_masking = {"pretrained": True, "pretrain": {"objective": "l1"}, "finetune": {}}
    for name, change in (
        ("without_teachers", _LABELS_ALONE),
        ("fine_tuned_teacher", _FINE_TUNED_TEACHER),
        ("without_augmentation", {"augment": none}),
        ("strong_augmentation", {"augment": _STRONG}),
        ("without_average", {"ema_decay": 0.0}),
        ("best", {}),
    ):
        config[name] = {"pretrained": True, "pretrain": {}, "finetune": change}
    return config


def _objectives() -> ConfigDict:
    """Random weights and every objective of stage one, then labels alone."""
    config = ConfigDict()
    for name in VARIANTS["objectives"]:
        pretrained = name != "random"
        config[name] = {
            "pretrained": pretrained,
            "pretrain": {"objective": name} if pretrained else {},
            "finetune": _LABELS_ALONE,
        }
    return config


def _age_terms() -> ConfigDict:
    """What stage two makes of the ages, all else as in the paper's method; compared with none."""
    config = ConfigDict()
    for name, change in (
        ("mse", {}),
        ("learned_weights", {"age_weighting": "uncertainty"}),
        ("distribution", {"age_loss": "distribution"}),
        ("condition", {"age_film": True}),
        ("all", {"age_weighting": "uncertainty", "age_loss": "distribution", "age_film": True}),
        ("none", {"age_head": False}),
    ):
        config[name] = {"pretrained": True, "pretrain": {}, "finetune": change}
    return config


def _stage(config: ConfigDict) -> ConfigDict:
    """The settings of a stage that the study does not set cell by cell."""
    with config.unlocked():
        for key in ("task", "encoder", "seed", "dtype", "data"):
            del config[key]
    return config


def get_config(variant: str = "cpu"):
    if variant not in SIZES:
        names = ", ".join(list(SIZES)[:-1])
        raise ValueError(
            f"configs/study.py has the variants {names} and {list(SIZES)[-1]}, not {variant!r}"
        )
    size = SIZES[variant]
    config = ConfigDict()
    config.task = "study"
    config.study = ConfigDict()
    config.study.size = size  # Of configs/pretrain.py and configs/finetune.py.
    config.study.encoders = ("shufflenet", "resnet50")
    config.study.variants = VARIANTS[variant]  # Of config.variants.
    config.study.seeds = (0, 1, 2)
    # Empty: every seed has a stage one of its own. Or fewer, which take turns: stage one is long.
    config.study.pretrain_seeds = ()
    config.study.label_fractions = (1.0,)  # Of the training patients, for stage two.
    # Who keeps the labels of a fraction: "shared", the same patients in all runs, or "seed": every
    # seed draws its own, the same in all variants.
    config.study.label_draw = "shared"
    # The images of stage one, without labels; those of stage two are data.train.
    config.study.pretrain_data = "phantom:adult,phantom:infant"
    config.study.frozen = True  # A linear probe and k-NN on the frozen features of every encoder.
    config.study.cells = ""  # Empty: all. Or numbers of the plan, such as "0-11,20".
    config.study.dry_run = False  # True: print the plan and stop.
    # Cells at a time on this machine. Several are dealt out to its GPUs; one alone has them all.
    config.study.parallel_cells = 1
    config.ray_address = ""  # Of a Ray cluster, such as "auto": a cell a task, a GPU a cell.
    config.bootstrap_samples = 1000  # Of the study's intervals.
    config.seed = 0  # Of the resampling.
    config.dtype = "float32"
    config.variants = _variants()
    config.data = common.data()  # Of both stages.
    with config.data.unlocked():
        del config.data["label_fraction"]  # A selection of the study.
    config.pretrain = _stage(pretrain.get_config(size))
    config.finetune = _stage(finetune.get_config(size))
    with config.finetune.unlocked():
        del config.finetune["pretrained"]
    if variant == "paper":
        config.study.encoders = ENCODERS
        config.study.seeds = (0, 1, 2, 3, 4)
        config.dtype = "bfloat16"
        config.data.image_size = 224
        config.data.num_threads = 16
        return config
    if variant != "cpu":
        config.study.encoders = ("shufflenet",)
        config.study.label_draw = "seed"
        if variant == "best":
            config.variants = _recipes()
            config.study.seeds = tuple(range(12))  # Draws of labels differ more than recipes.
            config.study.pretrain_seeds = (0, 1)
            config.study.label_fractions = (0.02, 0.1, 1.0)
        elif variant == "ablation":
            config.variants = _terms()
            config.study.label_fractions = (0.02,)
        elif variant == "objectives":
            config.variants = _objectives()
            config.study.pretrain_seeds = (0,)
            config.study.label_fractions = (0.02, 0.1, 1.0)
        else:
            config.variants = _age_terms()
            config.finetune.train_steps = 600
        return config
    for stage in (config.pretrain, config.finetune):
        stage.train_steps = 100
        stage.eval_every_steps = 50
        stage.checkpoint_every_steps = 50
    config.pretrain.images_every_steps = 100
    config.pretrain.probe_every_steps = 0  # The study probes every encoder at the end.
    config.finetune.bootstrap_samples = 200  # Of each run's own report.
    return config
