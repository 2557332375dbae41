"""The gain from stage one: its linear probe, and a run of the same settings from random weights."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import UserError
from infantxray.evaluation.metrics import HEADLINES
from infantxray.reports.page import listed, number, phrase
from infantxray.runs import workdir
from infantxray.training.writers import read_history

_SHOWN = ("accuracy", "roc_auc", "age_mae_months")
# Settings that change no weight.
_IRRELEVANT = ("pretrained", "resume", "bootstrap_samples", "operating_points", "prevalence",
               "subgroups", "coverage", "log_every_steps")  # fmt: skip
_IRRELEVANT_DATA = ("cache", "memory_mb", "num_threads")


def read(
    checkpoint: str, settings: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """The known gain from stage one, as `metrics.json` holds it.

    Args:
      checkpoint: workdir of stage two. The folders beside it are searched for a run from random
        weights with the same settings and test images.
      settings: settings of the run (`config.json`).
      summary: its metrics.

    Returns:
      `pretrained`; `objective` where stage one has one; `probe`, the ROC AUC of its linear probe
      before and after training, and `random_weights`, the metrics of the other run with its
      `folder`, where they are known. Empty for a run from random weights.
    """
    pretrained = settings["pretrained"]
    if not pretrained:
        return {}
    found: dict[str, Any] = {"pretrained": pretrained}
    stage_one = os.path.expanduser(pretrained)
    if os.path.exists(os.path.join(stage_one, "config.json")):
        found["objective"] = workdir.read_config(stage_one).get("objective", "")
    history = os.path.join(stage_one, "history.jsonl")
    rows = read_history(history) if os.path.exists(history) else []
    probes = {r["step"]: r["probe/roc_auc"] for r in rows if r.get("probe/roc_auc") is not None}
    if 0 in probes and len(probes) > 1:
        found["probe"] = {"before": probes[0], "after": probes[max(probes)]}
    for path in sorted(glob.glob(os.path.join(glob.escape(checkpoint), "..", "*", "config.json"))):
        other = os.path.dirname(path)
        try:
            theirs = workdir.read_config(other)
            if theirs.get("pretrained") != "" or _essential(theirs) != _essential(settings):
                continue
            metrics = workdir.read_json(other, "metrics.json")
        except UserError:
            continue  # Unfinished, or not of this program.
        same = ("n", "n_patients", "sources")
        if all(metrics.get(name) == summary[name] for name in same):
            scores = {name: metrics.get(name) for name in HEADLINES}
            found["random_weights"] = {"folder": os.path.relpath(other), **scores}
    return found


def _essential(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in settings.items() if k not in _IRRELEVANT}
    data = {k: v for k, v in settings["data"].items() if k not in _IRRELEVANT_DATA}
    return kept | {"data": data}


def sentence(gain: Mapping[str, Any]) -> str:
    """The gain from stage one in two sentences, or how to measure it."""
    if not gain:
        return ""
    name = gain["pretrained"] + (f", {gain['objective']}" if gain.get("objective") else "")
    text = f"Stage one ({name})"
    if "probe" in gain:
        before, after = (number(gain["probe"][key]) for key in ("before", "after"))
        text += (
            " moved the ROC AUC of a linear classifier on the frozen encoder from "
            f"{before} (random weights) to {after}, on validation patients"
        )
    other = gain.get("random_weights")
    if not other:
        return (
            f"{text}. To see what it gives the fine-tuned network, train from random weights "
            "(--config.pretrained=, all other settings the same, a workdir beside this one)."
        )
    shown = [phrase(key, other[key]) for key in _SHOWN if other.get(key) is not None]
    return (
        f"{text}. From random weights the fine-tuned network has {listed(shown)} "
        f"({other['folder']}); configs/compare.py tests the differences."
    )
