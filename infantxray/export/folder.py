"""The export folder: everything that a model needs outside this project."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import replaced, write_json
from data_pipeline.phantom.export import file_name, write_image
from data_pipeline.sources import open_sources
from data_pipeline.splits import read_split
from infantxray import __version__
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.predictions import read_predictions
from infantxray.evaluation.subgroups import age_bands
from infantxray.evaluation.summary import summarise, to_json
from infantxray.export.graph import answer_function
from infantxray.export.model_card import model_card
from infantxray.export.onnx import session, to_onnx
from infantxray.export.stablehlo import to_stablehlo
from infantxray.export_assets import BUILD_COMMAND, reader_assets
from infantxray.features.extraction import encoder_variables
from infantxray.models.input_scale import InputScale
from infantxray.models.torch_weights import export_encoder
from infantxray.runs import workdir
from infantxray.stage_two.answers import Member
from infantxray.stage_two.trust import Trust

FORMAT = 1  # Of model.json; reader/README.md describes it.
TOLERANCE = 1e-4
_EXAMPLES = "phantom:infant:films=40:seed=7"
_EXAMPLE_SIDE = 512
_CHECKED = 3  # Images of the check, not a power of two.

_log = logging.getLogger(__name__)


def write_export(
    folder: str, member: Member, *, name: str = "infantxray", licence: str = "", page: bool = True
) -> dict[str, float]:
    """Writes a model with all that goes with it.

    Args:
      folder: output folder; files of earlier exports there are replaced.
      member: the model and its calibration.
      name: name of the model, for its card and the page.
      licence: licence of the weights, as Hugging Face lists it; empty = not stated.
      page: write `reader.html` and its examples too.

    Returns:
      The largest difference of each output between the checkpoint and ONNX and StableHLO, relative
      to its largest value.

    Raises:
      UserError: jax2onnx or ONNX Runtime is not installed, or a program differs from the
        checkpoint by more than 1e-4.
    """
    place, spec = Path(folder), member.spec
    trust = member.trust or Trust()
    place.mkdir(parents=True, exist_ok=True)
    size = spec.preprocessing.image_size

    def function() -> Any:  # A new one each time: each traces its own computation forms.
        return answer_function(spec, member.variables, trust.temperature)[0]

    names = answer_function(spec, member.variables, trust.temperature)[1]
    onnx, stablehlo = to_onnx(function(), names, size), to_stablehlo(function(), size)
    differences = check(function(), names, size, onnx, stablehlo)
    _write_bytes(place / "model.onnx", onnx)
    _write_bytes(place / "model.stablehlo", stablehlo)
    export_encoder(
        spec.encoder,
        encoder_variables(member.variables),
        str(place / "encoder.safetensors"),
        scale=InputScale(spec.input_mean, spec.input_std),
    )
    (place / "encoder.safetensors").chmod(0o644)  # Its library makes it private.
    shown = _write_page(place, spec.classes) if page else []
    metrics = _metrics(member.folder)
    model = _model_json(member, trust, name, licence, metrics, shown)
    if trust.detector is not None:
        detector = trust.detector
        rows = np.vstack([detector.mean, detector.whitening]).astype("<f4")
        _write_bytes(place / "outliers.bin", rows.tobytes())
    write_json(place / "model.json", model)
    write_json(place / "config.json", _config_json(member))
    card = model_card(
        name,
        model=model,
        metrics=metrics,
        bands=_bands(member.folder),
        trust=trust,
        outputs=names,
        training=_training(member.folder),
        licence=licence,
        version=__version__,
        context=member.spec.context,
    )
    _write_bytes(place / "README.md", card.encode())
    template = Path(__file__).parent / "templates" / "use.py"
    _write_bytes(place / "use.py", template.read_bytes())
    _write_checksums(place)
    return differences


def check(function: Any, names: Any, size: int, onnx: bytes, stablehlo: bytes) -> dict[str, float]:
    """Compares the exported programs with the checkpoint on random images.

    Raises:
      UserError: they differ by more than 1e-4.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (_CHECKED, size, size, 1), np.uint8)
    expected = [np.asarray(x) for x in jax.jit(function)(image)]
    exported = jax.export.deserialize(bytearray(stablehlo)).call(image)
    found = {"ONNX": session(onnx).run(list(names), {"image": image}), "StableHLO": exported}
    differences: dict[str, float] = {}
    for program, outputs in found.items():
        for name, a, b in zip(names, outputs, expected, strict=True):
            largest = max(1.0, float(np.abs(b).max()))
            difference = float(np.abs(np.asarray(a) - b).max()) / largest
            differences[f"{program} {name}"] = difference
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the {program} export differs from the checkpoint: {name} by {difference:.2g}"
                )
    return differences


def _model_json(
    member: Member,
    trust: Trust,
    name: str,
    licence: str,
    metrics: dict[str, Any],
    examples: list[dict[str, str]],
) -> dict[str, Any]:
    spec, detector, thresholds = member.spec, trust.detector, member.thresholds()
    rule = "youden" if "youden" in thresholds else next(iter(thresholds), None)
    age = None
    if spec.has_age:
        age = {
            "mean_months": spec.age_mean_months,
            "std_months": spec.age_std_months,
            "interval_months": trust.age_half_width_months,
            "coverage": trust.coverage,
            "range_months": trust.age_range_months or (0.0, 216.0),
        }
    conformal = None
    if trust.sets is not None:
        conformal = {
            "coverage": trust.sets.coverage,
            "threshold": trust.sets.thresholds[0],
            "method": trust.sets.method,
        }
    outliers = None
    if detector is not None:
        outliers = {
            "file": "outliers.bin",
            "rows": len(detector.whitening),
            "cols": len(detector.mean),
            "threshold": trust.distance_threshold,
        }
    return {
        "format": FORMAT,
        "name": name,
        "encoder": spec.encoder,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "license": licence or None,
        "version": __version__,
        "checkpoint_step": member.step,
        "classes": list(spec.classes),
        "multi_label": spec.multi_label,
        "preprocessing": spec.preprocessing.to_dict(),
        "input": {"mean": spec.input_mean, "std": spec.input_std, "in_graph": True},
        "temperature": trust.temperature,
        "age": age,
        "conformal": conformal,
        "outliers": outliers,
        "thresholds": thresholds[rule] if rule else None,
        "threshold_rule": rule,
        "metrics": {key: metrics[key] for key in ("n", *HEADLINES) if metrics.get(key) is not None},
        "examples": examples,
    }


def _config_json(member: Member) -> dict[str, Any]:
    classes = member.spec.classes
    return {
        "model_type": "infantxray",
        "architectures": ["DiagnosisModel"],
        "image_size": member.spec.preprocessing.image_size,
        "num_channels": 1,
        "id2label": {str(k): name for k, name in enumerate(classes)},
        "label2id": {name: k for k, name in enumerate(classes)},
        # Paths of the exporter's computer stay there.
        "training": _without_paths(workdir.read_config(member.folder)),
    }


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result[key] = _without_paths(value)
        elif isinstance(value, str) and os.sep in value:
            result[key] = os.path.basename(value.rstrip(os.sep))
        else:
            result[key] = value
    return result


def _write_page(place: Path, classes: tuple[str, ...]) -> list[dict[str, str]]:
    """Writes the page and its examples; returns their entries in `model.json`."""
    assets = reader_assets()
    if assets is None:
        _log.warning("reader.html is left out: the page is not built; run %s", BUILD_COMMAND)
        return []
    shutil.copytree(assets, place, dirs_exist_ok=True)
    records = open_sources(_EXAMPLES)
    wanted = [name for name in ("normal", "intussusception", "constipation") if name in classes]
    wanted += [name for name in records.label if name not in wanted]
    examples: list[Any] = []
    (place / "examples").mkdir(exist_ok=True)
    for label in list(dict.fromkeys(wanted))[:3]:
        row = int(np.flatnonzero(records.label == label)[0])
        address = records.image_path[row]
        write_image(
            place / "examples",
            address,
            _EXAMPLE_SIDE,
            "dicom",
            patient_id="",
            age_months=float(records.age_months[row]),
            sex=records.sex[row],
        )
        file = f"examples/{len(examples) + 1}.dcm"
        os.replace(place / "examples" / file_name(address, "dicom"), place / file)
        examples.append({"file": file, "title": f"Phantom, {label.replace('_', ' ')}"})
    return examples


def _metrics(folder: str) -> dict[str, Any]:
    path = Path(os.path.expanduser(folder), "metrics.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _bands(folder: str) -> dict[str, dict[str, Any]]:
    """Metrics by age band, with intervals over patients."""
    path = Path(os.path.expanduser(folder), "predictions.csv")
    if not path.exists():
        return {}
    predictions, _ = read_predictions(path)
    bands = age_bands(predictions.age_months)
    return {
        str(name): to_json(summarise(predictions.take(bands == name), bootstrap_samples=200))
        for name in dict.fromkeys(bands[np.argsort(predictions.age_months, kind="stable")])
        if name and (bands == name).sum() > 1
    }


def _training(folder: str) -> tuple[int, int] | None:
    path = os.path.join(os.path.expanduser(folder), "split.csv")
    if not os.path.exists(path):
        return None
    train = read_split(path).train
    return len(train), len(set(train.patient))


def _write_bytes(path: Path, data: bytes) -> None:
    with replaced(path, "wb") as file:
        file.write(data)


def _write_checksums(place: Path) -> None:
    files = sorted(p for p in place.rglob("*") if p.is_file())
    skipped = ("SHA256SUMS", "error.log")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(place).as_posix()}\n"
        for p in files
        if p.name not in skipped
    ]
    _write_bytes(place / "SHA256SUMS", "".join(lines).encode())
