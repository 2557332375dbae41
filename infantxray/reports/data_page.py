"""The page of `check_data`: one file that needs nothing else, light and dark, printable."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.audit import Images
from data_pipeline.decode import Preprocessing, load_image
from data_pipeline.errors import UnreadableImage
from data_pipeline.manifest import Records
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.evaluation.shortcuts import MEASURES, TOGETHER, Shortcut
from infantxray.reports.run_page import table, write_document

_PICTURE = Preprocessing(image_size=112)
_SAMPLES = 24
_GROUPS_SHOWN = 8
_OUTLIERS_SHOWN = 24
_PROBLEMS_SHOWN = 200
_UNLABELLED = "(no label)"
_OWN_STYLE = """
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .6rem; }
.films figure img { width: 100%; background: #000; display: block; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; line-height: 1.25; margin-top: .2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .mark { fill: #3b82c4; } svg .axis { stroke: var(--line); }
.error b { color: #c62828; } .warning b { color: #b26a00; }
@media (prefers-color-scheme: dark) { .error b { color: #ff8a80; } .warning b { color: #ffb74d; } }
li { overflow-wrap: anywhere; margin: .15rem 0; } .good b { color: #2e7d32; }
td.alarm { background: #ffd54f; color: #1a1a1a; font-weight: 600; }
"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something found.

    Attributes:
      severity: `"error"`, which makes the exit code 1, or `"warning"`.
      kind: for scripts, such as `"patient on two sides"`.
      message: for people.
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
    images: Images,
    groups: list[list[int]],
    problems: Sequence[Problem],
    found: list[Shortcut],
) -> None:
    """Writes the page.

    Args:
      path: of the page.
      records: all images; `split` holds the role of each.
      keys: key of each image's patient.
      images: what was measured.
      groups: rows of images that are the same.
      problems: errors first.
      found: shortcuts.
    """
    parts = [
        _summary(records, keys, images, groups, problems),
        _problem_list(problems),
        _counts(records, keys),
        _shortcut_table(found),
        _plots(records, images),
        _samples(records, images),
        _outliers(records, problems),
        _groups(records, groups),
    ]
    write_document(str(path), "infantxray: check of the data", parts, _OWN_STYLE)


def _summary(records, keys, images, groups, problems) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    verdict = f"{errors:,} to mend before training" if errors else "nothing that must be mended"
    cards = (
        ("Images", f"{len(records):,}", f"{len(set(records.source)):,} sources"),
        (
            "Patients",
            f"{len(set(keys)):,}",
            f"{(records.patient_id == '').sum():,} images without id",
        ),
        ("Unreadable", f"{(~images.readable).sum():,}", "each with its reason below"),
        ("Repeats", f"{sum(len(rows) - 1 for rows in groups):,}", f"in {len(groups):,} groups"),
        ("With label", f"{records.has_label.mean():.0%}", f"{records.has_label.sum():,} images"),
        ("With age", f"{records.has_age.mean():.0%}", f"{records.has_age.sum():,} images"),
    )
    markup = "".join(
        f"<div class='card'>{name}<b>{value}</b><small>{note}</small></div>"
        for name, value, note in cards
    )
    sources = html.escape(", ".join(dict.fromkeys(records.source)))
    return (
        f"<h1>{len(records):,} images: {verdict}</h1><p class='soft'>{sources}</p>"
        f"<div class='cards'>{markup}</div>"
    )


def _problem_list(problems: Sequence[Problem]) -> str:
    if not problems:
        return "<h2>Found</h2><p class='good'><b>Nothing.</b></p>"
    items = "".join(
        f"<li class='{problem.severity}'><b>{html.escape(problem.kind)}</b>: "
        f"{html.escape(problem.message)}</li>"
        for problem in problems[:_PROBLEMS_SHOWN]
    )
    more = len(problems) - _PROBLEMS_SHOWN
    items += f"<li>… and {more:,} more in problems.csv</li>" if more > 0 else ""
    return (
        "<h2>Found</h2><p class='soft'>Red must be mended; yellow must be known. All images "
        f"concerned are in problems.csv.</p><ul>{items}</ul>"
    )


def _counts(records: Records, keys: np.ndarray) -> str:
    roles = list(dict.fromkeys(records.split))
    labels = [*sorted(set(records.label) - {""}), *([""] if (records.label == "").any() else [])]
    rows = []
    for label in labels:
        here = records.label == label
        cells = [f"{len(set(keys[here])):,}"]
        cells += [f"{(here & (records.split == role)).sum():,}" for role in roles]
        rows.append([label or _UNLABELLED, *cells])
    by_role = table(["class", "patients", *(f"images: {role}" for role in roles)], rows)
    bands = [(name, low, high) for name, low, high in AGE_BANDS]
    used = [
        (name, (records.age_months >= low) & (records.age_months < high))
        for name, low, high in bands
    ]
    used.append(("unknown", ~records.has_age))
    used = [(name, here) for name, here in used if here.any()]
    by_age = table(
        ["class", *(name for name, _ in used)],
        [
            [label or _UNLABELLED]
            + [f"{(here & (records.label == label)).sum():,}" for _, here in used]
            for label in labels
        ],
    )
    return f"<h2>Classes and roles</h2>{by_role}<h2>Classes and ages</h2>{by_age}"


def _shortcut_table(found: list[Shortcut]) -> str:
    if not found:
        return ""
    values = {(one.label, one.measure): one for one in found}
    measures = [m for m in (*MEASURES, TOGETHER) if any(one.measure == m for one in found)]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("class", *measures))
    body = ""
    for label in dict.fromkeys(one.label for one in found):
        cells = "".join(
            f"<td{' class=alarm' if values[label, m].alarm else ''}>{values[label, m].auc:.2f}</td>"
            for m in measures
        )
        body += f"<tr><td>{html.escape(label)}</td>{cells}</tr>"
    return (
        "<h2>Shortcuts</h2><p class='soft'>How well each number, which says nothing of the "
        "patient, tells a class from the others: AUC, 0.50 is chance. A network finds these "
        "first. “All together” is a linear classifier, scored on other patients.</p>"
        f"<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _plots(records: Records, images: Images) -> str:
    readable = images.readable
    plots = [
        _histogram("Mean brightness (0 black, 1 white)", images.brightness[readable], 0, 1),
        _histogram("Width over height", np.clip(images.aspect_ratio[readable], 0.3, 3), 0.3, 3),
        _histogram("Shorter side, pixels", np.minimum(images.height, images.width)[readable]),
    ]
    ages = records.age_months[records.has_age] / 12
    if len(ages):
        plots.insert(0, _histogram("Age, years", ages))
    return f"<h2>Distributions</h2><div class='plots'>{''.join(plots)}</div>"


def _histogram(title: str, values: np.ndarray, low=None, high=None, bins: int = 32) -> str:
    if not len(values):
        return ""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    counts, _ = np.histogram(values, bins=bins, range=(low, max(high, low + 1e-6)))
    width, height, base = 320, 150, 120
    step = width / bins
    marks = "".join(
        f"<rect class='mark' x='{i * step:.1f}' width='{step - 1:.1f}' "
        f"y='{base - 100 * count / counts.max():.1f}' height='{100 * count / counts.max():.1f}'>"
        f"<title>{count:,} images</title></rect>"
        for i, count in enumerate(counts)
    )
    return (
        f"<figure><svg viewBox='0 0 {width} {height}' role='img' aria-label='{title}'>{marks}"
        f"<line class='axis' x1='0' x2='{width}' y1='{base}' y2='{base}'/>"
        f"<text x='0' y='{base + 15}'>{low:.3g}</text>"
        f"<text x='{width}' y='{base + 15}' text-anchor='end'>{high:.3g}</text>"
        f"<text x='0' y='14'>{counts.max():,} images</text></svg>"
        f"<figcaption>{title}</figcaption></figure>"
    )


def _samples(records: Records, images: Images) -> str:
    readable = np.flatnonzero(images.readable)
    if not len(readable):
        return ""
    random = np.random.default_rng(0)
    # As many of every class, as far as there are enough.
    order = random.permutation(readable)
    turn: dict[str, int] = {}
    rank = np.array([turn.setdefault(records.label[row], 0) for row in order])
    for i, row in enumerate(order):
        rank[i] = turn[records.label[row]]
        turn[records.label[row]] += 1
    rows = order[np.argsort(rank, kind="stable")][:_SAMPLES]
    rows = rows[np.argsort(records.label[rows].astype(str), kind="stable")]
    return (
        "<h2>A sample</h2><p class='soft'>As the network sees them, bone white and gas black.</p>"
        + _pictures(records, rows)
    )


def _outliers(records: Records, problems: Sequence[Problem]) -> str:
    markup = ""
    for problem in problems:
        if problem.kind == "outlier" and problem.rows:
            title = html.escape(problem.message.split(", such as")[0])
            markup += f"<p>{title}</p>" + _pictures(records, problem.rows[: _OUTLIERS_SHOWN // 2])
    return f"<h2>Unlike the others</h2>{markup}" if markup else ""


def _groups(records: Records, groups: list[list[int]]) -> str:
    if not groups:
        return ""
    # Those on several sides first.
    ordered = sorted(groups, key=lambda rows: -len({records.split[row] for row in rows}))
    markup = "".join(_pictures(records, rows[:6]) for rows in ordered[:_GROUPS_SHOWN])
    shown = min(len(groups), _GROUPS_SHOWN)
    return (
        f"<h2>The same image more than once</h2><p class='soft'>{shown} of {len(groups):,} groups, "
        f"a row each.</p>{markup}"
    )


def _pictures(records: Records, rows: Sequence[int]) -> str:
    figures = ""
    for row in rows:
        path = records.image_path[row]
        try:
            image = load_image(path, _PICTURE)
        except UnreadableImage:
            continue
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        caption = html.escape(f"{records.label[row] or _UNLABELLED}, {records.split[row]}")
        name = html.escape(Path(path).name[-40:])
        figures += (
            f"<figure><img alt='{caption}' title='{html.escape(path)}' "
            f"src='data:image/png;base64,{data}'><figcaption>{caption}<br>{name}</figcaption></figure>"
        )
    return f"<div class='images'>{figures}</div>"
