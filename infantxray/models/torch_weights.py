"""PyTorch weights: reads and writes encoders under the reference implementations' names.

The references are torchvision (`vgg19`, `mobilenet_v2`, `resnext50_32x4d`, `densenet121`,
`resnet50`), timm (`legacy_xception`, `hrnet_w32`), pytorchcv (`shufflenet_g3_w1`) and
torchxrayvision (its one-channel DenseNet-121 and ResNet-50 for chest X-rays). A file is a
`.safetensors`, for which PyTorch is not needed, or a state dict saved by `torch.save`
(`.pth`, `.pt`), for which it is.

torchxrayvision's downloads are pickled networks, which may run code when they are loaded and are
refused here. Save the weights alone first:

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-all")
    torch.save(model.state_dict(), "densenet121-res224-all.pth")
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipeline import files
from data_pipeline.errors import UserError
from data_pipeline.extras import install_line
from infantxray.models.input_scale import IMAGENET, SYMMETRIC, TORCHXRAYVISION, InputScale
from infantxray.models.torch_names import RULES, modern_name, reference_keys

_log = logging.getLogger(__name__)

Variables = dict[str, dict[str, Any]]

# The input scales of the references.
REFERENCE_SCALES = {name: SYMMETRIC if name == "xception" else IMAGENET for name in RULES}
XRAY_FINDINGS = 18  # outputs of torchxrayvision's classifiers
WRAPPERS = ("state_dict", "model_state_dict", "model")  # of checkpoints, Lightning's among them

LISTED = 8  # names that a message spells out


class WeightsError(UserError):
    """A weight file cannot be read, or does not hold the encoder's weights."""


def import_encoder(name: str, path: str | os.PathLike[str], in_channels: int = 1) -> Variables:
    """The weights alone of `read_encoder`, which see for arguments and errors.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32, as `create_encoder(name).init` makes them.
    """
    return read_encoder(name, path, in_channels)[0]


def read_encoder(
    name: str,
    path: str | os.PathLike[str],
    in_channels: int = 1,
    scale: InputScale | None = None,
) -> tuple[Variables, InputScale]:
    """Reads the weights of an encoder from a PyTorch state dict, and the input scale they expect.

    Keys that are not the encoder's, such as a classifier's, are skipped. A prefix that all its
    keys share, such as `module.` or `model.backbone.`, is removed. Both are logged.

    The input scale is, in this order: `scale`; the one in the metadata of a file that
    `export_encoder` wrote; torchxrayvision's, where the network has one input channel and a
    classifier of 18 findings or the buffer `op_threshs`; this project's, where the first
    convolution is grey without these signs; the reference implementation's.

    Args:
      name: a key of `infantxray.models.ENCODERS`.
      path: a `.safetensors` file, or one that `torch.save` wrote.
      in_channels: channels of the images. With 1, the first convolution of an RGB network
        is summed over its colours: the response to a grey image stays what it was.
      scale: overrides what the file says.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32, as `create_encoder(name).init` makes them,
      and the scale of the images that they were trained with.

    Raises:
      WeightsError: the file cannot be read, or an encoder weight is missing, has another shape or
        occurs several times; the message names them.
      DataError: the file differs from its line in the `SHA256SUMS` beside it, if there is one.
    """
    files.verify_checksums(os.path.dirname(path) or ".", [os.path.basename(path)])
    raw, metadata = _read(str(path))
    keys = reference_keys(name, in_channels)
    wanted = {key for key, _ in keys.values()}
    weights = {modern_name(key): value for key, value in raw.items()}
    weights = _without_prefix(weights, wanted, path)
    stem_key = keys[_stem(name)][0]
    scale = scale or _input_scale(name, weights, metadata, stem_key, path)
    found, missing, mismatched = {}, [], []
    for (collection, our_name), (key, shape) in keys.items():
        if key not in weights:
            missing.append(key)
            continue
        value = _from_torch(weights[key])
        if value.ndim == 4 and value.shape[2] == 3 and shape[2] == in_channels == 1:
            value = value.sum(axis=2, keepdims=True)
        if value.shape != shape:
            mismatched.append(f"{key} {value.shape} instead of {shape}")
            continue
        found[collection, our_name] = value

    skipped = [
        key for key in weights if key not in wanted and not key.endswith("num_batches_tracked")
    ]
    _log.info(
        "%s: %d weights of %s matched, %d skipped (%s), %d missing, %d of another shape",
        path, len(found), name, len(skipped), _list(skipped), len(missing), len(mismatched),
    )  # fmt: skip
    if missing or mismatched:
        problems = []
        if missing:
            problems.append(f"{len(missing)} of {len(keys)} weights missing ({_list(missing)})")
        if mismatched:
            problems.append(f"{len(mismatched)} of another shape ({_list(mismatched)})")
        raise WeightsError(f"{path} does not fit the encoder {name}: {'; '.join(problems)}")
    _log.info("%s: images are read as (intensity - %g) / %g", path, scale.mean, scale.std)
    return _nest(found), scale


def _without_prefix(
    weights: dict[str, np.ndarray], wanted: set[str], path: str | os.PathLike[str]
) -> dict[str, np.ndarray]:
    """The weights with the prefix removed under which the most of the wanted ones are found."""
    counts: Counter[str] = Counter()
    for key in weights:
        parts = key.split(".")
        for n in range(len(parts)):
            if ".".join(parts[n:]) in wanted:
                counts[".".join([*parts[:n], ""]) if n else ""] += 1
    best = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == best]
    if not best or "" in prefixes:
        return weights
    if len(prefixes) > 1:
        raise WeightsError(
            f"{path} holds {len(prefixes)} networks of this kind ({_list(sorted(prefixes))}); "
            "save the one that is meant"
        )
    _log.info("%s: the prefix %s of its keys is removed", path, prefixes[0])
    return {key.removeprefix(prefixes[0]): value for key, value in weights.items()}


def _input_scale(
    name: str,
    weights: dict[str, np.ndarray],
    metadata: Mapping[str, str],
    stem_key: str,
    path: str | os.PathLike[str],
) -> InputScale:
    """The scale that a file's weights were trained with; see `read_encoder`."""
    if "input_mean" in metadata or "input_std" in metadata:
        try:
            return InputScale(float(metadata["input_mean"]), float(metadata["input_std"]))
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"{path}: its metadata holds no valid input_mean and input_std: {error}"
            ) from error
    stem = weights.get(stem_key)
    if stem is None or stem.ndim != 4 or (stem != stem[:, :1]).any():
        return REFERENCE_SCALES[name]
    # Grey, or grey spread over three colours.
    outputs = {len(weights[key]) for key in ("classifier.weight", "fc.weight") if key in weights}
    if stem.shape[1] == 1 and ("op_threshs" in weights or XRAY_FINDINGS in outputs):
        _log.info("%s: recognised as torchxrayvision's", path)
        return TORCHXRAYVISION
    return IMAGENET


def export_encoder(
    name: str,
    variables: Mapping[str, Mapping[str, Any]],
    path: str | os.PathLike[str],
    in_channels: int | None = None,
    scale: InputScale = IMAGENET,
) -> None:
    """Writes an encoder's weights as a PyTorch state dict with the reference's names.

    The classifier is not in the file: load it with `strict=False`. BatchNorm's
    `num_batches_tracked`, which PyTorch expects and does not use, is zero. The metadata (of
    `.pth`, the entry "infantxray" of the state dict's `_metadata`) hold `encoder`, `input_mean`
    and `input_std`, from which `read_encoder` knows the input scale.

    Args:
      name: a key of `infantxray.models.ENCODERS`.
      variables: `{"params": ..., "batch_stats": ...}` of the encoder alone.
      path: output file: `.safetensors`, or `.pth` or `.pt` where PyTorch is installed.
      in_channels: 3 spreads the first convolution of a grey encoder evenly over three
        colours, for networks that take RGB; None leaves it as it is.
      scale: of the images that the encoder was trained with.

    Raises:
      WeightsError: the variables are not this encoder's, or the path's ending is not known.
    """
    flat = {
        (collection, our_name): np.asarray(value)
        for collection in ("params", "batch_stats")
        for our_name, value in traverse_util.flatten_dict(
            dict(variables.get(collection, {})), sep="/"
        ).items()
    }
    stem = _stem(name)
    stem_channels = flat[stem].shape[2] if stem in flat else 1
    keys = reference_keys(name, stem_channels)
    wrong = [
        "/".join(entry)
        for entry in sorted(keys.keys() | flat.keys())
        if entry not in keys or entry not in flat or keys[entry][1] != flat[entry].shape
    ]
    if wrong:
        raise WeightsError(f"the variables are not those of the encoder {name}: {_list(wrong)}")
    if in_channels is not None and in_channels != stem_channels:
        if stem_channels != 1:
            raise WeightsError(
                f"an encoder of {stem_channels} channels cannot be spread over {in_channels}"
            )
        flat[stem] = flat[stem].repeat(in_channels, axis=2) / in_channels

    weights = {}
    for entry, (key, _) in keys.items():
        weights[key] = _to_torch(flat[entry])
        if key.endswith("running_mean"):
            counter = key.removesuffix("running_mean") + "num_batches_tracked"
            weights[counter] = np.zeros((), np.int64)
    metadata = {"encoder": name, "input_mean": repr(scale.mean), "input_std": repr(scale.std)}
    _write(weights, metadata, str(path))


def _stem(name: str) -> tuple[str, str]:
    """The one weight whose shape depends on the image's channels."""
    grey, rgb = reference_keys(name, 1), reference_keys(name, 3)
    return next(entry for entry in grey if grey[entry] != rgb[entry])


def _from_torch(value: np.ndarray) -> np.ndarray:
    """float32, and a kernel [out, in, k, k] as [k, k, in, out]."""
    value = np.asarray(value, np.float32)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _to_torch(value: np.ndarray) -> np.ndarray:
    """The inverse of `_from_torch`."""
    value = value.astype(np.float32)
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)


def _read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file."""
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: there is no such file")
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="flax") as file:  # flax knows bfloat16, numpy does not
                tensors = {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    torch = _import_torch(path)
    try:
        # Of tensors and plain containers alone: a pickle of anything else could run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} is not a PyTorch file of weights alone; "
            f"save them with torch.save(model.state_dict(), FILE): {reason}"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise WeightsError(f"{path} does not hold a state dict but a {type(state).__name__}")
    tensors = {
        key: value.float().numpy()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, getattr(state, "_metadata", {}).get("infantxray", {})


def _write(weights: dict[str, np.ndarray], metadata: dict[str, str], path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    if path.endswith(".safetensors"):
        save_file(weights, path, {"format": "pt", **metadata})
    elif path.endswith((".pth", ".pt")):
        torch = _import_torch(path)
        state = OrderedDict((key, torch.from_numpy(value)) for key, value in weights.items())
        state._metadata = {"infantxray": metadata}  # type: ignore[attr-defined]
        torch.save(state, path)
    else:
        raise WeightsError(f"{path} must end in .safetensors, .pth or .pt")


def _import_torch(path: str) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise WeightsError(
            f"{path} needs PyTorch: {install_line('torch')}, or use a .safetensors file"
        ) from error
    return torch


def _nest(flat: dict[tuple[str, str], np.ndarray]) -> Variables:
    tree: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}  # VGG has no statistics
    for (collection, our_name), value in flat.items():
        tree[collection][our_name] = value
    return {
        collection: traverse_util.unflatten_dict(part, sep="/") for collection, part in tree.items()
    }


def _list(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more
