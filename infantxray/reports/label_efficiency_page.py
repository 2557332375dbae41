"""The page of `label_efficiency`: frozen encoders compared by linear probes, draw by draw."""

from __future__ import annotations

import csv
import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import write_json
from infantxray.evaluation.intervals import Resampling, Sampled, holm
from infantxray.evaluation.predictions import Predictions
from infantxray.reports import plots, study_plots
from infantxray.reports.page import Figure, listed, number, plural, setting_lines, write_page
from infantxray.reports.tables import NAMES, SIGNIFICANT, Difference, Table

_log = logging.getLogger(__name__)

_AGE = "age_mae_months"
_METRICS = ("accuracy", "f1", "roc_auc", _AGE)
_DRAWN = ("roc_auc", _AGE)  # Of those, each against the share of labels.

# `{(other encoder, label fraction, metric): the reference less it}`
_Compared = dict[tuple[str, float, str], Difference]
_Sampled = Mapping[str, Mapping[float, Sampled]]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which patients keep a label or an age.

    Attributes:
      fraction: of the training patients.
      number: of the draw, `data.label_seed`.
      rows: their images with a known condition or age, of the training part.
    """

    fraction: float
    number: int
    rows: np.ndarray


def write(
    folder: str,
    encoders: Mapping[str, Sequence[str]],
    draws: Sequence[Draw],
    answers: Mapping[str, Sequence[Predictions]],
    *,
    samples: int,
    seed: int,
    settings: Mapping[str, Any],
) -> None:
    """Writes `draws.csv`, `tables/`, `figures/`, `report.html` and `metrics.json`.

    Args:
      folder: the workdir of the comparison.
      encoders: by name, the workdirs of stage one that take turns.
      draws: of the labelled patients.
      answers: predictions of each encoder for the test images, one a draw; the last encoder is
        compared with the others.
      samples: bootstrap samples.
      seed: seed of the resampling.
      settings: settings of the comparison, for the page.
    """
    fractions = sorted({draw.fraction for draw in draws})
    turns = max(map(len, encoders.values()))
    num_draws = max(sum(draw.fraction == fraction for draw in draws) for fraction in fractions)
    like = next(iter(answers.values()))[0]
    resampling = Resampling(like.patient, num_draws, samples, seed)
    sampled: dict[str, dict[float, Sampled]] = {}
    for name, runs in answers.items():
        sampled[name] = {}
        for fraction in fractions:
            chosen = [i for i, draw in enumerate(draws) if draw.fraction == fraction]
            # Draws with the same stage one form a group.
            groups = [draws[i].number % turns for i in chosen] if turns > 1 else ()
            sampled[name][fraction] = resampling.metrics([runs[i] for i in chosen], groups)
    _write_draws(os.path.join(folder, "draws.csv"), encoders, draws, sampled)
    shown = [
        metric
        for metric in _METRICS
        if any(
            np.isfinite(values.observed[metric]).all()
            for found in sampled.values()
            for values in found.values()
        )
    ]
    patients = len(set(like.patient))
    reference = list(encoders)[-1]
    compared = _compare(sampled, shown, reference)
    scores = _scores(sampled, shown, patients, turns, num_draws, several=like.multi_label)
    differences = _differences(compared, shown, reference)
    tables = [table for table in (scores, differences) if table]
    for table in tables:
        table.write(os.path.join(folder, "tables"))
        _log.info("%s", table.markdown())
    path = os.path.join(folder, "report.html")
    write_page(
        path,
        "study",
        title=f"Label efficiency of {plural(len(encoders), 'frozen encoder')}",
        subtitle=f"Scored on {plural(len(like), 'image')} of {plural(patients, 'patient')} whom no "
        f"encoder and no probe was trained on · {settings['data']['train']}",
        sentences=_short(sampled, compared, shown, reference),
        failed=[],
        runs=[],
        parts=[
            *_figures(os.path.join(folder, "figures"), sampled, shown),
            *(table.filled() for table in tables),
        ],
        settings=setting_lines(dict(settings)),
    )
    metrics = {
        name: {
            f"{fraction:g}": {
                metric: {
                    key: value
                    for key, value in dataclasses.asdict(found[fraction].estimate(metric)).items()
                    if key != "p" and np.isfinite(value)
                }
                for metric in shown
            }
            for fraction in fractions
        }
        for name, found in sampled.items()
    }
    write_json(os.path.join(folder, "metrics.json"), metrics)
    _log.info("report: %s", path)


def _figures(folder: str, sampled: _Sampled, shown: Sequence[str]) -> list[Figure]:
    figures = []
    for metric in _DRAWN:
        if metric not in shown:
            continue
        lines = {
            name: [(fraction, values.estimate(metric)) for fraction, values in found.items()]
            for name, found in sampled.items()
        }
        name = "label_efficiency" if metric == "roc_auc" else "label_efficiency_age"
        paths = plots.save(
            folder, name, functools.partial(study_plots.by_labels, lines, metric), lines
        )
        caption = (
            "A linear probe on the frozen encoder's pooled last map: mean over draws of the "
            "labelled patients, with 95 % intervals."
        )
        figures.append(Figure(f"{NAMES[metric]} by share of labels", caption, *paths))
    return figures


def _scores(
    sampled: _Sampled,
    shown: Sequence[str],
    patients: int,
    turns: int,
    draws: int,
    *,
    several: bool,
) -> Table:
    rows = [
        [name, f"{fraction:.0%}", *(values.estimate(metric) for metric in shown)]
        for name, found in sampled.items()
        for fraction, values in found.items()
    ]
    noun = "findings" if several else "conditions"
    method = "logistic regression for each finding"
    if not several:
        method = "multinomial logistic regression for conditions"
    methods = [method] * ("roc_auc" in shown)
    methods += ["ridge regression, its penalty cross-validated, for ages"] * (_AGE in shown)
    means = f" F1 and ROC AUC are means over {noun}." if "roc_auc" in shown else ""
    caption = (
        f"Frozen encoders: {' and '.join(methods)} on the pooled last map, fitted on the images "
        f"that keep their labels or ages. Mean ± standard deviation over {draws} draws of the "
        f"patients who keep them ({'one probe a stage one' if turns > 1 else 'one draw'} where all "
        "do), the same for all encoders; in brackets "
        f"the 95 % interval over {patients:,} test patients and draws.{means}"
    )
    if turns > 1:
        caption += (
            f" Draws take turns with up to {turns} stage-one runs of an encoder, taken as given. "
            "With all labels the standard deviation and the interval are over these runs."
        )
    header = ["Encoder", "Labels", *(NAMES[name] for name in shown)]
    return Table("label_efficiency", "Linear probes", caption, header, rows)


def _compare(sampled: _Sampled, shown: Sequence[str], reference: str) -> _Compared:
    """The reference less each of the others, draw by draw, corrected for all tests of these."""
    pairs = {
        (other, fraction): sampled[reference][fraction] - values
        for other, found in sampled.items()
        if other != reference
        for fraction, values in found.items()
    }
    estimates = {
        (*pair, metric): difference.estimate(metric)
        for pair, difference in pairs.items()
        for metric in shown
    }
    corrected = holm([estimate.p for estimate in estimates.values()])
    return {
        key: Difference(estimate, float(p))
        for (key, estimate), p in zip(estimates.items(), corrected, strict=True)
    }


def _differences(compared: _Compared, shown: Sequence[str], reference: str) -> Table | None:
    """A row a pair of encoders and share of labels; None for one encoder."""
    if not compared:
        return None
    tests = sum(np.isfinite(difference.p_holm) for difference in compared.values())
    pairs = dict.fromkeys((other, fraction) for other, fraction, _ in compared)
    return Table(
        "differences",
        "Paired differences",
        "Same patients, same draws of labels. Each cell: the difference, its 95 % interval over "
        "patients and draws, and the p-value of no difference (t test with the standard error of "
        f"the joint bootstrap) after Holm's correction for {tests} tests. "
        "Bold: p < .05. A better probe means a better frozen representation; fine-tuning may "
        "reduce the difference." + " For the age error, negative is better." * (_AGE in shown),
        ["Difference", "Labels", *(NAMES[name] for name in shown)],
        [
            [
                f"{reference} − {other}",
                f"{fraction:.0%}",
                *(compared[other, fraction, metric] for metric in shown),
            ]
            for other, fraction in pairs
        ],
    )


def _short(
    sampled: _Sampled, compared: _Compared, shown: Sequence[str], reference: str
) -> list[str]:
    """The best encoder at each share of labels, and which differences are certain."""
    sentences = []
    for metric in _DRAWN:
        if metric not in shown:
            continue
        sign, unit = (-1, " months") if metric == _AGE else (1, "")
        for fraction in next(iter(sampled.values())):
            means = {name: found[fraction].estimate(metric).mean for name, found in sampled.items()}
            means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
            if not means:
                continue
            first = max(means, key=lambda name: sign * means[name])
            value = number(means[first], metric)
            best = "the lowest age error" if metric == _AGE else f"the highest {NAMES[metric]}"
            text = f"{fraction:.0%} of the labels: {first} has {best} ({value}{unit})."
            groups: dict[str, list[str]] = {}
            for other in means:
                if other == reference or reference not in means:
                    continue
                difference = compared[other, fraction, metric]
                better = sign * difference.estimate.mean > 0
                certain = difference.p_holm < SIGNIFICANT
                verdict = "is better than" if better else "is worse than"
                groups.setdefault(verdict if certain else "cannot be told from", []).append(other)
            if groups:
                parts = [f"{verdict} {listed(names)}" for verdict, names in groups.items()]
                text += f" {reference} {listed(parts)} (after correction)."
            sentences.append(text)
    return sentences


def _write_draws(
    path: str, encoders: Mapping[str, Sequence[str]], draws: Sequence[Draw], sampled: _Sampled
) -> None:
    """A row a probe."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["encoder", "place", "label_fraction", "draw", "images", *_METRICS])
        for name, places in encoders.items():
            seen = dict.fromkeys(sampled[name], 0)
            for draw in draws:
                at = seen[draw.fraction]
                seen[draw.fraction] += 1
                observed = sampled[name][draw.fraction].observed
                writer.writerow(
                    [
                        name,
                        places[draw.number % len(places)],
                        f"{draw.fraction:g}",
                        draw.number,
                        len(draw.rows),
                        *(_csv(observed[metric][at]) for metric in _METRICS),
                    ]
                )


def _csv(value: float) -> str:
    return f"{value:.6f}" if np.isfinite(value) else ""
