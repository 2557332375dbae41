"""The figures of a study, and the tables of one model by condition, age and site."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import read_json, verify_checksums
from infantxray.evaluation.intervals import Estimate
from infantxray.evaluation.metrics import CLASS_METRICS, HEADLINES, age_groups
from infantxray.evaluation.predictions import Predictions, concatenate
from infantxray.evaluation.saliency import STRIDES
from infantxray.evaluation.summary import calibration_of
from infantxray.features import baselines
from infantxray.reports import plots, study_plots
from infantxray.reports.comparisons import TESTED, Comparisons, words
from infantxray.reports.page import Figure, plural
from infantxray.reports.tables import NAMES, NOTHING, Table
from infantxray.stage_one.objectives import panel_names
from infantxray.studies.plan import Run
from infantxray.studies.results import Model
from infantxray.training.writers import read_history

_FEW_PATIENTS = 10


def classes(comparisons: Comparisons, model: Model) -> Table | None:
    """Every condition, of one model."""
    shown = model.predictions[0]
    if not comparisons.results.classes or not shown.has_condition.any():
        return None
    sampled = comparisons.sampled(model)
    ridge = comparisons.resampling.metrics([comparisons.reference(baselines.RIDGE)])
    rows = []
    for k, name in enumerate(comparisons.results.classes):
        known, present = shown.outcome(k)
        patients = len(set(shown.patient[known & present]))
        few = " (few)" if patients < _FEW_PATIENTS else ""
        rows.append(
            [name, int((known & present).sum()), f"{patients}{few}"]
            + [sampled.estimate(f"{metric}/{name}") for metric in CLASS_METRICS]
            + [ridge.estimate(f"roc_auc/{name}")]
        )
    return Table(
        "conditions",
        "By condition",
        f"{model.encoder}, {words(model.name)}. {comparisons.intervals()} “Few”: fewer than "
        f"{_FEW_PATIENTS} test patients; too few for a conclusion. The last column is ridge on "
        "pixels.",
        [
            "Condition",
            "Images",
            "Patients",
            *(NAMES[name] for name in CLASS_METRICS),
            "ROC AUC of ridge",
        ],
        rows,
    )


def age_bands(comparisons: Comparisons, model: Model) -> Table:
    """The headline metrics by age."""
    ages = comparisons.results.images.age_months
    return _groups(comparisons, "age_bands", "By age", "Age", age_groups(ages), model)


def sites(comparisons: Comparisons, model: Model) -> Table | None:
    """The headline metrics by site and by source; None where there is one of each."""
    images = comparisons.results.images
    groups = []
    for column in (images.source, images.site):
        names = sorted(set(column))
        if len(names) > 1:
            groups += [(name or "unknown site", column == name) for name in names]
    return _groups(comparisons, "sites", "By site", "Site", groups, model) if groups else None


def saliency(comparisons: Comparisons) -> Table | None:
    """Saliency within the boxes of findings; None if no image has a box."""
    rows = []
    count, share, level = 0, 0.0, None
    for model in comparisons.results.models:
        found = [one for run in model.runs if (one := read_metrics(run).get("saliency"))]
        whole = model.label_fraction == comparisons.results.top_fraction
        if not whole or len(found) < len(model.runs):
            continue
        count, share = found[0]["n"], found[0]["box_share"]
        level = found[0].get("level")  # Runs of older versions have none.
        scores = [
            _over_seeds([one[name] for one in found]) for name in ("pointing_game", "mass_in_box")
        ]
        rows.append([model.encoder, words(model.name), *scores])
    if not rows:
        return None
    rows.append(["evenly spread", NOTHING, f"{share:.3f}", f"{share:.3f}"])
    return Table(
        "saliency",
        "Saliency against the true boxes",
        f"Grad-CAM of the true condition on {plural(count, 'test image')} whose finding has a "
        "known place: how often its maximum lies in the finding's box, and the share of it that "
        "does. Mean ± standard deviation over seeds."
        + (
            f" Computed at the pyramid level of stride {STRIDES[level]}."
            if level is not None
            else ""
        ),
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
        sampled = comparisons.part(model, here)
        patients = len(set(model.predictions[0].patient[here]))
        few = " (few)" if patients < _FEW_PATIENTS else ""
        rows.append([group, len(here), f"{patients}{few}"])
        rows[-1] += [sampled.estimate(metric) for metric in TESTED]
        rows[-1] += [
            comparisons.resampling.metrics([other.take(here)]).estimate(metric)
            for metric in ("accuracy", "age_mae_months")
            for other in (majority, ridge)
        ]
    return Table(
        name,
        title,
        f"{model.encoder}, {words(model.name)}; beside it the accuracy of the most frequent "
        "class and of ridge on pixels, and their errors of age. Macro metrics are over the "
        f"conditions that occur in a row. {comparisons.intervals()} “Few”: fewer than "
        f"{_FEW_PATIENTS} test patients.",
        [
            column, "Images", "Patients", *(NAMES[metric] for metric in TESTED),
            "Accuracy, majority", "Accuracy, ridge", "Age MAE, mean age (months)",
            "Age MAE, ridge (months)",
        ],
        rows,
    )  # fmt: skip


def read_metrics(run: Run) -> dict[str, Any]:
    """`metrics.json` of a finished run."""
    verify_checksums(run.folder, ["metrics.json"])
    return read_json(Path(run.folder, "metrics.json"))


def _over_seeds(values: Sequence[float]) -> Estimate:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Estimate(float(np.mean(values)), sd, float("nan"), float("nan"))


class Drawing:
    """Draws the figures of a study; each is None where there is nothing to draw.

    Args:
      folder: output folder.
      comparisons: of the study.
      focus: the model with details.
    """

    def __init__(self, folder: str, comparisons: Comparisons, focus: Model):
        self._folder = folder
        self._comparisons = comparisons
        self._results = comparisons.results
        self._focus = focus
        self._classes, self._legend = plots.class_labels(self._results.classes)

    def _figure(
        self, name: str, title: str, caption: str, draw: Callable[..., Any], *arguments: Any
    ) -> Figure:
        words_of_users = [*self._classes, *self._results.variants]
        plot = functools.partial(draw, *arguments)
        paths = plots.save(self._folder, name, plot, words_of_users)
        legend = self._legend if name == "confusion_matrices" else ()
        return Figure(title, caption, *paths, legend=legend)

    def _of_reference(self) -> dict[str, Model]:
        """The reference variant of each encoder."""
        results = self._results
        found = {e: results.model(e, results.reference) for e in results.encoders}
        return {encoder: model for encoder, model in found.items() if model}

    def _of_focus(self) -> dict[str, Model]:
        """All variants of the encoder with details."""
        results = self._results
        found = {words(v): results.model(self._focus.encoder, v) for v in results.variants}
        return {variant: model for variant, model in found.items() if model}

    def performance(self) -> Figure | None:
        if not self._results.classes:
            return None
        rows: dict[str, dict[str, Estimate]] = {}
        for encoder, model in self._of_reference().items():
            sampled = self._comparisons.sampled(model)
            rows[encoder] = {name: sampled.estimate(name) for name in HEADLINES}
        caption = (
            f"Variant “{self._results.reference}”, mean over seeds with 95 % intervals (the "
            "paper's Figure 7)."
        )
        title = "Performance of the encoders"
        return self._figure("performance", title, caption, study_plots.performance, rows)

    def ablation(self) -> Figure:
        results = self._results
        name = "accuracy" if results.classes else "age_mae_months"
        rows: dict[str, dict[str, tuple[Estimate, np.ndarray]]] = {}
        for encoder in results.encoders:
            rows[encoder] = {}
            for variant in results.variants:
                if model := results.model(encoder, variant):
                    sampled = self._comparisons.sampled(model)
                    rows[encoder][words(variant)] = (sampled.estimate(name), sampled.observed[name])
        lines = {
            label: self._comparisons.reference_estimate(label, name).mean
            for label in (baselines.RIDGE, baselines.MAJORITY)
        }
        caption = (
            f"{NAMES[name]} by variant: mean with 95 % interval, dots are seeds, lines are the "
            "baselines (the paper's Figure 8)."
        )
        return self._figure(
            "ablation", "Ablation", caption, study_plots.ablation, rows, name, lines
        )

    def label_fractions(self) -> Figure | None:
        results = self._results
        if len(results.fractions) < 2:
            return None
        name = "roc_auc" if results.classes else "age_mae_months"
        lines = {}
        for variant in results.variants:
            found = [results.model(self._focus.encoder, variant, f) for f in results.fractions]
            lines[words(variant)] = [
                (model.label_fraction, self._comparisons.sampled(model).estimate(name))
                for model in found
                if model
            ]
        caption = f"{self._focus.encoder}: mean over seeds with 95 % intervals."
        title = "Results by share of labels"
        return self._figure("label_fractions", title, caption, study_plots.by_labels, lines, name)

    def curves(self) -> Figure | None:
        caption = (
            f"{self._focus.encoder}: means over conditions and seeds; bands hold all seeds. Grey: "
            "chance."
        )
        title, models = "ROC and precision-recall", self._of_focus()
        return self._curves("roc_and_precision_recall", title, caption, models)

    def curves_by_encoder(self) -> Figure | None:
        models = self._of_reference()
        if len(models) < 2:
            return None
        caption = f"The same by encoder, variant “{self._results.reference}”."
        return self._curves("roc_and_precision_recall_by_encoder", "", caption, models)

    def _curves(
        self, name: str, title: str, caption: str, models: Mapping[str, Model]
    ) -> Figure | None:
        if not self._results.classes:
            return None
        runs = {label: model.predictions for label, model in models.items()}
        return self._figure(name, title, caption, study_plots.curves, runs)

    def confusion(self) -> Figure | None:
        if not self._results.classes or self._focus.predictions[0].multi_label:
            return None
        models = self._of_reference()
        shares = {name: np.mean([*map(_shares, m.predictions)], 0) for name, m in models.items()}
        return self._figure(
            "confusion_matrices",
            "Confusion matrices",
            f"Variant “{self._results.reference}”, per cent of each true condition, mean over "
            "seeds (the paper's Figure 4).",
            plots.confusion_figure,
            shares,
            self._classes,
        )

    def ages(self) -> Figure | None:
        shown = self._focus.predictions[0]
        if not (np.isfinite(shown.age_predicted_months) & np.isfinite(shown.age_months)).any():
            return None
        caption = f"{self._focus.encoder}, {self._focus.name}, first seed: a dot a test image."
        return self._figure("ages", "Predicted ages", caption, plots.age_figure, shown)

    def reliability(self) -> Figure | None:
        if not self._results.classes:
            return None
        found = {
            label: calibration_of(concatenate(model.predictions))
            for label, model in self._of_focus().items()
        }
        found = {label: one for label, one in found.items() if one["bins"]}
        caption = (
            f"{self._focus.encoder}: accuracy at each confidence, all seeds together, with the "
            "expected calibration error, before temperature scaling. Below the line: overconfident."
        )
        return self._figure("calibration", "Calibration", caption, plots.reliability, found)

    def learning(self, runs: Sequence[Run], best_metric: str) -> Figure:
        """Stage one of every encoder, and stage two of one."""
        loss, probe = "Validation loss, stage one", "ROC AUC of a linear probe, stage one"
        panels: dict[str, dict[str, list[list[tuple[int, float]]]]] = {loss: {}, probe: {}}
        finished = [run for run in runs if run.task == "pretrain" and history(run)]
        several = len({run.name for run in finished}) > 1
        objectives = {run.settings["objective"] for run in finished}
        one_encoder = len({run.encoder for run in finished}) == 1
        for run in finished:
            name = words(run.name)
            label = name if one_encoder else f"{run.encoder}, {name}" if several else run.encoder
            if len(objectives) == 1:  # Losses of different objectives cannot be compared.
                points = _points(run, f"validation/{run.settings['objective']}")
                panels[loss].setdefault(label, []).append(points)
            points = _points(run, "probe/roc_auc")
            if len(points) > 1:
                panels[probe].setdefault(label, []).append(points)
        shown = NAMES.get(best_metric, best_metric)
        for title, name in (
            ("Training loss, stage two", "train/loss"),
            (f"Validation {shown}, stage two", f"validation/{best_metric}"),
        ):
            panels[title] = {
                label: [_points(run, name) for run in model.runs]
                for label, model in self._of_focus().items()
            }
        caption = (
            f"Stage one of {self._focus.encoder if one_encoder else 'all encoders'}; stage two of "
            f"{self._focus.encoder}. Mean over seeds, bands hold all seeds."
        )
        panels = {title: lines for title, lines in panels.items() if lines}
        return self._figure(
            "learning_curves", "Learning curves", caption, study_plots.learning, panels
        )

    def reconstructions(self, runs: Sequence[Run]) -> list[Figure]:
        """The last panels of stage one, first seed of each encoder."""
        shown: dict[tuple[str, str], Figure] = {}
        for run in runs:
            path = os.path.join(run.folder, "figures", "panels.png")
            kind = (run.encoder, run.name)
            if run.task == "pretrain" and os.path.exists(path) and kind not in shown:
                names = ", ".join(panel_names(run.settings["objective"]))
                title = "" if shown else "What stage one predicts"
                caption = f"{run.encoder}, {run.name}, validation images: {names}."
                shown[kind] = Figure(title, caption.replace("_", " "), path, pixels=True)
        return list(shown.values())

    def saliency(self) -> list[Figure]:
        path = os.path.join(self._focus.runs[0].folder, "figures", "saliency")
        light = next((path + end for end in (".svg", ".png") if os.path.exists(path + end)), "")
        if not light:
            return []
        dark = path + "_dark.svg"
        caption = (
            f"Grad-CAM of {self._focus.encoder}, {self._focus.name}, first seed: the image of each "
            "condition that it is surest about, right or wrong. Frames: the finding, where its "
            "place is known."
        )
        dark = dark if os.path.exists(dark) else ""
        return [Figure("Where the answers come from", caption, light, dark)]


def _shares(run: Predictions) -> np.ndarray:
    """The confusion matrix `[K, K]` of a run, as shares of the true condition."""
    known, k = run.label >= 0, len(run.classes)
    outcome = run.label[known] * k + run.probabilities[known].argmax(1)
    counts = np.bincount(outcome, minlength=k * k).reshape(k, k)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _points(run: Run, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in history(run) if row.get(name) is not None]


def history(run: Run) -> list[dict[str, Any]]:
    """The scalars of a run by step."""
    return read_history(os.path.join(run.folder, "history.jsonl"))
