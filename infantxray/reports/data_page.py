"""The page of `check_data`: counts, problems, shortcuts, distributions, sample images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.audit import Images as Measured
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.labels import carries, names_in
from data_pipeline.manifest import Records
from infantxray.evaluation.metrics import age_groups
from infantxray.evaluation.shortcuts import MEASURES, TOGETHER, Shortcut
from infantxray.reports.page import Images, plural, write_page
from infantxray.reports.tables import NOTHING, Table

_PICTURE = Preprocessing(image_size=112)
_SAMPLES = 24
_GROUPS_SHOWN = 8
_OUTLIERS_SHOWN = 12
_PROBLEMS_SHOWN = 200
_BINS = 32
_UNLABELLED = "(no label)"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something found.

    Attributes:
      severity: `"error"`, which makes the exit code 1, or `"warning"`.
      kind: identifier for scripts, such as `"patient on two sides"`.
      message: text for the user.
      rows: the images concerned.
    """

    severity: str
    kind: str
    message: str
    rows: tuple[int, ...] = ()


def write(
    path: str,
    records: Records,
    keys: np.ndarray,
    images: Measured,
    groups: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    found: Sequence[Shortcut],
) -> None:
    """Writes the page.

    Args:
      path: path of the page.
      records: all images; `split` holds the role of each.
      keys: key of each image's patient.
      images: what was measured.
      groups: rows of images that are the same.
      problems: errors first.
      found: shortcuts.
    """
    errors = sum(problem.severity == "error" for problem in problems)
    verdict = f"{plural(errors, 'error')} to fix before training" if errors else "no errors"
    readable = images.readable
    ages = records.age_months[records.has_age] / 12
    plots = [
        histogram("Age, years", ages),
        histogram("Mean brightness (0 black, 1 white)", images.brightness[readable], (0, 1)),
        histogram("Width over height", np.clip(images.aspect_ratio[readable], 0.3, 3), (0.3, 3)),
        histogram("Shorter side, pixels", np.minimum(images.height, images.width)[readable]),
    ]
    write_page(
        path,
        "data",
        title=f"Check of {plural(len(records), 'image')}: {verdict}",
        sources=list(dict.fromkeys(records.source)),
        counts=_counts(records, keys, images, groups),
        problems=problems[:_PROBLEMS_SHOWN],
        more=max(len(problems) - _PROBLEMS_SHOWN, 0),
        tables=[*_class_tables(records, keys), *_shortcut_table(found)],
        plots=[plot for plot in plots if plot],
        images=[
            *_samples(records, images),
            *_outliers(records, problems),
            *_repeats(records, groups),
        ],
    )


def _counts(
    records: Records, keys: np.ndarray, images: Measured, groups: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    repeats = sum(len(rows) - 1 for rows in groups)
    without_id = int((records.patient_id == "").sum())
    found = (
        ("Images", len(records), plural(len(set(records.source)), "source")),
        ("Patients", len(set(keys)), f"{plural(without_id, 'image')} without id"),
        ("Unreadable", (~images.readable).sum(), "each with its reason below"),
        ("Repeats", repeats, f"in {plural(len(groups), 'group')}"),
        ("With label", records.has_label.sum(), f"{records.has_label.mean():.0%} of the images"),
        ("With age", records.has_age.sum(), f"{records.has_age.mean():.0%} of the images"),
    )
    return [{"name": name, "value": f"{n:,}", "notes": [note]} for name, n, note in found]


def _class_tables(records: Records, keys: np.ndarray) -> list[Table]:
    labels = [*sorted(names_in(records.label)), *([""] if (records.label == "").any() else [])]
    roles = list(dict.fromkeys(records.split))
    bands = age_groups(records.age_months)
    by_role, by_age = [], []
    for label in labels:
        here = carries(records.label, label) if label else records.label == ""
        images = [int((here & (records.split == role)).sum()) for role in roles]
        by_role.append([label or _UNLABELLED, len(set(keys[here])), *images])
        by_age.append([label or _UNLABELLED, *(int((here & rows).sum()) for _, rows in bands)])
    several = ""
    if records.has_several.any():
        several = "An image with several findings counts once for each finding."
    header = ["Class", "Patients", *(f"Images: {role}" for role in roles)]
    return [
        Table("classes_and_roles", "Classes and roles", several, header, by_role),
        Table("classes_and_ages", "Classes and ages", "Images by age.",
              ["Class", *(name for name, _ in bands)], by_age),
    ]  # fmt: skip


def _shortcut_table(found: Sequence[Shortcut]) -> list[Table]:
    if not found:
        return []
    values = {(one.label, one.measure): one for one in found}
    measures = [m for m in (*MEASURES, TOGETHER) if any(one.measure == m for one in found)]
    labels = list(dict.fromkeys(one.label for one in found))
    rows = [[label, *(f"{values[label, m].auc:.2f}" for m in measures)] for label in labels]
    alarms = frozenset(
        (i, j)
        for i, label in enumerate(labels)
        for j, measure in enumerate(measures, start=1)
        if values[label, measure].alarm
    )
    caption = (
        "How well each number, none of which describes the patient, tells a class from the "
        "others: AUC, 0.50 is chance. A network finds these first. “All together” is a linear "
        "classifier, scored on other patients."
    )
    header = ["Class", *(measure.replace("_", " ") for measure in measures)]
    return [Table("shortcuts", "Shortcuts", caption, header, rows, alarms=alarms)]


def histogram(
    title: str, values: np.ndarray, limits: tuple[float, float] | None = None
) -> dict[str, Any] | None:
    """Bars of a histogram 320 wide and 100 high; None without values.

    Args:
      title: title below the figure.
      values: `[N]`; one value, or all equal, is a bar in the middle.
      limits: of the axis; those of the values where None.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = limits or (float(values.min()), float(values.max()))
    if high - low < 1e-6 * max(abs(low), 1):
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, bins=_BINS, range=(low, high))
    width = 320 / _BINS
    bars = [
        {
            "x": f"{i * width:.1f}",
            "width": f"{width - 1:.1f}",
            "height": round(100 * int(count) / int(counts.max()), 1),
            "count": int(count),
        }
        for i, count in enumerate(counts)
    ]
    ends = (f"{end:,.0f}" if abs(end) >= 100 else f"{end:.3g}" for end in (low, high))
    return {"title": title, "bars": bars, "top": int(counts.max())} | dict(
        zip(("low", "high"), ends, strict=True)
    )


def _samples(records: Records, images: Measured) -> list[Images]:
    readable = np.flatnonzero(images.readable)
    if not len(readable):
        return []
    # As many of every class, as far as there are enough.
    order = np.random.default_rng(0).permutation(readable)
    seen: dict[str, int] = {}
    rank = np.zeros(len(order), int)
    for i, row in enumerate(order):
        rank[i] = seen[records.label[row]] = seen.get(records.label[row], -1) + 1
    rows = order[np.argsort(rank, kind="stable")][:_SAMPLES]
    rows = rows[np.argsort(records.label[rows].astype(str), kind="stable")]
    caption = "As the network sees them, bone white and gas black."
    return [Images("A sample", caption, _pictures(records, rows.tolist()))]


def _outliers(records: Records, problems: Sequence[Problem]) -> list[Images]:
    found: list[Images] = []
    for problem in problems:
        if problem.kind == "outlier" and problem.rows:
            title = "" if found else "Unlike the others"
            caption = problem.message.split(", such as")[0]
            pictures = _pictures(records, problem.rows[:_OUTLIERS_SHOWN])
            found.append(Images(title, caption, pictures))
    return found


def _repeats(records: Records, groups: Sequence[Sequence[int]]) -> list[Images]:
    # Those on several sides first.
    ordered = sorted(groups, key=lambda rows: -len({records.split[row] for row in rows}))
    shown = min(len(groups), _GROUPS_SHOWN)
    caption = f"{shown} of {plural(len(groups), 'group')}, a row each."
    return [
        Images("" if i else "The same image more than once", "" if i else caption,
               _pictures(records, rows[:6]))
        for i, rows in enumerate(ordered[:_GROUPS_SHOWN])
    ]  # fmt: skip


def _pictures(records: Records, rows: Sequence[int]) -> list[tuple[np.ndarray, list[str]]]:
    pictures = []
    for row in rows:
        path = records.image_path[row]
        try:
            image = load_image(path, _PICTURE)
        except UnreadableImage:
            continue
        caption = f"{records.label[row] or _UNLABELLED}, {records.split[row] or NOTHING}"
        pictures.append((image, [caption, Path(path).name[-40:]]))
    return pictures
