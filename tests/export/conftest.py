"""A finished stage two with a narrow encoder."""

import pytest
from quick_figures import quick_figures
from small_encoder import small_encoder

from configs import finetune as finetune_config
from infantxray.commands import finetune


@pytest.fixture
def small():
    with small_encoder() as name:
        yield name


@pytest.fixture(scope="session")
def _finetuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    config = finetune_config.get_config()
    config.encoder = "small"
    config.data.train = "phantom:infant:films=300"
    config.data.image_size = 64
    config.batch_size = 16
    config.train_steps = 4
    config.eval_every_steps = 4
    config.checkpoint_every_steps = 4
    config.bootstrap_samples = 10
    config.batch_norm_images = 0
    with small_encoder(), quick_figures():
        finetune.run(config, str(folder))
    return folder


@pytest.fixture
def finetuned(small, _finetuned):
    """Its workdir, while the encoder is known."""
    return _finetuned
