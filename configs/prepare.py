"""Decodes every image once, into a cache folder that the other tasks read.

    python main.py --config=configs/prepare.py --workdir=/data/decoded \
        --config.data.train=folder:/data/images --config.data.image_size=224

This is useful for ten thousand images or more: reading decoded images is at least twenty times
faster. Run the same command again to resume, and to add new and changed images; several machines
may fill the same folder (docs/cache.md). Then pass --config.data.cache=/data/decoded and the same
image_size to pretrain, finetune, probe, label_efficiency and study, and the cache alone to evaluate
and predict. An image of 224 pixels takes 50 kB.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "prepare"
    config.data = ConfigDict()
    config.data.train = "phantom:infant"  # All three are decoded.
    config.data.validation = ""
    config.data.test = ""
    config.data.image_size = 64  # These three must be the same as in the task that reads the cache.
    config.data.resize = "pad"
    config.data.trim_borders = False
    config.data.on_error = "raise"  # For unreadable images. Or "skip": list them and continue.
    config.bits = 8  # Or 16: twice the space, for grey levels finer than those of a display.
    config.num_processes = 0  # 0: one per core.
    config.images_per_shard = 0  # 0: 512, or more where there would be over 500 shards.
    config.ray_address = ""  # Of a Ray cluster, such as "auto"; put the workdir on a shared disk.
    return config
