"""An export folder with a small network, as reader/README.md describes it."""

import functools
import json
import shutil

import numpy as np
import pytest

from data_pipeline.decode import Preprocessing
from data_pipeline.phantom import render
from infantxray.export_assets import BUILD_COMMAND, reader_assets

CLASSES = ["normal", "constipation", "bowel_obstruction", "free_air", "pneumonia"]
PHANTOM = "phantom:infant:seed=0:site=a:split=train:film={}"
PREPROCESSING = {"image_size": 64, "resize": "pad", "trim_borders": False}


@functools.cache
def network(size, conditions=True):
    """An ONNX model with all outputs; its features are the pixels themselves, 0 to 1.

    Without `conditions` it gives ages and features alone.
    """
    classes = CLASSES
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(3)
    channels = 8
    arrays = {
        "scale": np.float32(255),
        "kernel": rng.normal(0, 0.6, (channels, 1, 5, 5)).astype(np.float32),
        "weights": rng.normal(0, 1.5, (channels, len(classes))).astype(np.float32),
        "age_weights": rng.uniform(1, 5, (channels, 1)).astype(np.float32),
        "flat": np.array([-1, size * size]),
        "vector": np.array([-1]),
        "channels": np.array([-1, channels]),
    }
    arrays["maps"] = arrays["weights"].T[..., None, None]
    node = onnx.helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        node("Div", ["float", "scale"], ["unit"]),
        node("Reshape", ["unit", "flat"], ["features"]),
        node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "kernel"], ["edges"], strides=[4, 4], pads=[2, 2, 2, 2]),
        node("Relu", ["edges"], ["map"]),
        node("GlobalAveragePool", ["map"], ["pooled"]),
        node("Reshape", ["pooled", "channels"], ["latent"]),
        node("MatMul", ["latent", "weights"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
        node("MatMul", ["latent", "age_weights"], ["age"]),
        node("Reshape", ["age", "vector"], ["age_months"]),
        node("Conv", ["map", "maps"], ["saliency"]),
    ]
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "reader_test",
        [value("image", onnx.TensorProto.UINT8, ["B", size, size, 1])],
        [
            value("age_months", kind, ["B"]),
            value("features", kind, ["B", size * size]),
        ]
        if not conditions
        else [
            value("probabilities", kind, ["B", len(classes)]),
            value("age_months", kind, ["B"]),
            value("features", kind, ["B", size * size]),
            value("saliency", kind, ["B", len(classes), size // 4, size // 4]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model.SerializeToString()


@functools.cache
def outlier_rows(size):
    """The mean of phantom images and whitened random projections around it: `[1 + 12, S·S]`."""
    images = np.stack([render(PHANTOM.format(i), size).ravel() / 255 for i in range(24)])
    mean = images.mean(0)
    projections = np.random.default_rng(5).normal(0, 1, (12, images.shape[1]))
    covariance = np.cov((images - mean) @ projections.T, rowvar=False)
    whitened = np.linalg.inv(np.linalg.cholesky(covariance)) @ projections
    return np.vstack([mean, whitened]).astype("<f4")


def write_export(folder, preprocessing=PREPROCESSING, examples=(), **changes):
    """An export folder as reader/README.md describes it."""
    assets = reader_assets()
    if assets is None:
        pytest.skip(f"the page is not built: {BUILD_COMMAND}")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(assets, folder, dirs_exist_ok=True)
    size = preprocessing["image_size"]
    (folder / "model.onnx").write_bytes(network(size))
    rows = outlier_rows(size)
    rows.tofile(folder / "outliers.bin")
    model = {
        "format": 1,
        "name": "Test model",
        "encoder": "none",
        "date": "2026-01-31",
        "license": "Apache-2.0",
        "classes": CLASSES,
        "preprocessing": Preprocessing(**preprocessing).to_dict(),
        "age": {"interval_months": 4.5, "coverage": 0.9, "range_months": [0, 36]},
        "conformal": {"coverage": 0.9, "threshold": 0.8, "method": "lac"},
        "outliers": {
            "file": "outliers.bin",
            "rows": len(rows) - 1,
            "cols": rows.shape[1],
            "threshold": 12.0,
        },
        "thresholds": {"normal": 0.5},
        "metrics": {"roc_auc": 0.912, "age_mae_months": 3.21, "n": 600},
        "examples": list(examples),
    }
    model.update(changes)
    (folder / "model.json").write_text(json.dumps(model))
    return folder
