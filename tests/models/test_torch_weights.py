"""Weights travel to and from the PyTorch references' files without loss."""

import pickle
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from data_pipeline import files
from data_pipeline.errors import DataError
from infantxray.models import ENCODERS, create_encoder
from infantxray.models.input_scale import IMAGENET, SYMMETRIC, TORCHXRAYVISION, InputScale
from infantxray.models.torch_weights import (
    WeightsError,
    export_encoder,
    import_encoder,
    read_encoder,
)


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
    assert_same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))


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
    weights = load_file(path)
    weights["output.weight"] = np.zeros((1000, 960), np.float32)
    save_file(weights, path)
    with caplog.at_level("INFO"):
        assert_same(import_encoder("shufflenet", path), shufflenet)
    assert "245 weights of shufflenet matched, 1 skipped (output.weight)" in caplog.text


def test_a_file_is_compared_with_its_checksum(tmp_path, shufflenet):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    files.write_checksums(tmp_path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1  # Still a whole file: only the checksum tells.
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"w\.safetensors was changed or damaged"):
        import_encoder("shufflenet", path)


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
    with pytest.raises(WeightsError, match="pip install 'torch>="):
        export_encoder("shufflenet", shufflenet, tmp_path / "w.pth")


def test_pth_round_trip(tmp_path, shufflenet):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    export_encoder("shufflenet", shufflenet, tmp_path / "w.pth")
    assert_same(import_encoder("shufflenet", tmp_path / "w.pth"), shufflenet)
    (tmp_path / "bad.pth").write_bytes(b"not this")
    with pytest.raises(WeightsError, match="weights alone"):
        import_encoder("shufflenet", tmp_path / "bad.pth")
    scale = InputScale(0.3, 0.2)
    export_encoder("shufflenet", shufflenet, tmp_path / "w.pth", scale=scale)
    assert read_encoder("shufflenet", tmp_path / "w.pth")[1] == scale


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_executed(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {"state_dict": {"conv1.weight": torch.ones(1)}, "extra": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for name in ("zip.pth", "old.pth", "plain.pt"):
        with pytest.raises(WeightsError, match="weights alone"):
            import_encoder("shufflenet", tmp_path / name)
    assert not (tmp_path / "ran").exists()
    # The payload works: a reader that executes pickles would be found out.
    pickle.loads((tmp_path / "plain.pt").read_bytes()).close()
    assert (tmp_path / "ran").exists()


def test_lightning_checkpoints(tmp_path, shufflenet):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    export_encoder("shufflenet", shufflenet, tmp_path / "w.safetensors")
    weights = {
        f"model.encoder.{key}": torch.from_numpy(value)
        for key, value in load_file(tmp_path / "w.safetensors").items()
    }
    checkpoint = {"epoch": 3, "state_dict": weights, "optimizer_states": [{}]}
    torch.save(checkpoint, tmp_path / "w.ckpt")
    assert_same(import_encoder("shufflenet", tmp_path / "w.ckpt"), shufflenet)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "_orig_mod.module.net.features."],
)
def test_common_prefixes_are_removed_and_reported(tmp_path, shufflenet, caplog, prefix):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    weights = {prefix + key: value for key, value in load_file(path).items()}
    save_file({**weights, "head.weight": np.zeros(3, np.float32)}, path)
    with caplog.at_level("INFO"):
        assert_same(import_encoder("shufflenet", path), shufflenet)
    assert f"the prefix {prefix} of its keys is removed" in caplog.text


def test_two_networks_in_one_file_are_refused(tmp_path, shufflenet):
    path = tmp_path / "w.safetensors"
    export_encoder("shufflenet", shufflenet, path)
    weights = load_file(path)
    save_file({p + k: v for p in ("student.", "teacher.") for k, v in weights.items()}, path)
    with pytest.raises(WeightsError, match=r"2 networks.*\(student\., teacher\.\)"):
        import_encoder("shufflenet", path)
    # One of them is complete: that is the one.
    save_file({**weights, **{f"teacher.{k}": v for k, v in list(weights.items())[:9]}}, path)
    assert_same(import_encoder("shufflenet", path), shufflenet)


def without_metadata(path, **added):
    """As another program writes the file."""
    save_file({**load_file(path), **added}, path)


def test_the_input_scale_travels_with_the_weights(tmp_path, shufflenet):
    path = tmp_path / "w.safetensors"
    scale = InputScale(mean=0.123456789, std=1 / 3)
    export_encoder("shufflenet", shufflenet, path, scale=scale)
    variables, found = read_encoder("shufflenet", path)
    assert_same(variables, shufflenet)
    assert found == scale
    assert read_encoder("shufflenet", path, scale=SYMMETRIC)[1] == SYMMETRIC
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {
            "format": "pt",
            "encoder": "shufflenet",
            "input_mean": "0.123456789",
            "input_std": repr(1 / 3),
        }
    weights = load_file(path)
    for metadata in ({"input_mean": "x", "input_std": "1"}, {"input_mean": "0"}):
        save_file(weights, path, metadata)
        with pytest.raises(WeightsError, match="metadata"):
            read_encoder("shufflenet", path)


@pytest.mark.parametrize(("name", "expected"), [("shufflenet", IMAGENET), ("xception", SYMMETRIC)])
def test_references_have_their_own_scale(tmp_path, name, expected):
    path = tmp_path / "w.safetensors"
    export_encoder(name, random_variables(name, 3), path)
    without_metadata(path)
    assert read_encoder(name, path)[1] == expected
    # Grey weights without metadata are from this project, as it wrote them before.
    for channels in (1, 3):
        export_encoder(name, random_variables(name, 1), path, in_channels=channels)
        without_metadata(path)
        assert read_encoder(name, path)[1] == IMAGENET


@pytest.mark.parametrize(
    ("name", "prefix", "classifier", "features"),
    [("densenet121", "", "classifier", 1024), ("resnet50", "model.", "fc", 2048)],
)
def test_torchxrayvision_is_recognised(tmp_path, name, prefix, classifier, features):
    """Keys and shapes as its `densenet121-res224-all` and `resnet50-res512-all` have them."""
    path = tmp_path / "w.safetensors"
    export_encoder(name, random_variables(name, 1), path)
    weights = load_file(path)
    first = "features.conv0.weight" if name == "densenet121" else "conv1.weight"
    assert weights[first].shape == (64, 1, 7, 7)
    head = {
        f"{classifier}.weight": np.zeros((18, features), np.float32),
        f"{classifier}.bias": np.zeros(18, np.float32),
    }
    renamed = {prefix + key: value for key, value in (weights | head).items()}
    save_file({**renamed, "op_threshs": np.zeros(18, np.float32)}, path)
    variables, scale = read_encoder(name, path)
    assert_same(variables, random_variables(name, 1))
    assert scale == TORCHXRAYVISION
    # Its [-1024, 1024].
    np.testing.assert_allclose((np.array([0.0, 1.0]) - scale.mean) / scale.std, [-1024, 1024])
    save_file(renamed, path)  # the file that it downloads has no thresholds
    assert read_encoder(name, path)[1] == TORCHXRAYVISION
    # Colour, or other outputs: not torchxrayvision's.
    save_file(weights | {f"{classifier}.weight": np.zeros((5, features), np.float32)}, path)
    assert read_encoder(name, path)[1] == IMAGENET


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.0), (0.5, -1.0), (np.nan, 1.0), (0.5, np.inf)])
def test_impossible_scales_are_refused(mean, std):
    with pytest.raises(ValueError, match="no scale"):
        InputScale(mean, std)
