"""A ResNet of one narrow block a stage, known as `"small"`: it compiles in seconds."""

import contextlib
import functools

import jax
import pytest

from infantxray.models import ENCODERS, torch_names
from infantxray.models.encoders import resnet
from infantxray.training import sharding


@contextlib.contextmanager
def small_encoder():
    """Registers the encoder, and lets runs use one device.

    Two processors cannot run two test processes of four devices each without waiting most of the
    time. That devices agree is tested where steps are.
    """
    stages = tuple(
        resnet.Stage(f"conv{n}", 1, 8, strides)
        for n, strides in zip(range(2, 6), (1, 2, 2, 2), strict=True)
    )
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "small", functools.partial(resnet.ResNet, stages=stages))
        patch.setitem(torch_names.RULES, "small", torch_names.RULES["resnet50"])
        patch.setattr(sharding.jax, "devices", lambda: one)
        yield "small"
