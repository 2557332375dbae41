"""What must be known of the data before training on it."""

from __future__ import annotations

import copy
import csv
import logging
import os
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from data_pipeline import audit
from data_pipeline import dataset as data
from data_pipeline.decode import PHANTOM_PREFIX
from data_pipeline.errors import DataError
from data_pipeline.manifest import SPLITS, Records, write_manifest
from data_pipeline.sources import open_sources
from data_pipeline.splits import Split, patient_keys
from infantxray.evaluation.shortcuts import TOGETHER, Shortcut, shortcuts
from infantxray.reports import data_page
from infantxray.reports.data_page import Problem

_log = logging.getLogger(__name__)
_OTHER = "other stage"
_FEW_PATIENTS = 10
_LOGGED = 20


def run(config, workdir: str) -> None:
    """Checks `config.data`; writes `report.html`, `problems.csv` and `films.csv`.

    Raises:
      SystemExit: with code 1, if there are errors.
    """
    records, problems = _open(config)
    problems += _spellings_and_ids(records, config.data.patient_ids)
    keys = patient_keys(records, config.data.patient_ids)
    with tqdm(total=len(records), unit="image", desc="reading") as progress:
        images = audit.measure(
            list(records.image_path),
            num_processes=config.num_processes or os.cpu_count() or 1,
            progress=progress.update,
        )
    problems += _unreadable(images, records, config.data.on_error)
    # Phantom images are computed, each on its own: alike they may be, copies they are not.
    on_disk = np.array([not path.startswith(PHANTOM_PREFIX) for path in records.image_path])
    groups = audit.same_images(images, compare=on_disk)
    problems += _repeats(groups, records, keys, images)
    found = shortcuts(images, np.where(records.split == _OTHER, "", records.label), keys)
    problems += _shortcut_alarms(found)
    problems += _rare_classes(records, keys)
    problems += _outliers(images, records)
    problems.sort(key=lambda problem: problem.severity)
    os.makedirs(workdir, exist_ok=True)
    _write_tables(workdir, records, images, groups, problems)
    page = os.path.join(workdir, "report.html")
    data_page.write(page, records, keys, images, groups, problems, found)
    for problem in problems[:_LOGGED]:
        _log.log(logging.ERROR if problem.severity == "error" else logging.WARNING, problem.message)
    if len(problems) > _LOGGED:
        _log.warning("... and %d more in problems.csv", len(problems) - _LOGGED)
    errors = sum(problem.severity == "error" for problem in problems)
    _log.info("%d errors, %d warnings: %s", errors, len(problems) - errors, page)
    if errors:
        raise SystemExit(1)


def _open(config) -> tuple[Records, list[Problem]]:
    """All images, with the role of each in `split`, and what is wrong with the roles."""
    settings = config.data
    try:
        split = data.divide_sources(settings)
        parts = [split[role].replace(split=np.full(len(split[role]), role, object))
                 for role in SPLITS]  # fmt: skip
        message = ""
        refused = _refused(settings, split)
    except DataError as error:
        # Not to be divided as it is: go on with what the sources say, to show all that is wrong.
        message = str(error)
        refused = []
        parts = []
        for role, spec in zip(
            SPLITS, (settings.train, settings.validation, settings.test), strict=True
        ):
            if spec:
                part = open_sources(spec)
                if role != "train" or settings.given_splits == "ignore":
                    part = part.replace(split=np.full(len(part), role, object))
                parts.append(part.replace(split=np.where(part.split == "", role, part.split)))
    if config.other_stage:
        # What the other stage trains on, if it divides its data with the same settings.
        theirs = copy.deepcopy(settings)
        theirs.train, theirs.validation, theirs.test = config.other_stage, "", ""
        other = data.divide_sources(theirs).train
        parts.append(other.replace(split=np.full(len(other), _OTHER, object)))
    records = Records.concatenate(parts)
    problems = _patients_on_two_sides(records, settings.patient_ids)
    if message and not problems:
        problems.append(Problem("error", "cannot be divided", message))
    return records, problems + refused


def _refused(settings, split: Split) -> list[Problem]:
    """What either stage refuses before its first step.

    A warning where the other stage can use the images and may be what they are meant for: none that
    could learn from their labels or ages.
    """
    by_one, by_two = [], []
    if not len(split.validation):
        by_one.append("no image is left for validation; raise config.data.validation_fraction")
    useful = False
    try:
        classes = data.find_classes(settings, split.train)
        useful = bool(classes) or bool(split.train.has_age.any())
        if not useful:
            by_two = ["no training image has a label or an age"]
        data.check_split(settings, split, classes)
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


def _spellings_and_ids(records: Records, patient_ids: str) -> list[Problem]:
    problems = [
        Problem("warning", "spelling", message, tuple(rows))
        for message, rows in data.doubtful_spellings(records, patient_ids)
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


def _patients_on_two_sides(records: Records, patient_ids: str) -> list[Problem]:
    roles = defaultdict(set)
    rows = defaultdict(list)
    for row, key in enumerate(patient_keys(records, patient_ids)):
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


def _repeats(
    groups: list[list[int]], records: Records, keys: np.ndarray, images: audit.Images
) -> list[Problem]:
    problems = []
    within = []
    for rows in groups:
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
        elif len({keys[row] for row in rows}) > 1 and patients:
            message = f"the same {kind} has two patients{whose}: {names}"
            problems.append(Problem("warning", "two patients", message, tuple(rows)))
        if len(sides) == 1:
            within += rows[1:]
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


def _rare_classes(records: Records, keys: np.ndarray) -> list[Problem]:
    labelled = (records.label != "") & (records.split != _OTHER)
    problems = []
    for role in SPLITS:
        here = labelled & (records.split == role)
        few = []
        for label in sorted(set(records.label[labelled])) if here.any() else ():
            patients = len(set(keys[here & (records.label == label)]))
            if patients < _FEW_PATIENTS:
                few.append(f"{label} ({patients})")
        if few:
            message = f"classes with fewer than {_FEW_PATIENTS} patients in {role}, too few to say "
            problems.append(Problem("warning", "rare class", f"{message}much: {', '.join(few)}"))
    return problems


def _outliers(images: audit.Images, records: Records) -> list[Problem]:
    by_kind = defaultdict(list)
    for row, what in audit.outliers(images, records):
        by_kind[what].append(row)
    for row in np.flatnonzero(images.note != ""):
        by_kind[f"decoder: {images.note[row]}"].append(int(row))
    problems = []
    for what, rows in sorted(by_kind.items()):
        count = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
        message = f"{what}: {count}, such as {records.image_path[rows[0]]}"
        problems.append(Problem("warning", "outlier", message, tuple(rows)))
    return problems


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
    extra = {
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
    path = os.path.join(workdir, "problems.csv")
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("severity", "kind", "message", "image_path"))
        for problem in problems:
            paths = [records.image_path[row] for row in problem.rows] or [""]
            writer.writerows(
                (problem.severity, problem.kind, problem.message, path) for path in paths
            )
