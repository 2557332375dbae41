"""Tables of a study: metrics of models, paired differences, intervals and tests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infantxray.evaluation.intervals import Estimate, Resampling, Sampled, average, holm
from infantxray.evaluation.metrics import HEADLINES
from infantxray.evaluation.predictions import Predictions
from infantxray.reports.tables import NAMES, NOTHING, Difference, Table
from infantxray.studies.plan import Run
from infantxray.studies.results import Model, Results

# The results of the paper, on its gated data.
_PAPER = "the paper, on other data"
_PAPER_BEST = ("resnet50", 0.8249)
_PAPER_ABLATION = {"without_pretraining": 0.7797, "without_apn": 0.8004, "full": 0.8249}
_MEAN = "mean of all encoders"
TESTED = ("accuracy", "f1", "roc_auc", "age_mae_months")


References = Mapping[float, Mapping[str, Predictions]]


class Comparisons:
    """Computes tables; the metrics of a model are resampled once.

    Args:
      results: of the study.
      references: predictions of the baselines, `{label_fraction: {name: Predictions}}`.
      samples: bootstrap samples.
      seed: seed of the resampling.
    """

    def __init__(self, results: Results, references: References, samples: int, seed: int):
        self.results = results
        self._references = references
        self.resampling = Resampling(
            results.models[0].predictions[0].patient, results.seeds, samples, seed
        )
        self._groups = _stages_one(results)
        self._done: dict[int, Sampled] = {}

    def sampled(self, model: Model) -> Sampled:
        if id(model) not in self._done:
            self._done[id(model)] = self._metrics(model.predictions, model.runs)
        return self._done[id(model)]

    def part(self, model: Model, rows: np.ndarray) -> Sampled:
        """A model on some of the test images, by index."""
        return self._metrics([one.take(rows) for one in model.predictions], model.runs)

    def _metrics(self, predictions: Sequence[Predictions], runs: Sequence[Run]) -> Sampled:
        # Each probe of a frozen encoder has a stage one of its own.
        tuned = [run for run in runs if run.task == "finetune"]
        groups = [self._groups[run.seed] for run in tuned if run.seed in self._groups]
        return self.resampling.metrics(predictions, groups if len(groups) == len(runs) else ())

    def reference_estimate(self, name: str, metric: str) -> Estimate:
        """A metric of a baseline that was fitted on all labels."""
        return self.resampling.metrics([self.reference(name)]).estimate(metric)

    def _headline(self, model: Model | None) -> list[Any]:
        if model is None:
            return [NOTHING] * len(HEADLINES)
        sampled = self.sampled(model)
        return [sampled.estimate(name) for name in HEADLINES]

    def _baseline_rows(self, lead: int) -> list[list[Any]]:
        """A row a baseline, behind `lead` columns of text."""
        rows = []
        for name, predictions in self._references[self.results.top_fraction].items():
            sampled = self.resampling.metrics([predictions])
            blank = [NOTHING] * (lead - 1)
            rows.append([name, *blank, *(sampled.estimate(metric) for metric in HEADLINES)])
        return rows

    def encoders(self) -> Table:
        """Table 1 of the paper."""
        results = self.results
        rows = [
            [encoder, *self._headline(results.model(encoder, results.reference))]
            for encoder in results.encoders
        ]
        rows += self._baseline_rows(1)
        rows.append([f"{_PAPER_BEST[0]}: {_PAPER}", *_paper_row(_PAPER_BEST[1])])
        return Table(
            "table1_encoders",
            "Table 1: encoders",
            f"Variant “{results.reference}”. {self._explain()} The last row is the paper's best "
            "encoder, on other data: the two cannot be compared.",
            ["Encoder", *(NAMES[name] for name in HEADLINES)],
            rows,
            frozenset([len(rows) - 1]),
        )

    def ablation(self) -> Table:
        """Table 2 of the paper."""
        results = self.results
        rows = [
            [encoder, words(variant), *self._headline(results.model(encoder, variant))]
            for encoder in results.encoders
            for variant in results.variants
        ]
        rows += self._baseline_rows(2)
        first = len(rows)
        rows += [
            [f"{_PAPER_BEST[0]}: {_PAPER}", words(variant), *_paper_row(accuracy)]
            for variant, accuracy in _PAPER_ABLATION.items()
            if variant in results.variants
        ]
        return Table(
            "table2_ablation",
            "Table 2: what each part adds",
            self._explain() + self._identical(),
            ["Encoder", "Variant", *(NAMES[name] for name in HEADLINES)],
            rows,
            frozenset(range(first, len(rows))),
        )

    def differences(self) -> Table | None:
        """Paired differences between the reference and the other variants; None for one."""
        results = self.results
        others = [name for name in results.variants if name != results.reference]
        pairs: list[tuple[str, str, float, Sampled]] = []
        missing: list[str] = []
        absent: list[str] = []
        for fraction in reversed(results.fractions):
            for other in others:
                found = []
                paired = []  # The seeds of each encoder.
                for encoder in results.encoders:
                    ours = results.model(encoder, results.reference, fraction)
                    theirs = results.model(encoder, other, fraction)
                    name = f"{encoder}, {words(other)}, {fraction:.0%} of the labels"
                    seeds = _common_seeds(ours, theirs) if ours and theirs else []
                    if not ours or not theirs or not seeds:
                        absent.append(name)
                        continue
                    if len(seeds) < max(len(ours.runs), len(theirs.runs)):
                        missing.append(name)
                    difference = self._of_seeds(ours, seeds) - self._of_seeds(theirs, seeds)
                    found.append(difference)
                    paired.append(seeds)
                    pairs.append((other, encoder, fraction, difference))
                # Draw by draw: the seeds must be the same.
                same = len(found) == len(results.encoders) and paired.count(paired[0]) == len(found)
                if same and len(found) > 1:
                    pairs.append((other, _MEAN, fraction, average(found)))
        if not pairs:
            return None
        estimates = [[sampled.estimate(name) for name in TESTED] for *_, sampled in pairs]
        p = np.array([[e.p for e in row] for row in estimates])
        # Two questions, each with its own correction: does it help at all, and for which encoders.
        mean = np.array([encoder == _MEAN for _, encoder, _, _ in pairs])
        corrected = np.full(p.shape, np.nan)
        for family in (mean, ~mean):
            corrected[family] = holm(p[family].ravel()).reshape(-1, len(TESTED))
        tests = [int(np.isfinite(p[family]).sum()) for family in (~mean, mean) if family.any()]
        several = len(results.fractions) > 1
        rows = [
            [f"{results.reference} − {words(other)}", encoder]
            + [f"{fraction:.0%}"] * several
            + [Difference(e, float(p)) for e, p in zip(row, adjusted, strict=True)]
            for (other, encoder, fraction, _), row, adjusted in zip(
                pairs, estimates, corrected, strict=True
            )
        ]
        over = "patients and seeds" if results.seeds > 1 else "patients"
        scope = (
            "that new training runs would differ on new patients"
            if results.seeds > 1
            else "that these two trained models would differ on new patients; with one seed, "
            "nothing is known of other training runs"
        )
        return Table(
            "differences",
            "Paired differences",
            f"Same patients, same seeds. Each cell: the difference, its 95 % interval over {over}, "
            "and the p-value of the null hypothesis that the expected difference is zero, against "
            f"{scope} (t test with the standard error of the joint bootstrap), after Holm's "
            f"correction for the {tests[0]} tests of single encoders"
            + (f", and for the {tests[1]} of their means apart" if len(tests) > 1 else "")
            + ". Bold: p < .05 after correction. "
            + "For the age error, negative is better."
            + self._given()
            + (
                " Seeds that one side lacks are left out (if one seed remains, the interval covers "
                f"patients alone): {'; '.join(missing)}."
                if missing
                else ""
            )
            + (f" Without a seed that both sides have: {'; '.join(absent)}." if absent else "")
            + (
                " Means of all encoders are given where all encoders have the same seeds."
                if (missing or absent) and len(results.encoders) > 1
                else ""
            ),
            ["Difference", "Encoder", *["Labels"] * several, *(NAMES[name] for name in TESTED)],
            rows,
        )

    def _of_seeds(self, model: Model, seeds: list[int]) -> Sampled:
        if len(seeds) == len(model.runs):
            return self.sampled(model)
        pairs = zip(model.runs, model.predictions, strict=True)
        kept = [(run, predictions) for run, predictions in pairs if run.seed in seeds]
        return self._metrics([predictions for _, predictions in kept], [run for run, _ in kept])

    def frozen(self) -> Table | None:
        """Linear probe and nearest neighbours on frozen features, beside fine-tuning."""
        results = self.results
        if not results.frozen:
            return None
        rows = []
        for encoder in results.encoders:
            for model in results.frozen:
                if model.encoder == encoder:
                    rows.append([encoder, f"frozen, {model.name}", *self._headline(model)])
            for variant in results.variants:
                tuned = results.model(encoder, variant)
                if tuned:
                    rows.append([encoder, f"fine-tuned, {words(variant)}", *self._headline(tuned)])
        rows += self._baseline_rows(2)
        return Table(
            "frozen_features",
            "Frozen features, before fine-tuning",
            "Frozen: a linear classifier and ridge regression, or the 20 nearest neighbours, on "
            f"the encoder's pooled last map. {self._explain()}{self._frozen_seeds()}",
            ["Encoder", "Method", *(NAMES[name] for name in HEADLINES)],
            rows,
        )

    def label_fractions(self) -> Table | None:
        """Every model at every label fraction; None for one fraction."""
        results = self.results
        if len(results.fractions) < 2:
            return None
        rows = []
        for encoder in results.encoders:
            for variant in results.variants:
                for fraction in results.fractions:
                    model = results.model(encoder, variant, fraction)
                    row = [encoder, words(variant), f"{fraction:.0%}", *self._headline(model)]
                    rows.append(row)
        for fraction in results.fractions:
            for name, predictions in self._references[fraction].items():
                sampled = self.resampling.metrics([predictions])
                estimates = [sampled.estimate(metric) for metric in HEADLINES]
                rows.append([name, NOTHING, f"{fraction:.0%}", *estimates])
        return Table(
            "label_fractions",
            "Fewer labels",
            "Share of the training patients whose labels and ages stage two uses. "
            + self._explain(),
            ["Encoder", "Variant", "Labels", *(NAMES[name] for name in HEADLINES)],
            rows,
        )

    def reference(self, name: str) -> Predictions:
        """The predictions of a baseline that was fitted on all labels."""
        return self._references[self.results.top_fraction][name]

    def _explain(self) -> str:
        results = self.results
        patients = len(set(results.models[0].predictions[0].patient))
        alone = " (baselines: patients alone)" * (results.seeds > 1)
        return (
            f"{self._spread()}{alone}, on {len(results.images):,} images of {patients:,} test "
            "patients."
            + " Recall, precision, F1 and ROC AUC are means over conditions."
            * bool(results.classes)
            + self._given()
        )

    def intervals(self) -> str:
        """What the numbers of a model are, in sentences."""
        return f"{self._spread()}.{self._given()}"

    def _spread(self) -> str:
        seeds = self.results.seeds
        if seeds == 1:
            return "One seed; in brackets the 95 % interval over patients alone (bootstrap)"
        fewer = min(len(model.predictions) for model in self.results.models) < seeds
        return (
            f"Mean ± standard deviation over {'up to ' * fewer}{seeds} seeds (n − 1); in brackets "
            "the 95 % interval over patients and seeds (bootstrap)"
        )

    def _frozen_seeds(self) -> str:
        """The number of seeds of frozen encoders, in words, where it is another one."""
        seeds = max(len(model.predictions) for model in self.results.frozen)
        if seeds == self.results.seeds:
            return ""
        if seeds == 1:
            return " Frozen: one seed of stage one, and intervals over patients alone."
        return f" Frozen: {seeds} seeds of stage one, each with another encoder."

    def _identical(self) -> str:
        """The variants that were not run because they are identical on this data."""
        return "".join(
            f" No training image has an age: “{words(name)}” is identical to “{words(other)}” and "
            "was not run."
            for name, other in self.results.same_as.items()
        )

    def _given(self) -> str:
        """The condition of intervals and tests, in words."""
        results = self.results
        text = ""
        if self._groups:
            text = (
                " Seeds share runs of stage one and are resampled within each: intervals and tests "
                "are about these runs of stage one, and say little about others."
            )
        if min(results.fractions) < 1:
            runs = [run for model in results.models for run in model.runs]
            if len({run.settings["data"]["label_seed"] for run in runs}) > 1:
                text += (
                    " The patients who keep their labels are drawn anew for each seed, the same "
                    "for all models; baselines use the first draw."
                )
            else:
                text += " The patients who keep their labels are one draw, the same for all models."
        return text


def _stages_one(results: Results) -> dict[int, int]:
    """The stage one that each seed starts from, `{seed: number}`; empty where no two share one.

    All variants use them in the same order.
    """
    folder = {}
    for model in results.models:
        for run in model.runs:
            if run.settings["pretrained"]:
                folder[run.seed] = os.path.basename(run.settings["pretrained"])
    names = sorted(set(folder.values()))
    shared = len(names) < len(folder)
    return {seed: names.index(name) for seed, name in folder.items()} if shared else {}


def _paper_row(accuracy: float) -> list[Any]:
    return [f"{accuracy:.4f}", *[NOTHING] * (len(HEADLINES) - 1)]


def words(name: str) -> str:
    """The name of a variant in words."""
    return name.replace("_", " ").replace("apn", "APN")


def _common_seeds(one: Model, other: Model) -> list[int]:
    theirs = {run.seed for run in other.runs}
    return [run.seed for run in one.runs if run.seed in theirs]
