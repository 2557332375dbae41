"""Decodes every image once, into a folder that the other tasks read from.

    python main.py --config=configs/prepare.py --workdir=/data/decoded \
        --config.data.train=folder:/data/images --config.data.image_size=224

Worth it from some ten thousand images on: reading decoded images is at least twenty times faster.
The same command again resumes, and adds new and changed images. Several machines may run it on the
same folder (docs/cache.md). Afterwards give pretrain, finetune, probe and study the same image_size
and --config.data.cache=/data/decoded, and evaluate and predict the cache alone. An image of 224
pixels takes 50 kB.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "prepare"
    config.data = ConfigDict()
    config.data.train = "phantom:infant"  # What to decode: all three together.
    config.data.validation = ""
    config.data.test = ""
    config.data.image_size = 64  # These three must be the same as in the task that reads it.
    config.data.resize = "pad"
    config.data.trim_borders = False
    config.data.on_error = "raise"  # Unreadable images: end with an error, or only "skip" them.
    config.bits = 8  # Or 16: twice the space, for images whose grey levels matter beyond display.
    config.num_processes = 0  # 0: one a core.
    config.images_per_shard = 0  # 0: 512, or more where there would be over 500 shards.
    config.ray_address = ""  # Of a Ray cluster, such as "auto"; the workdir must be shared by it.
    return config
