"""Report of a study: from the predictions of its finished runs to tables, figures and a page."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.dataset import DataSettings, Reader
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.labels import names_in
from data_pipeline.manifest import SPLITS
from infantxray.evaluation.metrics import HEADLINES
from infantxray.features.baselines import MAJORITY, RIDGE, baselines
from infantxray.reports import study_sections as sections
from infantxray.reports.arms import arms
from infantxray.reports.comparisons import Comparisons
from infantxray.reports.page import Images, number, plural, setting_lines, write_page
from infantxray.reports.study_sections import Drawing, history, read_metrics
from infantxray.reports.tables import NAMES, SIGNIFICANT, Table, p_text
from infantxray.runs.settings import HIGHER_IS_BETTER
from infantxray.studies import commands
from infantxray.studies.plan import Plan, Run
from infantxray.studies.results import Model, Results, read_results
from infantxray.training.writers import EventFileWriter

_MISTAKES = 12
_SIDE = 224  # Of their pictures.


def write(
    folder: str,
    plan: Plan,
    failed: Mapping[int, str],
    *,
    data: DataSettings,
    best_metric: str,
    bootstrap_samples: int,
    seed: int,
    settings: Mapping[str, Any],
) -> str:
    """Writes `report.html`, `tables/`, `figures/` and TensorBoard's hparams.

    Args:
      folder: the workdir of the study.
      plan: its runs.
      failed: why runs failed, by their number.
      data: how images are read.
      best_metric: the validation metric that chooses the encoder with details.
      bootstrap_samples: of the intervals.
      seed: seed of the resampling.
      settings: settings of the study, for the page.

    Returns:
      The path of the page.

    Raises:
      UserError: no stage two is finished.
    """
    results = read_results(plan, data.patient_ids)
    like = results.models[0].predictions[0]
    reader = Reader(data)
    references = {
        fraction: baselines(
            data,
            split,
            like,
            results.images,
            reader,
            os.path.join(folder, "baselines", f"fraction{fraction:g}.npz"),
        )
        for fraction, split in results.splits.items()
    }
    comparisons = Comparisons(results, references, bootstrap_samples, seed)
    focus = _focus(results, best_metric)
    differences = comparisons.differences()
    drawn = Drawing(os.path.join(folder, "figures"), comparisons, focus)
    parts = [
        _data_table(results, data.patient_ids, read_metrics(focus.runs[0]).get("label_notes", ())),
        arms(results, plan.runs, best_metric),
        comparisons.encoders(),
        drawn.performance(),
        comparisons.ablation(),
        drawn.ablation(),
        differences,
        comparisons.label_fractions(),
        drawn.label_fractions(),
        comparisons.frozen(),
        drawn.curves(),
        drawn.curves_by_encoder(),
        drawn.confusion(),
        sections.classes(comparisons, focus),
        sections.age_bands(comparisons, focus),
        sections.sites(comparisons, focus),
        drawn.ages(),
        drawn.reliability(),
        drawn.learning(plan.runs, best_metric),
        *drawn.reconstructions(plan.runs),
        *drawn.saliency(),
        sections.saliency(comparisons),
        _mistakes(results, focus, dataclasses.replace(data.preprocessing, image_size=_SIDE)),
    ]
    for part in parts:
        if isinstance(part, Table) and part.name != "data":
            part.write(os.path.join(folder, "tables"))
    path = os.path.join(folder, "report.html")
    write_study_page(
        path,
        title=f"{plural(len(results.encoders), 'encoder')}, "
        f"{plural(len(results.variants), 'variant')}, {plural(results.seeds, 'seed')}",
        subtitle=_subtitle(results),
        sentences=_short(comparisons, differences, focus),
        failed=failed,
        parts=parts,
        runs=plan.runs,
        settings=settings,
    )
    _write_hparams(folder, results)
    return path


def write_study_page(
    path: str,
    *,
    title: str,
    subtitle: str,
    sentences: Sequence[str],
    failed: Mapping[int, str],
    parts: Sequence[Any],
    runs: Sequence[Run],
    settings: Mapping[str, Any],
) -> None:
    """Fills the page of a study.

    Args:
      path: path of the page.
      title: its heading.
      subtitle: subtitle of the page.
      sentences: the results.
      failed: why runs failed, by their number.
      parts: tables, figures and images in order; None is left out.
      runs: all that were planned.
      settings: settings of the study.
    """
    seconds = [run.read_record().get("seconds") for run in runs]
    write_page(
        path,
        "study",
        title=title,
        subtitle=subtitle,
        sentences=sentences,
        failed=[
            {"number": index, "title": runs[index].title, "reason": why}
            for index, why in sorted(failed.items())
        ],
        parts=[part.filled() if isinstance(part, Table) else part for part in parts if part],
        runs=[
            {
                "number": run.index,
                "title": run.title,
                "seconds": "–" if took is None else f"{took:,.0f}",
                "command": commands.printed(run.command),
            }
            for run, took in zip(runs, seconds, strict=True)
        ],
        minutes=round(sum(took or 0.0 for took in seconds) / 60),
        settings=setting_lines(dict(settings)),
    )


def _focus(results: Results, best_metric: str) -> Model:
    """The encoder with details in the report: the best on validation patients, not on the test."""
    name = f"validation/{best_metric}"
    sign = 1 if best_metric in HIGHER_IS_BETTER else -1

    def score(model: Model) -> float:
        values = [
            [sign * row[name] for row in history(run) if row.get(name) is not None]
            for run in model.runs
        ]
        return float(np.mean([max(found, default=-np.inf) for found in values]))

    candidates = [results.model(encoder, results.reference) for encoder in results.encoders]
    return max((model for model in candidates if model), key=score, default=results.models[0])


def _subtitle(results: Results) -> str:
    patients = len(set(results.models[0].predictions[0].patient))
    sources = ", ".join(dict.fromkeys(results.images.source))
    return (
        f"Scored on {plural(len(results.images), 'image')} of {plural(patients, 'patient')} whom "
        f"no model was trained on · {sources} · data fingerprint {_fingerprint(results)}"
    )


def _fingerprint(results: Results) -> str:
    """Of every image's name, patient, label, age and role: equal data, equal splits."""
    digest = hashlib.sha256()
    split = results.splits[results.top_fraction]
    for name in SPLITS:
        r = split[name]
        rows = zip(r.image_path, r.patient_id, r.label, r.age_months, strict=True)
        for row in sorted(f"{name}\t{p}\t{i}\t{k}\t{age:.6g}\n" for p, i, k, age in rows):
            digest.update(row.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _short(comparisons: Comparisons, differences: Table | None, focus: Model) -> list[str]:
    """The results, in sentences."""
    name = "roc_auc" if comparisons.results.classes else "age_mae_months"
    title = NAMES[name]

    def text(value: float, sign: bool = False) -> str:
        return number(value, name, sign)

    found = comparisons.sampled(focus).estimate(name)
    floors = [
        f"{label} {text(comparisons.reference_estimate(label, name).mean)}"
        for label in (RIDGE, MAJORITY)
    ]
    sentences = [
        f"Best on validation patients: {focus.encoder}, with {title} {text(found.mean)} "
        f"[{text(found.low)}, {text(found.high)}] on test patients.",
        f"Baselines: {'; '.join(floors)}.",
    ]
    if differences is None:
        return sentences
    at = differences.header.index(title)
    # Of each variant and share of the labels: the mean of all encoders, if any.
    labels = differences.header.index("Labels") if "Labels" in differences.header else 0
    for row in {(row[0], row[labels]): row for row in differences.rows}.values():
        e, p = row[at].estimate, row[at].p_holm
        if not np.isfinite(e.mean):
            continue
        verdict = "a difference" if p < SIGNIFICANT else "no difference was shown"
        share = f", {row[labels]} of the labels" if labels else ""
        sentences.append(
            f"{row[0]} ({row[1]}{share}): {title} {text(e.mean, True)} [{text(e.low, True)}, "
            f"{text(e.high, True)}], {p_text(p)} after correction: {verdict}."
        )
    return sentences


def _data_table(results: Results, patient_ids: str, notes: Sequence[str]) -> Table:
    split = results.splits[results.top_fraction]
    rows = []
    for name in SPLITS:
        records = split[name]
        ages = records.age_months[records.has_age]
        spread = "unknown"
        if len(ages):
            low, middle, high = np.percentile(ages, [25, 50, 75])
            spread = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        known = records.has_label
        patients = len(set(records.with_patients(patient_ids).patient))
        conditions = len(names_in(records.label[known]))
        rows.append([name, len(records), patients, int(known.sum()), conditions, spread])
    return Table(
        "data",
        "Data",
        "Images of stage two by role; patients are divided, never images. Ages in months: median "
        "and quartiles. Stage one sees the training images and others; the table of arms "
        "says whether it used labels."
        + "".join(f" {note[:1].upper()}{note[1:]}." for note in notes),
        ["Role", "Images", "Patients", "With label", "Conditions", "Age, months"],
        rows,
    )


def _mistakes(results: Results, focus: Model, preprocessing: Preprocessing) -> Images | None:
    """The surest wrong answers of a model, mean over seeds."""
    if not results.classes or focus.predictions[0].multi_label:
        return None
    probabilities = np.mean([part.probabilities for part in focus.predictions], axis=0)
    label = focus.predictions[0].label
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero((label >= 0) & (predicted != label))
    wrong = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:_MISTAKES]
    pictures = []
    for i in wrong:
        try:
            image = load_image(results.images.image_path[i], preprocessing)
        except UnreadableImage:
            continue
        age = results.images.age_months[i]
        months = f", {age:.0f} months" if np.isfinite(age) else ""
        said, truth = probabilities[i, predicted[i]], probabilities[i, label[i]]
        text = (
            f"{results.classes[label[i]]}{months}: taken for {results.classes[predicted[i]]} "
            f"({said:.0%}; the truth {truth:.0%})"
        )
        pictures.append((image, [text]))
    if not pictures:
        return None
    caption = (
        f"The surest wrong answers of {focus.encoder} ({focus.name}) on test images; probabilities "
        "are means over seeds."
    )
    return Images("Worst mistakes", caption, pictures)


def _write_hparams(folder: str, results: Results) -> None:
    """One TensorBoard run for each run, with settings and final metrics, for the HPARAMS tab."""
    # Those of an earlier report may be of other runs: a study that grows numbers its runs anew.
    shutil.rmtree(os.path.join(folder, "hparams"), ignore_errors=True)
    for model in results.models:
        for run in model.runs:
            where = os.path.join(folder, "hparams", f"run{run.index:04d}")
            summary = read_metrics(run)
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
