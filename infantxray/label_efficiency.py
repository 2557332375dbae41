"""How far frozen encoders get with few labels or ages, over many draws of who keeps theirs.

Which patients are labelled moves a score with few labels by more than representations differ, and
fine-tuning adds a noise of its own. A linear probe is fitted in a second, so it can be repeated on
as many draws as it takes.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Sequence

import jax
import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.loader import BadFiles
from data_pipeline.splits import Split, keep_labels
from infantxray import data, diagnosis, runtime, transfer, workdir
from infantxray.evaluation.metrics import Predictions
from infantxray.frozen import Extractor, Features, fit_linear, fit_ridge_by_patient, pooled_map
from infantxray.settings import PIXELS, RANDOM, compared_encoders
from infantxray.studies import figures, page
from infantxray.studies.statistics import Resampling, Sampled, holm
from infantxray.studies.tables import NAMES, Difference, Table

_log = logging.getLogger(__name__)

_AGE = "age_mae_months"
_FIGURES = ("accuracy", "f1", "roc_auc", _AGE)
_PICTURES = ("roc_auc", _AGE)  # Of those, each against the share of labels.
_PIXELS_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Draw:
    """Who keeps a label or an age.

    Attributes:
      fraction: of the training patients.
      number: of the draw, `data.label_seed`.
      rows: their films with a known condition or age, of the training part.
    """

    fraction: float
    number: int
    rows: np.ndarray


def draw_labels(config, split: Split, turns: int) -> list[Draw]:
    """All draws. With all labels there is one for each of the stages one that take turns."""
    draws = []
    for fraction in sorted(set(config.label_fractions)):
        for number in range(config.draws if fraction < 1 else turns):
            kept = keep_labels(
                split.train, fraction, config.data.split_seed, config.data.patient_ids, number
            )
            rows = np.flatnonzero(kept.has_label | kept.has_age)
            if len(rows) > config.train_films:
                order = np.random.default_rng([config.seed, number]).permutation(len(rows))
                rows = np.sort(rows[order[: config.train_films]])
            draws.append(Draw(fraction, number, rows))
    return draws


def run(config, folder: str) -> None:
    """Compares the encoders of `config.encoders` into the workdir `folder`."""
    runtime.setup()
    workdir.prepare(folder, config)
    done = os.path.join(folder, "metrics.json")
    if os.path.exists(done):
        _log.info("%s is finished: see report.html in it", folder)
        return
    encoders = compared_encoders(config.encoders)
    turns = max(map(len, encoders.values()))
    split = data.open_split(config.data, folder)
    classes = data.find_classes(config.data, split.train)
    if not classes and not split.train.has_age.any():
        raise DataError("no training film has a label or an age: there is nothing to probe")
    for place in {place for places in encoders.values() for place in places}:
        transfer.check_scored(_started_from(config, place), split, ("test",))
    data.check_split(config.data, split, classes)
    draws = draw_labels(config, split, turns)
    _log.info(
        "%d draws; films with a label or an age: %s",
        len(draws),
        ", ".join(
            f"{min(counts)} to {max(counts)} at {fraction:g}"
            for fraction in sorted(set(config.label_fractions))
            if (counts := [len(d.rows) for d in draws if d.fraction == fraction])
        ),
    )
    bad_files = BadFiles()
    needed = np.unique(np.concatenate([draw.rows for draw in draws]))
    # One source for all encoders: films that fit into memory are decoded once.
    sources = [
        data.film_source(
            config.data,
            records,
            classes,
            data.preprocessing(config.data),
            training=False,
            bad_files=bad_files,
        )
        for records in (split.train.take(needed), split.test)
    ]
    answers = {}
    try:
        for name, places in encoders.items():
            answers[name] = _probe(config, sources, needed, classes, places, draws)
    finally:
        diagnosis.write_bad_files(folder, bad_files)
    _report(config, folder, encoders, draws, answers)


def _started_from(config, place: str):
    """`config` for one stage one: its encoder, and where its weights are."""
    config = config.copy_and_resolve_references().unlock()
    config.pretrained = "" if place in (RANDOM, PIXELS) else place
    if config.pretrained and not place.startswith("torch:"):
        config.encoder = workdir.ModelCard.read(os.path.expanduser(place)).encoder
    return config


def _pixels(image: jax.Array, key: jax.Array) -> jax.Array:
    """`[B, S, S, 1]` -> means of 32 x 32 squares, `[B, 1024]`."""
    del key  # Nothing is random.
    batch, side = image.shape[:2]
    times = side // _PIXELS_SIDE
    x = image.reshape(batch, _PIXELS_SIDE, times, _PIXELS_SIDE, times).astype("float32")
    return x.mean(axis=(2, 4)).reshape(batch, -1)


def _features_of(config, place: str, seed: int, classes):
    """The function from images to features of one encoder."""
    if place == PIXELS:
        return _pixels
    started = _started_from(config, place)
    how = data.preprocessing(config.data)
    card = workdir.ModelCard(started.encoder, config.dtype, how, classes)
    started.seed = seed
    return pooled_map(*transfer.untrained_model(started, card))


def _probe(config, sources, needed, classes, places, draws) -> list[Predictions]:
    """The answers of one encoder for the test films, a probe a draw.

    Stages one that take turns do so by the number of the draw. `needed` are the training films of
    the first source, the second has the test films.
    """
    answers: dict[int, Predictions] = {}
    for turn, place in enumerate(places):
        extract = Extractor(config, _features_of(config, place, config.seed + turn, classes))
        fitted, scored = map(extract, sources)
        for i, draw in enumerate(draws):
            if draw.number % len(places) == turn:
                rows = np.isin(needed[fitted.rows], draw.rows)
                answers[i] = _answers(fitted, rows, scored, classes)
    return [answers[i] for i in range(len(draws))]


def _answers(fitted: Features, rows, scored: Features, classes) -> Predictions:
    """What probes answer that are fitted on the films of `rows`, a bool `[N]`.

    Conditions by logistic regression, ages by ridge regression. Where no film could be read that
    teaches them, conditions are equally likely and ages NaN.
    """
    labelled = rows & (fitted.label >= 0)
    aged = rows & fitted.records.has_age
    probabilities = np.full((len(scored.label), len(classes)), 1 / max(len(classes), 1))
    ages = np.full(len(scored.label), np.nan)
    if labelled.any():
        predict = fit_linear(fitted.values[labelled], fitted.label[labelled], len(classes))
        probabilities = predict(scored.values)
    if aged.any():
        known = fitted.records.age_months[aged][:, None].astype(np.float64)
        predict = fit_ridge_by_patient(fitted.values[aged], known, fitted.patient[aged])
        ages = predict(scored.values)[:, 0]
    return Predictions(
        classes=classes,
        probabilities=probabilities,
        label=scored.label,
        age_months=scored.records.age_months,
        age_predicted_months=ages,
        patient=scored.patient,
    )


def _report(config, folder: str, encoders, draws: Sequence[Draw], answers) -> None:
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
    scores = _scores(sampled, shown, patients, turns, config.draws)
    differences = _differences(sampled, shown, reference=list(encoders)[-1])
    for table in (scores, differences):
        if table:
            table.write(os.path.join(folder, "tables"))
            _log.info("%s", table.markdown())
    path = os.path.join(folder, "report.html")
    page.write(
        path,
        title=f"Label efficiency of {len(encoders)} frozen encoder{'s' * (len(encoders) > 1)}",
        subtitle=f"Scored on {len(like.label):,} films of {patients:,} patients whom no encoder "
        f"and no probe was trained on · {config.data.train}",
        short=_short(differences or scores, "roc_auc" if "roc_auc" in shown else _AGE),
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
        f"Frozen encoders: {' and '.join(methods)} on the pooled last map, fitted on the films "
        f"that keep what is known of them. Mean ± standard deviation over {draws} draws of the "
        "patients who keep it (one draw where all do), the same for all encoders; in brackets the "
        f"95 % interval over {patients:,} test patients and draws.{means}"
    )
    if turns > 1:
        caption += f" Draws take turns with up to {turns} stages one of an encoder, given as is."
    header = ["Encoder", "Labels", *(NAMES[name] for name in shown)]
    return Table("label_efficiency", "Linear probes", caption, header, rows)


def _differences(sampled, shown: Sequence[str], reference: str) -> Table | None:
    """The reference less each of the others, draw by draw; None for one encoder."""
    pairs = [
        (other, fraction, sampled[reference][fraction] - values)
        for other, found in sampled.items()
        if other != reference
        for fraction, values in found.items()
    ]
    if not pairs:
        return None
    estimates = [[difference.estimate(name) for name in shown] for *_, difference in pairs]
    p = np.array([[estimate.p for estimate in row] for row in estimates])
    corrected = holm(p.ravel()).reshape(p.shape)
    rows = [
        [f"{reference} − {other}", f"{fraction:.0%}"]
        + [Difference(e, float(q)) for e, q in zip(row, adjusted, strict=True)]
        for (other, fraction, _), row, adjusted in zip(pairs, estimates, corrected, strict=True)
    ]
    return Table(
        "differences",
        "Paired differences",
        "Same patients, same draws of labels. Each cell: the difference, its 95 % interval over "
        "patients and draws, and the p-value of no difference (t test with the standard error of "
        f"the joint bootstrap) after Holm's correction for {int(np.isfinite(p).sum())} tests. "
        "Bold: p < .05. A better probe is a better frozen representation; fine-tuning may need "
        "less of it." + " For the age error, negative is better." * (_AGE in shown),
        ["Difference", "Labels", *(NAMES[name] for name in shown)],
        rows,
    )


def _short(table: Table, figure: str) -> list[str]:
    """What came out, in sentences."""
    column = list(table.header).index(NAMES[figure])
    corrected = " after correction" * isinstance(table.rows[0][column], Difference)
    return [
        f"{row[0]}, {row[1]} of the labels: {NAMES[figure]} {table.plain(row)[column]}{corrected}."
        for row in table.rows
    ]


def _write_draws(path: str, encoders, draws: Sequence[Draw], sampled) -> None:
    """A row a probe."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["encoder", "place", "label_fraction", "draw", "films", *_FIGURES])
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
