"""The reference implementations that the encoders must equal; they need PyTorch."""

from __future__ import annotations

import importlib
import sys
import warnings


def create_reference(name: str):
    """The PyTorch network of that name in evaluation mode, RGB, with random weights."""
    torch = importlib.import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own
        _define_missing_operators(torch)
        if name == "shufflenet":
            from pytorchcv.model_provider import get_model

            return get_model("shufflenet_g3_w1").eval()
        if name in ("xception", "hrnet_w32"):
            import timm

            return timm.create_model({"xception": "legacy_xception"}.get(name, name)).eval()
        import torchvision

        return getattr(torchvision.models, {"resnext50": "resnext50_32x4d"}.get(name, name))(
            **({"init_weights": False} if name == "densenet" else {})
        ).eval()


def reference_body(network, name: str):
    """The network up to its last map, as a module or method."""
    nn = importlib.import_module("torch").nn
    if name in ("vgg19", "mobilenet_v2"):
        return network.features
    if name == "densenet121":
        return nn.Sequential(network.features, nn.ReLU())
    if name == "shufflenet":
        return network.features[:-1]
    if name in ("xception", "hrnet_w32"):
        return network.forward_features
    return nn.Sequential(*list(network.children())[:-2])


def reference_map(network, name: str, image):
    """The last map [B, C, h, w] of the reference, after activation, for image [B, 3, H, W]."""
    return reference_body(network, name)(image)


def _define_missing_operators(torch) -> None:
    """Lets torchvision be imported without its compiled half: its import wants these two names.

    An ordinary torchvision defines them itself, and the process aborts if they are there already.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor d, Tensor s, float t) -> Tensor")
        library.define("qnms(Tensor d, Tensor s, float t) -> Tensor")
        _KEPT.append(library)  # a library that is collected takes its names with it


_KEPT = []
