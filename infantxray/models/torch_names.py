"""Names of weights: from this project's to those of the reference implementations in PyTorch."""

from __future__ import annotations

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import traverse_util

from infantxray.models import create_encoder
from infantxray.models.encoders.vgg import VGG19

Rules = list[tuple[str, str]]

_RESIDUAL: Rules = [
    (r"projection_norm$", "downsample.1"),
    (r"projection$", "downsample.0"),
    (r"(^|\.)norm(\d)$", "{1}bn{2}"),
]

_RESNET: Rules = [(r"^conv(\d)_(\d+)/", "layer{1-1}.{2-1}."), *_RESIDUAL]


def _vgg_rules() -> Rules:
    """torchvision counts VGG's convolutions, ReLUs and poolings through in one sequence."""
    rules, position = [], 0
    for number, stage in enumerate(VGG19, start=1):
        for index in range(1, stage.convolutions + 1):
            rules.append((f"^conv{number}_{index}$", f"features.{position}"))
            position += 2  # the convolution and its ReLU
        position += 1  # the pooling
    return rules


# From our module path to the reference's: substitutions, one after the other. `{1}` stands
# for the pattern's first group, `{1-1}` for that number less one.
RULES: dict[str, Rules] = {
    "vgg19": _vgg_rules(),
    "mobilenet_v2": [
        (r"^conv1$", "features.0.0"),
        (r"^norm1$", "features.0.1"),
        (r"^conv2$", "features.18.0"),
        (r"^norm2$", "features.18.1"),
        # the first bottleneck does not expand, so its numbers start one lower
        (r"^bottleneck1/depthwise$", "features.1.conv.0.0"),
        (r"^bottleneck1/depthwise_norm$", "features.1.conv.0.1"),
        (r"^bottleneck1/projection$", "features.1.conv.1"),
        (r"^bottleneck1/projection_norm$", "features.1.conv.2"),
        (r"^bottleneck(\d+)/", "features.{1}.conv."),
        (r"expansion$", "0.0"),
        (r"expansion_norm$", "0.1"),
        (r"depthwise$", "1.0"),
        (r"depthwise_norm$", "1.1"),
        (r"projection$", "2"),
        (r"projection_norm$", "3"),
    ],
    "shufflenet": [
        (r"^conv1$", "features.init_block.conv"),
        (r"^norm1$", "features.init_block.bn"),
        (r"^stage(\d)_(\d)/", "features.stage{1-1}.unit{2}."),
        (r"gconv1$", "compress_conv1"),
        (r"norm1$", "compress_bn1"),
        (r"dwconv$", "dw_conv2"),
        (r"norm2$", "dw_bn2"),
        (r"gconv2$", "expand_conv3"),
        (r"norm3$", "expand_bn3"),
    ],
    "xception": [
        (r"/depthwise$", ".conv1"),
        (r"/pointwise$", ".pointwise"),
        (r"^norm(\d)$", "bn{1}"),
        (r"/projection$", ".skip"),
        (r"/projection_norm$", ".skipbn"),
        # the first block has no ReLU before its first convolution
        (r"^block1/sepconv1", "block1.rep.0"),
        (r"^block1/norm1", "block1.rep.1"),
        (r"^block1/sepconv2", "block1.rep.3"),
        (r"^block1/norm2", "block1.rep.4"),
        (r"/sepconv1", ".rep.1"),
        (r"/norm1", ".rep.2"),
        (r"/sepconv2", ".rep.4"),
        (r"/norm2", ".rep.5"),
        (r"/sepconv3", ".rep.7"),
        (r"/norm3", ".rep.8"),
    ],
    "hrnet_w32": [
        (r"^stem(\d)_conv$", "conv{1}"),
        (r"^stem(\d)_norm$", "bn{1}"),
        (r"_conv$", ".0"),
        (r"(?<!projection)_norm$", ".1"),
        # a new branch is wrapped once more than a branch that changes its width
        (r"^transition1_2", "transition1.1.0"),
        (r"^transition2_3", "transition2.2.0"),
        (r"^transition3_4", "transition3.3.0"),
        (r"^transition1_1", "transition1.0"),
        (r"^stage1_(\d)/", "layer1.{1-1}."),
        (r"^stage(\d)_(\d)_branch(\d)_(\d)/", "stage{1}.{2-1}.branches.{3-1}.{4-1}."),
        (r"^stage(\d)_(\d)_fuse_(\d)to(\d)", "stage{1}.{2-1}.fuse_layers.{4-1}.{3-1}"),
        (r"_(\d)\.", ".{1-1}."),
        (r"^head_increase(\d)/", "incre_modules.{1-1}.0."),
        (r"^head_downsample(\d)", "downsamp_modules.{1-1}"),
        (r"^head_final", "final_layer"),
        *_RESIDUAL,
    ],
    "resnext50": _RESNET,
    "densenet121": [
        (r"^dense(\d)_(\d+)/", "denseblock{1}.denselayer{2}."),
        (r"^transition(\d)_", "transition{1}."),
        (r"^", "features."),
    ],
    "resnet50": _RESNET,
}

LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@cache  # tracing a large network takes seconds
def reference_keys(
    name: str, in_channels: int
) -> dict[tuple[str, str], tuple[str, tuple[int, ...]]]:
    """(collection, our name) -> (the reference's key, our shape), for every weight."""
    encoder = create_encoder(name, in_channels)
    image = jax.ShapeDtypeStruct((1, 32, 32, in_channels), jnp.float32)
    abstract = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), image)
    keys = {}
    for collection, tree in abstract.items():
        for our_name, leaf in traverse_util.flatten_dict(tree, sep="/").items():
            module, _, leaf_name = our_name.rpartition("/")
            for pattern, template in RULES[name]:
                module = re.sub(pattern, partial(_fill, template), module)
            key = f"{module.replace('/', '.')}.{LEAVES[collection, leaf_name]}"
            keys[collection, our_name] = key, leaf.shape
    return keys


def _fill(template: str, match: re.Match[str]) -> str:
    """`{1}` becomes the match's first group, `{1-1}` that number less one."""
    return re.sub(
        r"\{(\d)(-1)?\}",
        lambda slot: str(int(match[int(slot[1])]) - 1) if slot[2] else match[int(slot[1])],
        template,
    )


def modern_name(key: str) -> str:
    """Undoes an old habit: DenseNet's dots before numbers."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)
