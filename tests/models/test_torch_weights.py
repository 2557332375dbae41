"""Weights travel to and from the PyTorch references' files without loss."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from infantxray.models import ENCODERS, create_encoder
from infantxray.models.torch_weights import WeightsError, export_encoder, import_encoder


@pytest.fixture(scope="module")
def shufflenet():
    """Grey encoder variables, random throughout: the smallest of the eight."""
    return random_variables("shufflenet", 1)


@cache
def random_variables(name, channels):
    encoder = create_encoder(name, channels)
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    abstract = jax.eval_shape(
        lambda image: encoder.init(jax.random.key(0), image, train=False), image
    )
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract)
    return {"params": tree["params"], "batch_stats": tree.get("batch_stats", {})}


def assert_same(a, b):
    a, b = (traverse_util.flatten_dict(tree, sep="/") for tree in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("name", ENCODERS)
def test_round_trip(name, tmp_path):
    variables = random_variables(name, 3)
    export_encoder(name, variables, tmp_path / "a.safetensors")
    back = import_encoder(name, tmp_path / "a.safetensors", in_channels=3)
    assert_same(back, variables)
    export_encoder(name, back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# One key of each kind, as the references' own state dicts have them.
@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("vgg19", "features.34.bias", (512,)),
        ("mobilenet_v2", "features.1.conv.1.weight", (16, 32, 1, 1)),
        ("mobilenet_v2", "features.17.conv.3.running_var", (320,)),
        ("shufflenet", "features.stage3.unit1.expand_conv3.weight", (480, 80, 1, 1)),
        ("xception", "block1.rep.3.conv1.weight", (128, 1, 3, 3)),
        ("xception", "block12.skipbn.weight", (1024,)),
        ("hrnet_w32", "stage4.2.fuse_layers.3.0.2.0.weight", (256, 32, 3, 3)),
        ("hrnet_w32", "transition3.3.0.1.running_mean", (256,)),
        ("hrnet_w32", "downsamp_modules.2.0.bias", (1024,)),
        ("resnext50", "layer4.0.conv2.weight", (1024, 32, 3, 3)),
        ("densenet121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        ("densenet121", "features.norm5.num_batches_tracked", ()),
        ("resnet50", "layer2.0.downsample.1.running_mean", (512,)),
    ],
)
def test_names_and_shapes_are_the_references(name, key, shape, tmp_path):
    export_encoder(name, random_variables(name, 1), tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors")[key].shape == shape


def test_colours_fold_into_grey_and_spread_again(tmp_path, shufflenet):
    rgb = random_variables("shufflenet", 3)
    export_encoder("shufflenet", rgb, tmp_path / "rgb.safetensors")
    grey = import_encoder("shufflenet", tmp_path / "rgb.safetensors")
    np.testing.assert_allclose(
        grey["params"]["conv1"]["kernel"],
        rgb["params"]["conv1"]["kernel"].sum(axis=2, keepdims=True),
        rtol=1e-6,
    )
    export_encoder("shufflenet", shufflenet, tmp_path / "spread.safetensors", in_channels=3)
    back = import_encoder("shufflenet", tmp_path / "spread.safetensors")
    np.testing.assert_allclose(
        back["params"]["conv1"]["kernel"], shufflenet["params"]["conv1"]["kernel"], rtol=1e-6
    )


def test_other_keys_are_skipped_and_reported(tmp_path, shufflenet, caplog):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    weights = {f"module.{key}": value for key, value in load_file(path).items()}
    weights["module.output.weight"] = np.zeros((1000, 960), np.float32)
    save_file(weights, path)
    absl_logging.set_verbosity(absl_logging.INFO)
    with caplog.at_level("INFO"):
        assert_same(import_encoder("shufflenet", path), shufflenet)
    assert "245 weights of shufflenet matched, 1 skipped (output.weight)" in caplog.text


def test_old_densenet_names(tmp_path):
    variables = random_variables("densenet121", 1)
    path = tmp_path / "w.safetensors"
    export_encoder("densenet121", variables, path)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in load_file(path).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, path)
    assert_same(import_encoder("densenet121", path), variables)


def test_half_precision_files(tmp_path, shufflenet):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    save_file({key: value.astype(jnp.bfloat16) for key, value in load_file(path).items()}, path)
    kernel = import_encoder("shufflenet", path)["params"]["conv1"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, shufflenet["params"]["conv1"]["kernel"], rtol=1e-2)


def test_missing_and_mismatched_weights_are_named(tmp_path, shufflenet):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    weights = load_file(path)
    del weights["features.stage1.unit1.dw_conv2.weight"]
    weights["features.init_block.bn.bias"] = np.zeros(7, np.float32)
    save_file(weights, path)
    message = (
        r"1 of 245 weights missing \(features.stage1.unit1.dw_conv2.weight\)"
        r".*features.init_block.bn.bias \(7,\) instead of \(24,\)"
    )
    with pytest.raises(WeightsError, match=message):
        import_encoder("shufflenet", path)
    with pytest.raises(WeightsError, match="does not fit the encoder vgg19: 32 of 32"):
        import_encoder("vgg19", path)


def test_unusable_files_are_one_line(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        import_encoder("shufflenet", tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not this")
    with pytest.raises(WeightsError, match="not a safetensors file") as error:
        import_encoder("shufflenet", tmp_path / "bad.safetensors")
    assert "\n" not in str(error.value)


def test_export_refuses_other_variables_and_endings(tmp_path, shufflenet):
    with pytest.raises(WeightsError, match="not those of the encoder vgg19"):
        export_encoder("vgg19", shufflenet, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="must end in"):
        export_encoder("shufflenet", shufflenet, tmp_path / "w.npz")


def test_pth_needs_torch(tmp_path, shufflenet, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(WeightsError, match="pip install torch"):
        export_encoder("shufflenet", shufflenet, tmp_path / "w.pth")


def test_pth_round_trip(tmp_path, shufflenet):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    export_encoder("shufflenet", shufflenet, tmp_path / "w.pth")
    assert_same(import_encoder("shufflenet", tmp_path / "w.pth"), shufflenet)
    (tmp_path / "bad.pth").write_bytes(b"not this")
    with pytest.raises(WeightsError, match="weights alone"):
        import_encoder("shufflenet", tmp_path / "bad.pth")
