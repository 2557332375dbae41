"""The tables of a study: which figures of which models stand in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infantxray.evaluation.metrics import AGE_BANDS, HEADLINES, Predictions
from infantxray.studies import baselines
from infantxray.studies.results import Model, Results
from infantxray.studies.statistics import Estimate, Resampling, Sampled, average, holm
from infantxray.studies.tables import NAMES, NOTHING, Difference, Table

# What the paper reports, on its own data, which is gated.
_PAPER = "the paper, on other data"
_PAPER_BEST = ("resnet50", 0.8249)
_PAPER_ABLATION = {"without_pretraining": 0.7797, "without_apn": 0.8004, "full": 0.8249}
_TESTED = ("accuracy", "f1", "roc_auc", "age_mae_months")
_CLASS_FIGURES = ("recall", "precision", "f1", "roc_auc")
_FEW_PATIENTS = 10


class Comparisons:
    """Computes tables; figures of a model are resampled once.

    Args:
      results: of the study.
      references: answers of the baselines, `{label_fraction: {name: Predictions}}`.
      samples: bootstrap samples.
      seed: of the resampling.
    """

    def __init__(self, results: Results, references: dict, samples: int, seed: int):
        self.results = results
        self._references = references
        self._resampling = Resampling(
            results.models[0].runs[0].patient, results.seeds, samples, seed
        )
        self._done: dict[int, Sampled] = {}

    def sampled(self, model: Model) -> Sampled:
        if id(model) not in self._done:
            self._done[id(model)] = self._resampling.figures(model.runs)
        return self._done[id(model)]

    def reference_estimate(self, name: str, figure: str) -> Estimate:
        """A figure of a baseline that was fitted on all labels."""
        return self._resampling.figures([self._reference(name)]).estimate(figure)

    def _headline(self, model: Model | None) -> list:
        if model is None:
            return [NOTHING] * len(HEADLINES)
        sampled = self.sampled(model)
        return [sampled.estimate(name) for name in HEADLINES]

    def _baseline_rows(self, lead: int) -> list[list]:
        """A row a baseline, behind `lead` columns of text."""
        rows = []
        for name, answers in self._references[self.results.top_fraction].items():
            sampled = self._resampling.figures([answers])
            blank = [NOTHING] * (lead - 1)
            rows.append([name, *blank, *(sampled.estimate(figure) for figure in HEADLINES)])
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
            f"Variant “{results.reference}”. {self._explain()} The paper's best encoder stands "
            "below: its data is another one, so the two cannot be compared.",
            ["Encoder", *(NAMES[name] for name in HEADLINES)],
            rows,
            frozenset([len(rows) - 1]),
        )

    def ablation(self) -> Table:
        """Table 2 of the paper."""
        results = self.results
        rows = [
            [_words(variant), encoder, *self._headline(results.model(encoder, variant))]
            for encoder in results.encoders
            for variant in results.variants
        ]
        rows += self._baseline_rows(2)
        first = len(rows)
        rows += [
            [_words(variant), f"{_PAPER_BEST[0]}: {_PAPER}", *_paper_row(accuracy)]
            for variant, accuracy in _PAPER_ABLATION.items()
            if variant in results.variants
        ]
        return Table(
            "table2_ablation",
            "Table 2: what each part adds",
            self._explain(),
            ["Variant", "Encoder", *(NAMES[name] for name in HEADLINES)],
            rows,
            frozenset(range(first, len(rows))),
        )

    def differences(self) -> Table | None:
        """Paired differences between the reference and the other variants; None for one."""
        results = self.results
        others = [name for name in results.variants if name != results.reference]
        pairs: list[tuple[str, str, Sampled]] = []
        for other in others:
            found = []
            for encoder in results.encoders:
                ours = results.model(encoder, results.reference)
                theirs = results.model(encoder, other)
                paired = ours and theirs and _same_seeds(ours, theirs)
                if paired:
                    found.append(self.sampled(ours) - self.sampled(theirs))
                    pairs.append((other, encoder, found[-1]))
            if len(found) > 1 and len({len(part.observed["accuracy"]) for part in found}) == 1:
                pairs.append((other, "mean of all encoders", average(found)))
        if not pairs:
            return None
        estimates = [[sampled.estimate(name) for name in _TESTED] for _, _, sampled in pairs]
        corrected = holm([e.p for row in estimates for e in row]).reshape(len(pairs), -1)
        tests = int(np.isfinite(corrected).sum())
        rows = [
            [f"{results.reference} − {_words(other)}", encoder]
            + [Difference(e, float(p)) for e, p in zip(row, adjusted, strict=True)]
            for (other, encoder, _), row, adjusted in zip(pairs, estimates, corrected, strict=True)
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
            f"correction for the {tests} tests of this table. Bold: p < .05 after correction. "
            "For the age error, negative is better.",
            ["Difference", "Encoder", *(NAMES[name] for name in _TESTED)],
            rows,
        )

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
                model = results.model(encoder, variant)
                if model:
                    rows.append([encoder, f"fine-tuned, {_words(variant)}", *self._headline(model)])
        rows += self._baseline_rows(2)
        return Table(
            "frozen_features",
            "What the encoders know before fine-tuning",
            "Frozen: a linear classifier and ridge regression, or the 20 nearest neighbours, on "
            f"the encoder's pooled last map. {self._explain()}",
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
                    row = [encoder, _words(variant), f"{fraction:.0%}", *self._headline(model)]
                    rows.append(row)
        for fraction in results.fractions:
            for name, answers in self._references[fraction].items():
                sampled = self._resampling.figures([answers])
                figures = [sampled.estimate(figure) for figure in HEADLINES]
                rows.append([name, NOTHING, f"{fraction:.0%}", *figures])
        return Table(
            "label_fractions",
            "Fewer labels",
            "Share of the training patients whose labels and ages stage two may use. "
            + self._explain(),
            ["Encoder", "Variant", "Labels", *(NAMES[name] for name in HEADLINES)],
            rows,
        )

    def classes(self, model: Model) -> Table | None:
        """Every condition, of one model."""
        if not self.results.classes:
            return None
        sampled = self.sampled(model)
        ridge = self._resampling.figures([self._reference(baselines.RIDGE)])
        label, patient = model.runs[0].label, model.runs[0].patient
        rows = []
        for k, name in enumerate(self.results.classes):
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
            f"{model.encoder}, {_words(model.name)}. “Few”: fewer than {_FEW_PATIENTS} test "
            "patients; such a row says next to nothing. The last column is ridge on pixels.",
            [
                "Condition",
                "Films",
                "Patients",
                *(NAMES[name] for name in _CLASS_FIGURES),
                "ROC AUC of ridge",
            ],
            rows,
        )

    def age_bands(self, model: Model) -> Table:
        """The headline figures by age."""
        ages = self.results.films.age_months
        groups = [(name, (ages >= low) & (ages < high)) for name, low, high in AGE_BANDS]
        groups.append(("unknown", ~np.isfinite(ages)))
        return self._groups("age_bands", "By age", "Age", groups, model)

    def sites(self, model: Model) -> Table | None:
        """The headline figures by site and by source; None where there is one of each."""
        films = self.results.films
        groups = []
        for column in (films.source, films.site):
            names = sorted(set(column))
            if len(names) > 1:
                groups += [(name or "unknown site", column == name) for name in names]
        return self._groups("sites", "By site", "Site", groups, model) if groups else None

    def _groups(self, name, title, column, groups: Sequence[tuple], model: Model) -> Table:
        majority, ridge = (self._reference(n) for n in (baselines.MAJORITY, baselines.RIDGE))
        rows = []
        for group, mask in groups:
            here = np.flatnonzero(mask)
            if not len(here):
                continue
            runs = [run.take(here) for run in model.runs]
            sampled = self._resampling.figures(runs)
            patients = len(set(runs[0].patient))
            few = " (few)" if patients < _FEW_PATIENTS else ""
            rows.append([group, len(here), f"{patients}{few}"])
            rows[-1] += [sampled.estimate(figure) for figure in _TESTED]
            rows[-1] += [
                self._resampling.figures([other.take(here)]).estimate(figure)
                for figure in ("accuracy", "age_mae_months")
                for other in (majority, ridge)
            ]
        return Table(
            name,
            title,
            f"{model.encoder}, {_words(model.name)}; beside it the accuracy of the most frequent "
            "class and of ridge on pixels, and their errors of age. Macro figures are over the "
            f"conditions that occur in a row. “Few”: fewer than {_FEW_PATIENTS} test patients.",
            [
                column, "Films", "Patients", *(NAMES[figure] for figure in _TESTED),
                "Accuracy, majority", "Accuracy, ridge", "Age MAE, mean age (months)",
                "Age MAE, ridge (months)",
            ],
            rows,
        )  # fmt: skip

    def _reference(self, name: str) -> Predictions:
        return self._references[self.results.top_fraction][name]

    def _explain(self) -> str:
        results = self.results
        patients = len(set(results.models[0].runs[0].patient))
        spread = (
            f"Mean ± standard deviation over {results.seeds} seeds (n − 1)"
            if results.seeds > 1
            else "One seed"
        )
        over = "patients and seeds" if results.seeds > 1 else "patients alone"
        return (
            f"{spread}; in brackets the 95 % interval over {over} (bootstrap), on "
            f"{len(results.films):,} films of {patients:,} test patients. Recall, precision, F1 "
            "and ROC AUC are means over conditions."
        )


def _paper_row(accuracy: float) -> list:
    return [f"{accuracy:.4f}", *[NOTHING] * (len(HEADLINES) - 1)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _same_seeds(one: Model, other: Model) -> bool:
    return [cell.seed for cell in one.cells] == [cell.seed for cell in other.cells]
