"""The tables of one model in parts: by condition, age and site; and where it looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.reports.tables import NAMES, NOTHING, Table
from infantxray.studies import baselines
from infantxray.studies.comparisons import TESTED, Comparisons, words
from infantxray.studies.plan import Cell
from infantxray.studies.results import Model

_CLASS_FIGURES = ("recall", "precision", "f1", "roc_auc")
_FEW_PATIENTS = 10


def classes(comparisons: Comparisons, model: Model) -> Table | None:
    """Every condition, of one model."""
    if not comparisons.results.classes or not (model.runs[0].label >= 0).any():
        return None
    sampled = comparisons.sampled(model)
    ridge = comparisons.resampling.figures([comparisons.reference(baselines.RIDGE)])
    label, patient = model.runs[0].label, model.runs[0].patient
    rows = []
    for k, name in enumerate(comparisons.results.classes):
        patients = len(set(patient[label == k]))
        few = " (few)" if patients < _FEW_PATIENTS else ""
        rows.append(
            [name, int((label == k).sum()), f"{patients}{few}"]
            + [sampled.estimate(f"{figure}/{name}") for figure in _CLASS_FIGURES]
            + [ridge.estimate(f"roc_auc/{name}")]
        )
    return Table(
        "conditions",
        "By condition",
        f"{model.encoder}, {words(model.name)}. “Few”: fewer than {_FEW_PATIENTS} test "
        "patients; such a row says next to nothing. The last column is ridge on pixels.",
        [
            "Condition",
            "Images",
            "Patients",
            *(NAMES[name] for name in _CLASS_FIGURES),
            "ROC AUC of ridge",
        ],
        rows,
    )


def age_bands(comparisons: Comparisons, model: Model) -> Table:
    """The headline figures by age."""
    ages = comparisons.results.images.age_months
    groups = [(name, (ages >= low) & (ages < high)) for name, low, high in AGE_BANDS]
    groups.append(("unknown", ~np.isfinite(ages)))
    return _groups(comparisons, "age_bands", "By age", "Age", groups, model)


def sites(comparisons: Comparisons, model: Model) -> Table | None:
    """The headline figures by site and by source; None where there is one of each."""
    images = comparisons.results.images
    groups = []
    for column in (images.source, images.site):
        names = sorted(set(column))
        if len(names) > 1:
            groups += [(name or "unknown site", column == name) for name in names]
    return _groups(comparisons, "sites", "By site", "Site", groups, model) if groups else None


def saliency(comparisons: Comparisons) -> Table | None:
    """Whether the saliency lies where the finding is; None where no image says where that is."""
    rows = []
    count, share = 0, 0.0
    for model in comparisons.results.models:
        found = [read_metrics(cell).get("saliency") for cell in model.cells]
        if model.label_fraction != comparisons.results.top_fraction or not all(found):
            continue
        count, share = found[0]["n"], found[0]["box_share"]
        figures = [
            _over_seeds([one[name] for one in found]) for name in ("pointing_game", "mass_in_box")
        ]
        rows.append([model.encoder, words(model.name), *figures])
    if not rows:
        return None
    rows.append(["evenly spread", NOTHING, f"{share:.3f}", f"{share:.3f}"])
    side = comparisons.results.models[0].cells[0].config.data.image_size
    return Table(
        "saliency",
        "Saliency against the true boxes",
        f"Grad-CAM of the true condition on {count} test images whose finding has a known place: "
        "how often its maximum lies in the finding's box, and the share of it that does. Mean "
        f"± standard deviation over seeds. At {side} px the last map has {side // 32} x "
        f"{side // 32} cells, so this is coarse.",
        ["Encoder", "Variant", "Maximum in the box", "Share in the box"],
        rows,
    )


def _groups(
    comparisons: Comparisons, name, title, column, groups: Sequence[tuple], model: Model
) -> Table:
    majority, ridge = (comparisons.reference(n) for n in (baselines.MAJORITY, baselines.RIDGE))
    rows = []
    for group, mask in groups:
        here = np.flatnonzero(mask)
        if not len(here):
            continue
        runs = [run.take(here) for run in model.runs]
        sampled = comparisons.resampling.figures(runs)
        patients = len(set(runs[0].patient))
        few = " (few)" if patients < _FEW_PATIENTS else ""
        rows.append([group, len(here), f"{patients}{few}"])
        rows[-1] += [sampled.estimate(figure) for figure in TESTED]
        rows[-1] += [
            comparisons.resampling.figures([other.take(here)]).estimate(figure)
            for figure in ("accuracy", "age_mae_months")
            for other in (majority, ridge)
        ]
    return Table(
        name,
        title,
        f"{model.encoder}, {words(model.name)}; beside it the accuracy of the most frequent "
        "class and of ridge on pixels, and their errors of age. Macro figures are over the "
        f"conditions that occur in a row. “Few”: fewer than {_FEW_PATIENTS} test patients.",
        [
            column, "Images", "Patients", *(NAMES[figure] for figure in TESTED),
            "Accuracy, majority", "Accuracy, ridge", "Age MAE, mean age (months)",
            "Age MAE, ridge (months)",
        ],
        rows,
    )  # fmt: skip


def read_metrics(cell: Cell) -> dict:
    """`metrics.json` of a finished cell."""
    return json.loads(Path(cell.folder, "metrics.json").read_text(encoding="utf-8"))


def _over_seeds(values: Sequence[float]) -> Estimate:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Estimate(float(np.mean(values)), sd, float("nan"), float("nan"))
