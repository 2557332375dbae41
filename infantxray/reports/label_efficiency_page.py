"""What compared probes come to: tables, figures and a page."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from infantxray.evaluation.intervals import Resampling, Sampled, holm
from infantxray.evaluation.metrics import Predictions
from infantxray.reports import study_figures as figures
from infantxray.reports import study_page as page
from infantxray.reports.tables import NAMES, Difference, Table
from infantxray.runs import workdir

_log = logging.getLogger(__name__)

_AGE = "age_mae_months"
_FIGURES = ("accuracy", "f1", "roc_auc", _AGE)
_PICTURES = ("roc_auc", _AGE)  # Of those, each against the share of labels.
_SIGNIFICANT = 0.05

# `{(other encoder, label fraction, figure): the reference less it}`
_Compared = dict[tuple[str, float, str], Difference]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Who keeps a label or an age.

    Attributes:
      fraction: of the training patients.
      number: of the draw, `data.label_seed`.
      rows: their images with a known condition or age, of the training part.
    """

    fraction: float
    number: int
    rows: np.ndarray


def write(
    config,
    folder: str,
    encoders: Mapping[str, Sequence[str]],
    draws: Sequence[Draw],
    answers: Mapping[str, Sequence[Predictions]],
) -> None:
    """Writes `draws.csv`, `tables/`, `figures/`, `report.html` and `metrics.json`.

    Args:
      config: of the comparison.
      folder: its workdir.
      encoders: by name, where each stage one is that takes its turn.
      draws: of the labelled patients.
      answers: of each encoder for the test images, one a draw; the last encoder is compared with the
        others.
    """
    fractions = sorted({draw.fraction for draw in draws})
    turns = max(map(len, encoders.values()))
    like = next(iter(answers.values()))[0]
    resampling = Resampling(like.patient, config.draws, config.bootstrap_samples, config.seed)
    sampled: dict[str, dict[float, Sampled]] = {}
    for name, runs in answers.items():
        sampled[name] = {}
        for fraction in fractions:
            chosen = [i for i, draw in enumerate(draws) if draw.fraction == fraction]
            # Draws with the same stage one form a group.
            groups = [draws[i].number % turns for i in chosen] if turns > 1 else ()
            sampled[name][fraction] = resampling.figures([runs[i] for i in chosen], groups)
    _write_draws(os.path.join(folder, "draws.csv"), encoders, draws, sampled)
    shown = [
        figure
        for figure in _FIGURES
        if any(
            np.isfinite(values.observed[figure]).all()
            for found in sampled.values()
            for values in found.values()
        )
    ]
    patients = len(set(like.patient))
    reference = list(encoders)[-1]
    compared = _compare(sampled, shown, reference)
    scores = _scores(sampled, shown, patients, turns, config.draws)
    differences = _differences(compared, shown, reference)
    for table in (scores, differences):
        if table:
            table.write(os.path.join(folder, "tables"))
            _log.info("%s", table.markdown())
    path = os.path.join(folder, "report.html")
    page.write(
        path,
        title=f"Label efficiency of {len(encoders)} frozen encoder{'s' * (len(encoders) > 1)}",
        subtitle=f"Scored on {len(like.label):,} images of {patients:,} patients whom no encoder "
        f"and no probe was trained on · {config.data.train}",
        short=_short(sampled, compared, shown, reference),
        failed={},
        parts=[
            *_pictures(os.path.join(folder, "figures"), sampled, shown),
            scores,
            differences,
        ],
        cells=(),
        config=json.loads(config.to_json_best_effort()),
    )
    figures_of = {
        name: {
            f"{fraction:g}": {
                figure: {
                    key: value
                    for key, value in dataclasses.asdict(found[fraction].estimate(figure)).items()
                    if key != "p" and np.isfinite(value)
                }
                for figure in shown
            }
            for fraction in fractions
        }
        for name, found in sampled.items()
    }
    workdir.write_json(os.path.join(folder, "metrics.json"), figures_of)
    _log.info("report: %s", path)


def _pictures(folder: str, sampled, shown: Sequence[str]) -> list[page.Picture]:
    os.makedirs(folder, exist_ok=True)
    pictures = []
    for figure in _PICTURES:
        if figure not in shown:
            continue
        lines = {
            name: [(fraction, values.estimate(figure)) for fraction, values in found.items()]
            for name, found in sampled.items()
        }
        name = "label_efficiency" if figure == "roc_auc" else "label_efficiency_age"
        draw = functools.partial(figures.by_labels, lines, figure)
        pictures.append(
            page.Picture(
                f"{NAMES[figure]} by share of labels",
                "A linear probe on the frozen encoder's pooled last map: mean over draws of the "
                "labelled patients, with 95 % intervals.",
                *figures.save(folder, name, draw),
            )
        )
    return pictures


def _scores(sampled, shown: Sequence[str], patients: int, turns: int, draws: int) -> Table:
    rows = [
        [name, f"{fraction:.0%}", *(values.estimate(figure) for figure in shown)]
        for name, found in sampled.items()
        for fraction, values in found.items()
    ]
    methods = ["multinomial logistic regression for conditions"] * ("roc_auc" in shown)
    methods += ["ridge regression, its penalty cross-validated, for ages"] * (_AGE in shown)
    means = " F1 and ROC AUC are means over conditions." if "roc_auc" in shown else ""
    caption = (
        f"Frozen encoders: {' and '.join(methods)} on the pooled last map, fitted on the images "
        f"that keep what is known of them. Mean ± standard deviation over {draws} draws of the "
        "patients who keep it (one draw where all do), the same for all encoders; in brackets the "
        f"95 % interval over {patients:,} test patients and draws.{means}"
    )
    if turns > 1:
        caption += f" Draws take turns with up to {turns} stages one of an encoder, given as is."
    header = ["Encoder", "Labels", *(NAMES[name] for name in shown)]
    return Table("label_efficiency", "Linear probes", caption, header, rows)


def _compare(sampled, shown: Sequence[str], reference: str) -> _Compared:
    """The reference less each of the others, draw by draw, corrected for all tests of these."""
    pairs = {
        (other, fraction): sampled[reference][fraction] - values
        for other, found in sampled.items()
        if other != reference
        for fraction, values in found.items()
    }
    estimates = {
        (*pair, figure): difference.estimate(figure)
        for pair, difference in pairs.items()
        for figure in shown
    }
    corrected = holm([estimate.p for estimate in estimates.values()])
    return {
        key: Difference(estimate, float(p))
        for (key, estimate), p in zip(estimates.items(), corrected, strict=True)
    }


def _differences(compared: _Compared, shown: Sequence[str], reference: str) -> Table | None:
    """All of `_compare`; None for one encoder."""
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
        "Bold: p < .05. A better probe is a better frozen representation; fine-tuning may need "
        "less of it." + " For the age error, negative is better." * (_AGE in shown),
        ["Difference", "Labels", *(NAMES[name] for name in shown)],
        [
            [
                f"{reference} − {other}",
                f"{fraction:.0%}",
                *(compared[other, fraction, figure] for figure in shown),
            ]
            for other, fraction in pairs
        ],
    )


def _short(sampled, compared: _Compared, shown: Sequence[str], reference: str) -> list[str]:
    """What came out: who is first in each figure at each share of labels, and what is certain."""
    sentences = []
    for figure in _PICTURES:
        if figure not in shown:
            continue
        sign, unit = (-1, " months") if figure == _AGE else (1, "")
        for fraction in next(iter(sampled.values())):
            means = {name: found[fraction].estimate(figure).mean for name, found in sampled.items()}
            means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
            if not means:
                continue
            first = max(means, key=lambda name: sign * means[name])
            value = f"{means[first]:.1f}" if figure == _AGE else f"{means[first]:.3f}"
            best = "the lowest age error" if figure == _AGE else f"the highest {NAMES[figure]}"
            text = f"{fraction:.0%} of the labels: {first} has {best} ({value}{unit})."
            groups: dict[str, list[str]] = {}
            for other in means:
                if other == reference or reference not in means:
                    continue
                difference = compared[other, fraction, figure]
                better = sign * difference.estimate.mean > 0
                certain = difference.p_holm < _SIGNIFICANT
                verdict = "is better than" if better else "is worse than"
                groups.setdefault(verdict if certain else "cannot be told from", []).append(other)
            if groups:
                parts = [f"{verdict} {_listed(names)}" for verdict, names in groups.items()]
                text += f" {reference} {_listed(parts)} (after correction)."
            sentences.append(text)
    return sentences


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def _write_draws(path: str, encoders, draws: Sequence[Draw], sampled) -> None:
    """A row a probe."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["encoder", "place", "label_fraction", "draw", "images", *_FIGURES])
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
                        *(_number(observed[figure][at]) for figure in _FIGURES),
                    ]
                )


def _number(value: float) -> str:
    return f"{value:.6f}" if np.isfinite(value) else ""
