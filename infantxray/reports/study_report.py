"""Report of a study: from its finished runs to tables, figures and a page."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from data_pipeline.dataset import DataSettings
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.manifest import SPLITS
from infantxray.evaluation.metrics import HEADLINES
from infantxray.reports import study_page as page
from infantxray.reports.drawing import Drawing, history
from infantxray.reports.tables import NAMES, Table, number, p_text
from infantxray.runs.settings import HIGHER_IS_BETTER
from infantxray.studies import strata
from infantxray.studies.baselines import MAJORITY, RIDGE, baselines
from infantxray.studies.comparisons import Comparisons
from infantxray.studies.plan import Plan
from infantxray.studies.results import Model, Results, read_results
from infantxray.training.writers import EventFileWriter

_MISTAKES = 12
_MISTAKE_SIDE = 224


def write(
    folder: str,
    plan: Plan,
    failed: dict[int, str],
    *,
    data: DataSettings,
    best_metric: str,
    bootstrap_samples: int,
    seed: int,
    settings: dict,
) -> str:
    """Writes `report.html`, `tables/`, `figures/` and TensorBoard's hparams.

    Args:
      folder: workdir of the study.
      plan: its runs.
      failed: why runs failed, by their number.
      data: settings of the data.
      best_metric: that checkpoints are chosen by.
      bootstrap_samples: of the intervals.
      seed: of the resampling.
      settings: all of the study, nested, for the page.

    Returns:
      The path of the page.

    Raises:
      UserError: nothing is there to report.
    """
    results = read_results(plan, data.patient_ids)
    like = results.models[0].predictions[0]
    references = {
        fraction: baselines(
            data,
            split,
            like,
            results.images,
            os.path.join(folder, "baselines", f"fraction{fraction:g}.npz"),
        )
        for fraction, split in results.splits.items()
    }
    comparisons = Comparisons(results, references, bootstrap_samples, seed)
    focus = _focus(results, best_metric)
    tables = {
        "encoders": comparisons.encoders(),
        "ablation": comparisons.ablation(),
        "differences": comparisons.differences(),
        "fractions": comparisons.label_fractions(),
        "frozen": comparisons.frozen(),
        "conditions": strata.classes(comparisons, focus),
        "age_bands": strata.age_bands(comparisons, focus),
        "sites": strata.sites(comparisons, focus),
        "saliency": strata.saliency(comparisons),
    }
    for table in tables.values():
        if table is not None:
            table.write(os.path.join(folder, "tables"))
    drawn = Drawing(os.path.join(folder, "figures"), comparisons, references, focus)
    path = os.path.join(folder, "report.html")
    page.write(
        path,
        title=_title(results),
        subtitle=_subtitle(results),
        short=_short(comparisons, tables["differences"], references, focus),
        failed=failed,
        parts=[
            _data_table(results, data.patient_ids),
            tables["encoders"],
            drawn.performance(),
            tables["ablation"],
            drawn.ablation(),
            tables["differences"],
            tables["fractions"],
            drawn.label_fractions(),
            tables["frozen"],
            drawn.curves(),
            drawn.curves_by_encoder(),
            drawn.confusion(),
            tables["conditions"],
            tables["age_bands"],
            tables["sites"],
            drawn.ages(),
            drawn.reliability(),
            drawn.learning(plan.runs, best_metric),
            *drawn.reconstructions(plan.runs),
            *drawn.saliency(),
            tables["saliency"],
            _mistakes(results, focus, data),
        ],
        cells=plan.runs,
        config=settings,
    )
    _write_hparams(folder, results)
    return path


def _focus(results: Results, best_metric: str) -> Model:
    """The encoder that details are shown of: the best on validation patients, not on the test."""
    name = f"validation/{best_metric}"
    sign = 1 if best_metric in HIGHER_IS_BETTER else -1

    def score(model: Model) -> float:
        values = [[row[name] for row in history(run) if row.get(name) is not None]
                  for run in model.runs]  # fmt: skip
        return float(np.mean([max((sign * v for v in found), default=-np.inf) for found in values]))

    candidates = [results.model(encoder, results.reference) for encoder in results.encoders]
    return max((model for model in candidates if model), key=score, default=results.models[0])


def _title(results: Results) -> str:
    encoders = len(results.encoders)
    return (
        f"{encoders} encoder{'s' * (encoders > 1)}, {len(results.variants)} variants, "
        f"{results.seeds} seed{'s' * (results.seeds > 1)}"
    )


def _subtitle(results: Results) -> str:
    images = results.images
    sources = ", ".join(dict.fromkeys(images.source))
    return (
        f"Scored on {len(images):,} images of {len(set(images.patient)):,} patients whom no model was trained on · {sources} · data fingerprint "
        f"{_fingerprint(results)}"
    )


def _fingerprint(results: Results) -> str:
    """Of every image's name, patient, label, age and role: equal data, equal splits."""
    digest = hashlib.sha256()
    split = results.splits[results.top_fraction]
    for name in SPLITS:
        records = split[name]
        rows = zip(
            records.image_path,
            records.patient_id,
            records.label,
            records.age_months,
            strict=True,
        )
        for row in sorted(f"{name}\t{p}\t{i}\t{k}\t{age:.6g}\n" for p, i, k, age in rows):
            digest.update(row.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _short(comparisons, differences: Table | None, references, focus: Model) -> list[str]:
    """What came out, in sentences."""
    results = comparisons.results
    name = "roc_auc" if results.classes else "age_mae_months"
    estimate = comparisons.sampled(focus).estimate(name)
    sentences = [
        f"Best on validation patients: {focus.encoder}, with {NAMES[name]} "
        f"{number(estimate.mean, NAMES[name])} [{number(estimate.low, NAMES[name])}, "
        f"{number(estimate.high, NAMES[name])}] on test patients."
    ]
    ridge = comparisons.reference_estimate(RIDGE, name)
    majority = comparisons.reference_estimate(MAJORITY, name)
    sentences.append(
        f"For comparison: {RIDGE} {number(ridge.mean, NAMES[name])}; {MAJORITY} "
        f"{number(majority.mean, NAMES[name])}."
    )
    if differences is not None:
        at = differences.header.index(NAMES[name])
        # Of each variant and share of the labels: the mean of all encoders, if any.
        labels = differences.header.index("Labels") if "Labels" in differences.header else 0
        last = {(row[0], row[labels]): row for row in differences.rows}
        for row in last.values():
            cell = row[at]
            if not np.isfinite(cell.estimate.mean):
                continue
            found = "a difference" if cell.p_holm < 0.05 else "no difference was shown"
            ends = (cell.estimate.low, cell.estimate.high)
            low, high = (number(value, NAMES[name], True) for value in ends)
            sentences.append(
                f"{row[0]} ({row[1]}{f', {row[labels]} of the labels' if labels else ''}): "
                f"{NAMES[name]} "
                f"{number(cell.estimate.mean, NAMES[name], True)} [{low}, {high}], "
                f"{p_text(cell.p_holm)} after correction: {found}."
            )
    return sentences


def _data_table(results: Results, patient_ids: str) -> Table:
    split = results.splits[results.top_fraction]
    rows = []
    for name in SPLITS:
        records = split[name]
        ages = records.age_months[records.has_age]
        spread = "unknown"
        if len(ages):
            low, middle, high = np.percentile(ages, [25, 50, 75])
            spread = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        rows.append(
            [
                name,
                len(records),
                len(set(records.with_patients(patient_ids).patient)),
                int(records.has_label.sum()),
                len(set(records.label[records.has_label])),
                spread,
            ]
        )
    return Table(
        "data",
        "Data",
        "Images of stage two by role; patients are divided, never images. Ages in months: median "
        "and quartiles. Stage one sees the training images and others, without labels.",
        ["Role", "Images", "Patients", "With label", "Conditions", "Age, months"],
        rows,
    )


def _mistakes(results: Results, focus: Model, settings) -> page.Images | None:
    """The images that the model is surest and wrong about, mean over seeds."""
    if not results.classes:
        return None
    probabilities = np.mean([part.probabilities for part in focus.predictions], axis=0)
    label = focus.predictions[0].label
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero((label >= 0) & (predicted != label))
    wrong = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:_MISTAKES]
    how = Preprocessing(
        image_size=_MISTAKE_SIDE, resize=settings.resize, trim_borders=settings.trim_borders
    )
    pictures = []
    for i in wrong:
        try:
            image = load_image(results.images.image_path[i], how)
        except UnreadableImage:
            continue
        age = results.images.age_months[i]
        months = f", {age:.0f} months" if np.isfinite(age) else ""
        said, truth = probabilities[i, predicted[i]], probabilities[i, label[i]]
        text = (
            f"{results.classes[label[i]]}{months}: taken for {results.classes[predicted[i]]} "
            f"({said:.0%}; the truth {truth:.0%})"
        )
        pictures.append((image, text))
    if not pictures:
        return None
    return page.Images(
        "Worst mistakes",
        f"Test images that {focus.encoder} ({focus.name}) is surest and wrong about; probabilities "
        "are means over seeds.",
        pictures,
    )


def _write_hparams(folder: str, results: Results) -> None:
    """One TensorBoard run for each, with its settings and final metrics, for the HPARAMS tab."""
    for model in results.models:
        for run in model.runs:
            where = os.path.join(folder, "hparams", f"run{run.index:04d}")
            if os.path.isdir(where):
                continue
            summary = strata.read_metrics(run)
            writer = EventFileWriter(where)  # Needs no TensorFlow, whose import takes seconds.
            writer.write_hparams(
                {
                    "encoder": run.encoder,
                    "variant": run.name,
                    "label_fraction": run.label_fraction,
                    "seed": run.seed,
                    "pretrained": bool(run.settings["pretrained"]),
                    "age_head": run.settings["age_head"],
                    "learning_rate": run.settings["optimizer"]["learning_rate"],
                    "batch_size": run.settings["batch_size"],
                    "image_size": run.settings["data"]["image_size"],
                }
            )
            scalars = {f"test/{n}": summary[n] for n in HEADLINES if summary[n] is not None}
            writer.write_scalars(summary["checkpoint_step"], scalars)
            writer.close()
