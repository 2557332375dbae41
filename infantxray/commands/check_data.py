"""Check of a data set before training: leaks, unreadable images, duplicates, shortcuts."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline import audit, conditions
from data_pipeline import dataset as data
from data_pipeline.dataset import DataSettings
from data_pipeline.decode import PHANTOM_PREFIX
from data_pipeline.doubts import doubtful_spellings
from data_pipeline.errors import DataError, UserError
from data_pipeline.labels import FindingNames, carries, names_in
from data_pipeline.manifest import NO_AGE, unused_age_columns
from data_pipeline.manifest_writing import write_manifest
from data_pipeline.records import SPLITS, Records
from data_pipeline.splits import Split
from data_pipeline.tables import write_csv
from infantxray.evaluation.shortcuts import TOGETHER, Shortcut, shortcuts
from infantxray.reports import data_page
from infantxray.reports.data_page import Problem
from infantxray.runs import settings
from infantxray.training.waiting import waiting

_log = logging.getLogger(__name__)
_OTHER = "other stage"
_FEW_PATIENTS = 10
_LOGGED = 20
_SEVERITIES = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}


def run(config: Any, workdir: str) -> None:
    """Checks `config.data`; writes `report.html`, `problems.csv` and `films.csv`.

    Raises:
      UserError: the workdir cannot be written to.
      SystemExit: with code 1, if there are errors.
    """
    _check_writable(workdir)
    where = settings.data_settings(config)
    records, problems = _open(where, config.other_stage)
    normal = where.normal if where.multi_label else ()
    problems += _spellings_and_ids(records, normal) + _ages(records)
    with (
        tqdm(total=len(records), unit="image", desc="reading") as progress,
        waiting(lambda: f"{progress.n:,} of {len(records):,} images read"),
    ):
        images = audit.measure(
            list(records.image_path),
            num_processes=config.num_processes or os.cpu_count() or 1,
            progress=progress.update,
        )
    with waiting("comparing images and writing the page"):
        problems += _unreadable(images, records, where.on_error)
        # Images of the phantom are computed, each from its own address: they are never copies.
        on_disk = np.array([not path.startswith(PHANTOM_PREFIX) for path in records.image_path])
        groups = audit.same_images(images, compare=on_disk)
        problems += _repeats(groups, records, images)
        labels = np.where(records.split == _OTHER, "", records.label)
        found = shortcuts(images, labels, records.patient)
        problems += (
            _shortcut_alarms(found) + _rare_classes(records, normal) + _outliers(images, records)
        )
        problems.sort(key=lambda problem: list(_SEVERITIES).index(problem.severity))
        _write_tables(workdir, records, images, groups, problems)
        page = os.path.join(workdir, "report.html")
        # The bins of a histogram of equal ages are narrower than the resolution of float32.
        wide = records.replace(age_months=records.age_months.astype(np.float64))
        data_page.write(page, wide, records.patient, images, groups, problems, found)
    for problem in problems[:_LOGGED]:
        _log.log(_SEVERITIES[problem.severity], problem.message)
    if len(problems) > _LOGGED:
        _log.warning("... and %d more in problems.csv", len(problems) - _LOGGED)
    errors, warnings = (
        sum(problem.severity == severity for problem in problems)
        for severity in ("error", "warning")
    )
    _log.info("%d errors, %d warnings: %s", errors, warnings, page)
    if errors:
        raise SystemExit(1)


def _check_writable(workdir: str) -> None:
    """Creates the workdir before hours of reading."""
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written to ({error.strerror}); choose another --workdir"
        ) from None


def _open(where: DataSettings, other_stage: str) -> tuple[Records, list[Problem]]:
    """All images with their role in `split`, and problems of these roles."""
    try:
        split = data.divide_sources(where)
        parts = [split[role].replace(split=np.full(len(split[role]), role, object))
                 for role in SPLITS]  # fmt: skip
        message = ""
        refused = _refused(where, split)
    except DataError as error:
        # Go on with the splits that the sources give, to show everything that is wrong.
        message = str(error)
        refused = []
        parts = []
        for role, spec in zip(SPLITS, (where.train, where.validation, where.test), strict=True):
            if spec:
                part = data.open_role(spec, where)
                given = part.split if role == "train" else np.full(len(part), role, object)
                parts.append(part.replace(split=np.where(given == "", role, given)))
    if other_stage:
        # Training images of the other stage, if it divides its data with the same settings.
        theirs = dataclasses.replace(where, train=other_stage, validation="", test="")
        other = data.divide_sources(theirs).train
        parts.append(other.replace(split=np.full(len(other), _OTHER, object)))
    records = Records.concatenate(parts)
    problems = _patients_on_two_sides(records)
    if message and not problems:
        problems.append(Problem("error", "cannot be divided", message))
    return records, problems + refused


def _refused(where: DataSettings, split: Split) -> list[Problem]:
    """What stage one and stage two would refuse before their first step.

    This is a warning if the other stage could use the images.
    """
    by_one: list[str] = []
    by_two: list[str] = []
    if not len(split.validation):
        by_one.append("no image is left for validation; raise config.data.validation_fraction")
    useful = False
    try:
        classes = conditions.find_classes(where, split.train)
        useful = bool(classes) or bool(split.train.has_age.any())
        if not useful:
            by_two = ["no training image has a label or an age"]
        conditions.check_split(where, split, classes)
    except DataError as error:
        by_two.append(str(error))
    problems = []
    for stage, reasons, severe in (("one", by_one, by_two), ("two", by_two, by_one or useful)):
        for why in reasons:
            message = f"stage {stage} refuses these images: {why}"
            if not (by_one and by_two):
                message += f" (stage {'two' if stage == 'one' else 'one'} alone can use them)"
            severity = "error" if severe else "warning"
            problems.append(Problem(severity, f"refused by stage {stage}", message))
    return problems


def _spellings_and_ids(records: Records, normal: Collection[str]) -> list[Problem]:
    problems = [
        Problem("warning", "spelling", message, tuple(rows))
        for message, rows in doubtful_spellings(records, normal)
    ]
    for source in dict.fromkeys(records.source):
        here = records.source == source
        rows = np.flatnonzero(here & (records.patient_id == ""))
        if len(rows):
            message = (
                f"{source}: {len(rows):,} of {here.sum():,} images have no patient id and are "
                "divided image by image: whether a patient is on two sides cannot be known"
            )
            problems.append(Problem("warning", "no patient id", message, tuple(rows)))
    return problems


def _ages(records: Records) -> list[Problem]:
    problems = []
    for rows, why in audit.age_outliers(records):
        message = f"{why}: {_count(rows)}, such as {records.image_path[rows[0]]}"
        problems.append(Problem("warning", "age", message, tuple(rows.tolist())))
    for source in dict.fromkeys(records.source):
        kind, _, place = source.partition(":")
        columns = unused_age_columns(place) if kind == "manifest" else []
        if columns:
            message = f"{source}: {NO_AGE.format(', '.join(columns))}"
            problems.append(Problem("warning", "age", message))
    return problems


def _count(rows: Sequence[int] | np.ndarray) -> str:
    return "1 image" if len(rows) == 1 else f"{len(rows):,} images"


def _patients_on_two_sides(records: Records) -> list[Problem]:
    roles = defaultdict(set)
    rows = defaultdict(list)
    for row, key in enumerate(records.patient):
        roles[key].add(records.split[row])
        rows[key].append(row)
    problems = []
    for key, sides in roles.items():
        # The other stage may train on this one's training patients, and on no others.
        if len(sides) > 1 and sides != {"train", _OTHER}:
            name = records.patient_id[rows[key][0]] or records.image_path[rows[key][0]]
            message = f"patient {name!r} is in {' and in '.join(sorted(sides))}"
            problems.append(Problem("error", "patient on two sides", message, tuple(rows[key])))
    return problems


def _unreadable(images: audit.Images, records: Records, on_error: str) -> list[Problem]:
    severity = "error" if on_error == "raise" else "warning"
    return [
        Problem(
            severity,
            "unreadable",
            f"{records.image_path[row]}: {images.reason[row]}",
            (int(row),),
        )
        for row in np.flatnonzero(~images.readable)
    ]


def _repeats(groups: list[list[int]], records: Records, images: audit.Images) -> list[Problem]:
    problems = []
    within: list[int] = []
    listed: list[int] = []
    for group in groups:
        row_of = {records.image_path[row]: row for row in reversed(group)}
        listed += sorted(set(group) - set(row_of.values()))
        rows = sorted(row_of.values())
        if len(rows) == 1:
            continue
        sides = {records.split[row] for row in rows}
        patients = sorted({records.patient_id[row] for row in rows} - {""})
        whose = f" (patients {', '.join(patients)})" if patients else ""
        exact = len({images.digest[row] for row in rows}) == 1
        names = ", ".join(records.image_path[row] for row in rows[:4])
        kind = "image" if exact else "image (near duplicate)"
        if len(sides) > 1 and sides != {"train", _OTHER}:
            message = f"the same {kind} is in {' and in '.join(sorted(sides))}{whose}: {names}"
            problems.append(Problem("error", "image on two sides", message, tuple(rows)))
        elif len({records.label[row] for row in rows} - {""}) > 1:
            message = f"the same {kind} has two labels{whose}: {names}"
            problems.append(Problem("warning", "two labels", message, tuple(rows)))
        elif len({records.patient[row] for row in rows if records.patient_id[row]}) > 1:
            message = f"the same {kind} has two patients{whose}: {names}"
            problems.append(Problem("warning", "two patients", message, tuple(rows)))
        if len(sides) == 1:
            within += rows[1:]
    if listed:
        first = records.image_path[listed[0]]
        sources = sorted(set(records.source[records.image_path == first]))
        message = f"files that are listed more than once: {len(listed):,}, such as {first}"
        message += f" (by {' and by '.join(sources)}); name each file in one source"
        problems.append(Problem("warning", "listed twice", message, tuple(listed)))
    if within:
        message = f"images that repeat another one of the same split: {len(within):,}"
        problems.append(Problem("warning", "repeats", message, tuple(within)))
    return problems


def _shortcut_alarms(found: list[Shortcut]) -> list[Problem]:
    return [
        Problem(
            "warning",
            "shortcut",
            f"{_name(shortcut.measure)} tell {shortcut.label!r} from the other classes with an AUC "
            f"of {shortcut.auc:.2f}, without any anatomy: a network can learn that instead",
        )
        for shortcut in found
        if shortcut.alarm
    ]


def _name(measure: str) -> str:
    if measure == TOGETHER:
        return "size, depth, brightness and border together"
    return f"differences of {measure.replace('_', ' ')}"


def _rare_classes(records: Records, normal: Collection[str]) -> list[Problem]:
    is_normal = FindingNames((), tuple(normal)).is_normal
    labelled = (records.label != "") & (records.split != _OTHER)
    problems = []
    for role in SPLITS:
        here = labelled & (records.split == role)
        few = []
        for label in sorted(names_in(records.label[labelled])) if here.any() else ():
            if is_normal(label):
                continue
            patients = len(set(records.patient[here & carries(records.label, label)]))
            if patients < _FEW_PATIENTS:
                few.append(f"{label} ({patients})")
        if few:
            message = f"classes with fewer than {_FEW_PATIENTS} patients in {role}, too few to say "
            problems.append(Problem("warning", "rare class", f"{message}much: {', '.join(few)}"))
    return problems


def _outliers(images: audit.Images, records: Records) -> list[Problem]:
    by_kind = defaultdict(list)
    found, not_judged = audit.outliers(images, records)
    for row, what in found:
        by_kind[what].append(row)
    for row in np.flatnonzero(images.note != "").tolist():
        by_kind[f"decoder: {images.note[row]}"].append(row)
    problems = []
    for what, rows in sorted(by_kind.items()):
        message = f"{what}: {_count(rows)}, such as {records.image_path[rows[0]]}"
        problems.append(Problem("warning", "outlier", message, tuple(rows)))
    return problems + [Problem("note", "not judged", message) for message in not_judged]


def _write_tables(
    workdir: str,
    records: Records,
    images: audit.Images,
    groups: list[list[int]],
    problems: list[Problem],
) -> None:
    group_of = np.zeros(len(records), int)
    for number, rows in enumerate(groups, start=1):
        group_of[rows] = number
    extra: dict[str, Any] = {
        "role": records.split,
        "unreadable": images.reason,
        "height": images.height.astype(int),
        "width": images.width.astype(int),
        "bits": images.bits.astype(int),
        "brightness": [f"{value:.4f}" for value in images.brightness],
        "contrast": [f"{value:.4f}" for value in images.contrast],
        "border": [f"{value:.4f}" for value in images.border],
        "same_film_group": ["" if number == 0 else number for number in group_of],
        "note": images.note,
    }
    # The result is a manifest of this stage's images again.
    own = np.flatnonzero(records.split != _OTHER)
    extra = {name: [column[row] for row in own] for name, column in extra.items()}
    write_manifest(os.path.join(workdir, "films.csv"), records.take(own), extra)
    listed = []
    for problem in problems:
        paths = [records.image_path[row] for row in problem.rows] or [""]
        listed += [(problem.severity, problem.kind, problem.message, path) for path in paths]
    header = ("severity", "kind", "message", "image_path")
    write_csv(os.path.join(workdir, "problems.csv"), header, listed)
