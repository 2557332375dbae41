"""Each encoder computes what its reference does; runs where PyTorch and the references are."""

import jax
import numpy as np
import pytest

from infantxray.models import ENCODERS, create_encoder
from infantxray.models.torch_weights import export_encoder, import_encoder

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
for package in ("torchvision", "timm", "pytorchcv"):
    if not __import__("importlib.util").util.find_spec(package):
        pytest.skip(f"{package} is not installed", allow_module_level=True)

from reference_networks import create_reference, reference_map  # noqa: E402

CLASSIFIERS = ("fc.", "classifier.", "output.")


@pytest.mark.parametrize("name", ENCODERS)
def test_last_map_equals_the_references(name, tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    network = create_reference(name)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, tmp_path / "all.safetensors")
    ours = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}

    variables = import_encoder(name, tmp_path / "all.safetensors", in_channels=3)
    export_encoder(name, variables, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], value) for key, value in ours.items())

    encoder = create_encoder(name, in_channels=3)
    apply = jax.jit(lambda variables, image: encoder.apply(variables, image, train=False)[-1])
    for side in (96, 224):
        image = torch.rand(1, 3, side, side)
        with torch.no_grad():
            reference = reference_map(network, name, image).numpy().transpose(0, 2, 3, 1)
        actual = np.asarray(apply(variables, image.numpy().transpose(0, 2, 3, 1)))
        error = np.linalg.norm(actual - reference) / np.linalg.norm(reference)
        assert error < 1e-4
