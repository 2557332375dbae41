"""Exports a finished stage two for use outside this project.

    python main.py --config=configs/export.py --config.checkpoint=runs/finetune

takes one to three minutes on two CPU cores. It needs `pip install jax2onnx==0.13.0 onnxruntime`
and, for the page, `make reader` once. `docs/export.md` describes the folder.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "export"
    config.checkpoint = "runs/finetune"  # The workdir of stage two.
    config.name = "infantxray"  # Of the model, on its card and on the page.
    config.licence = ""  # Of the weights, as Hugging Face lists it, such as apache-2.0.
    config.calibrate = True  # False: the probabilities as the network gives them.
    config.page = True  # Write reader.html and its examples.
    return config
