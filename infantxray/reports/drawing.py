"""Which figures a report has, of which models."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from infantxray.evaluation.metrics import HEADLINES
from infantxray.reports import figures as run_figures
from infantxray.reports import study_figures as figures
from infantxray.reports.study_page import Picture
from infantxray.reports.tables import NAMES
from infantxray.stage_one.objectives import OBJECTIVES
from infantxray.studies.baselines import MAJORITY, RIDGE
from infantxray.studies.comparisons import Comparisons, words
from infantxray.studies.plan import Run
from infantxray.studies.results import Model
from infantxray.training.writers import read_history


class Drawing:
    """Draws the figures of a report; each is None where there is nothing to draw."""

    def __init__(self, folder: str, comparisons: Comparisons, references: dict, focus: Model):
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._comparisons = comparisons
        self._results = comparisons.results
        self._references = references
        self._focus = focus

    def _picture(self, name: str, title: str, caption: str, draw, *arguments) -> Picture:
        paths = figures.save(self._folder, name, lambda: draw(*arguments))
        return Picture(title, caption, *paths)

    def _main(self) -> str:
        return "accuracy" if self._results.classes else "age_mae_months"

    def _of_reference(self) -> list[Model]:
        results = self._results
        models = [results.model(encoder, results.reference) for encoder in results.encoders]
        return [model for model in models if model]

    def _of_focus(self) -> dict[str, Model]:
        results = self._results
        found = {v: results.model(self._focus.encoder, v) for v in results.variants}
        return {words(variant): model for variant, model in found.items() if model}

    def performance(self) -> Picture | None:
        if not self._results.classes:
            return None
        rows = {}
        for model in self._of_reference():
            sampled = self._comparisons.sampled(model)
            rows[model.encoder] = {name: sampled.estimate(name) for name in HEADLINES}
        return self._picture(
            "performance",
            "Performance of the encoders",
            f"Variant “{self._results.reference}”, mean over seeds with 95 % intervals (the "
            "paper's Figure 7).",
            figures.performance,
            rows,
        )

    def ablation(self) -> Picture:
        results, name = self._results, self._main()
        rows = {}
        for encoder in results.encoders:
            rows[encoder] = {}
            for variant in results.variants:
                model = results.model(encoder, variant)
                if model:
                    sampled = self._comparisons.sampled(model)
                    rows[encoder][words(variant)] = (sampled.estimate(name), sampled.observed[name])
        lines = {
            label: self._comparisons.reference_estimate(label, name).mean
            for label in (RIDGE, MAJORITY)
        }
        return self._picture(
            "ablation",
            "Ablation",
            f"{NAMES[name]} by variant: mean with 95 % interval, dots are seeds, lines are the "
            "baselines (the paper's Figure 8).",
            figures.ablation,
            rows,
            name,
            lines,
        )

    def label_fractions(self) -> Picture | None:
        results = self._results
        if len(results.fractions) < 2:
            return None
        name = "roc_auc" if results.classes else "age_mae_months"
        lines = {}
        for variant in results.variants:
            models = [
                results.model(self._focus.encoder, variant, fraction)
                for fraction in results.fractions
            ]
            lines[words(variant)] = [
                (model.label_fraction, self._comparisons.sampled(model).estimate(name))
                for model in models
                if model
            ]
        return self._picture(
            "label_fractions",
            "How many labels it takes",
            f"{self._focus.encoder}: mean over seeds with 95 % intervals.",
            figures.by_labels,
            lines,
            name,
        )

    def curves(self) -> Picture | None:
        if not self._results.classes:
            return None
        return self._picture(
            "roc_and_precision_recall",
            "ROC and precision-recall",
            f"{self._focus.encoder}: means over conditions and seeds; bands hold all seeds. Grey: "
            "chance.",
            figures.curves,
            self._of_focus(),
        )

    def curves_by_encoder(self) -> Picture | None:
        models = {model.encoder: model for model in self._of_reference()}
        if not self._results.classes or len(models) < 2:
            return None
        return self._picture(
            "roc_and_precision_recall_by_encoder",
            "",
            f"The same by encoder, variant “{self._results.reference}”.",
            figures.curves,
            models,
        )

    def confusion(self) -> Picture | None:
        if not self._results.classes:
            return None
        return self._picture(
            "confusion_matrices",
            "Confusion matrices",
            f"Variant “{self._results.reference}”, per cent of each true condition, mean over "
            "seeds (the paper's Figure 4).",
            figures.confusion,
            self._of_reference(),
        )

    def ages(self) -> Picture | None:
        run = self._focus.predictions[0]
        if not (np.isfinite(run.age_predicted_months) & np.isfinite(run.age_months)).any():
            return None
        return self._picture(
            "ages",
            "Predicted ages",
            f"{self._focus.encoder}, {self._focus.name}, first seed: a dot a test image.",
            run_figures.age_figure,
            run,
        )

    def reliability(self) -> Picture | None:
        if not self._results.classes:
            return None
        return self._picture(
            "calibration",
            "Calibration",
            f"{self._focus.encoder}: how often the models are right at each confidence, all seeds "
            "together, with the expected calibration error. Below the line: too sure.",
            figures.reliability,
            self._of_focus(),
        )

    def learning(self, cells: Sequence[Run], best_metric: str) -> Picture:
        """Stage one of every encoder, and stage two of one."""
        loss, probe = "Validation loss, stage one", "ROC AUC of a linear probe, stage one"
        panels: dict[str, dict] = {loss: {}, probe: {}}
        finished = [c for c in cells if c.task == "pretrain" and history(c)]
        several = len({cell.name for cell in finished}) > 1
        objectives = {cell.settings["objective"] for cell in finished}
        one_encoder = len({cell.encoder for cell in finished}) == 1
        for cell in finished:
            name = words(cell.name)
            label = name if one_encoder else f"{cell.encoder}, {name}" if several else cell.encoder
            if len(objectives) == 1:  # Losses of different objectives cannot be compared.
                points = _points(cell, f"validation/{cell.settings['objective']}")
                panels[loss].setdefault(label, []).append(points)
            points = _points(cell, "probe/roc_auc")
            if len(points) > 1:
                panels[probe].setdefault(label, []).append(points)
        shown = NAMES.get(best_metric, best_metric)
        for title, name in (
            ("Training loss, stage two", "train/loss"),
            (f"Validation {shown}, stage two", f"validation/{best_metric}"),
        ):
            panels[title] = {
                label: [_points(cell, name) for cell in model.runs]
                for label, model in self._of_focus().items()
            }
        return self._picture(
            "learning_curves",
            "Learning curves",
            f"Stage one of {self._focus.encoder if one_encoder else 'all encoders'}; stage two of "
            f"{self._focus.encoder}. Mean over seeds, bands hold all seeds.",
            figures.learning,
            {title: lines for title, lines in panels.items() if lines},
        )

    def reconstructions(self, cells: Sequence[Run]) -> list[Picture]:
        """The last panels of stage one, first seed of each encoder."""
        shown: dict[tuple[str, str], Picture] = {}
        for cell in cells:
            path = os.path.join(cell.folder, "figures", "panels.png")
            kind = (cell.encoder, cell.name)
            if cell.task == "pretrain" and os.path.exists(path) and kind not in shown:
                names = OBJECTIVES[cell.settings["objective"]].panel_names
                shown[kind] = Picture(
                    "" if shown else "What stage one predicts",
                    f"{cell.encoder}, {cell.name}, of validation images: "
                    f"{', '.join(names).replace('_', ' ')}.",
                    path,
                    pixels=True,
                )
        return list(shown.values())

    def saliency(self) -> list[Picture]:
        path = os.path.join(self._focus.runs[0].folder, "figures", "saliency.png")
        if not os.path.exists(path):
            return []
        return [
            Picture(
                "Where the answers come from",
                f"Grad-CAM of {self._focus.encoder}, {self._focus.name}, first seed: of each "
                "condition the image that it is surest about, right or wrong, with a frame around "
                "the finding where its place is known.",
                path,
            )
        ]


def _points(cell: Run, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in history(cell) if row.get(name) is not None]


def history(cell: Run) -> list[dict]:
    """The scalars of a run by step."""
    return read_history(os.path.join(cell.folder, "history.jsonl"))
