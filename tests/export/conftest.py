"""A finished stage two with a narrow encoder, and models with perturbed weights."""

import functools

import jax
import numpy as np
import pytest

from configs import finetune as finetune_config
from data_pipeline.decode import Preprocessing
from infantxray.commands import finetune
from infantxray.models import ENCODERS, torch_weights
from infantxray.models.encoders import resnet
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_two import inference
from infantxray.stage_two.answers import Member
from infantxray.training import sharding

SIZE = 64
CLASSES = ("normal", "intussusception", "constipation")


def make_member(encoder, **changes):
    """A model away from its initial values, which hide wrong branches."""
    values = {"age_mean_months": 18.0, "age_std_months": 10.0} | changes
    spec = ModelSpec(encoder, "float32", Preprocessing(image_size=SIZE), CLASSES, **values)
    model = inference.build_model(spec)
    variables = inference.init_variables(model, SIZE, jax.random.key(0))
    rng = np.random.default_rng(0)
    return Member(
        spec,
        jax.tree.map(
            lambda x: np.asarray(x) + np.abs(rng.normal(0, 0.05, x.shape)).astype(np.float32),
            variables,
        ),
    )


@pytest.fixture(scope="session")
def small():
    """The name of a ResNet of one narrow block a stage."""
    stages = tuple(
        resnet.Stage(f"conv{n}", 1, 8, strides)
        for n, strides in zip(range(2, 6), (1, 2, 2, 2), strict=True)
    )
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "small", functools.partial(resnet.ResNet, stages=stages))
        patch.setitem(torch_weights.RULES, "small", torch_weights.RULES["resnet50"])
        patch.setattr(sharding.jax, "devices", lambda: one)
        yield "small"


@pytest.fixture(scope="session")
def finetuned(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    config = finetune_config.get_config()
    config.encoder = small
    config.data.train = "phantom:infant:films=300"
    config.data.image_size = SIZE
    config.batch_size = 16
    config.train_steps = 4
    config.eval_every_steps = 4
    config.checkpoint_every_steps = 4
    config.bootstrap_samples = 10
    finetune.run(config, str(folder))
    return folder
