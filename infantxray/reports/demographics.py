"""Table 1 (demographics by partition) and the flow chart of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from data_pipeline.manifest import Records
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.evaluation.subgroups import age_bands
from infantxray.reports import columns
from infantxray.reports.columns import OTHERS
from infantxray.reports.page import NOTHING
from infantxray.reports.plots import Figure
from infantxray.reports.tables import Table

_MOST_VALUES = 12  # Of a column in Table 1.


def table_one(
    parts: Mapping[str, Records],
    headers: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
) -> Table:
    """Table 1: patients, images, age, sex, view, site, conditions and devices of each partition.

    Args:
      parts: `{partition: Records}`.
      headers: `columns.sampled_headers` of each partition.
    """
    labels = [("Patients", ""), ("Images", ""), ("Age, months", "median (quartiles)")]
    values = {
        "Age": {n: age_bands(r.age_months) for n, r in parts.items()},
        "Sex": {n: r.sex for n, r in parts.items()},
        "View": {n: r.view for n, r in parts.items()},
        "Site": {n: r.site for n, r in parts.items()},
        "Source": {n: r.source for n, r in parts.items()},
        "Condition": {n: r.label for n, r in parts.items()},
    }
    for column in columns.DICOM if headers else ():
        values[columns.TITLES[column]] = {n: headers[n][column] for n in parts}
    shown = {name: _frequent(found) for name, found in values.items()}
    for name, names in shown.items():
        labels += [(name, value or "unknown") for value in names]
    cells: dict[str, list[str]] = {}
    for part, records in parts.items():
        ages = records.age_months[records.has_age]
        quartiles = np.percentile(ages, [25, 50, 75]) if len(ages) else ()
        cells[part] = [f"{len(set(records.patient.tolist())):,}", f"{len(records):,}"]
        age = "{1:.1f} ({0:.1f} to {2:.1f})".format(*quartiles) if len(ages) else NOTHING
        cells[part].append(age)
        for name, names in shown.items():
            n, counts = len(values[name][part]), Counter(values[name][part].tolist())
            others = n - sum(counts[value] for value in names if value != OTHERS)
            for value in names:
                count = others if value == OTHERS else counts[value]
                cells[part].append(f"{count:,} ({count / n:.0%})" if n else "0")
    rows = [[*label, *row] for label, *row in zip(labels, *cells.values(), strict=True)]
    caption = "Shares are of images. Partitions share no patient."
    if any(shown.get(columns.TITLES[name]) for name in columns.DICOM):
        caption += (
            f" Manufacturer, year and tube voltage: of up to {columns.SAMPLE:,} DICOM headers."
        )
    return Table(
        "demographics",
        "Patients and images by partition",
        caption,
        ["Characteristic", "Value", *(f"{part.capitalize()}" for part in parts)],
        rows,
    )


def _frequent(found: Mapping[str, np.ndarray]) -> list[str]:
    """The values of a column, frequent first, unknown last; none where nothing is known."""
    counts = Counter(value for part in found.values() for value in part.tolist())
    unknown = counts.pop("", 0)
    if not counts:
        return []
    bands = [name for name, *_ in AGE_BANDS]
    if counts.keys() <= set(bands):
        names = [name for name in bands if name in counts]
    else:
        names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if len(names) > _MOST_VALUES:
        names = [*names[:_MOST_VALUES], OTHERS]
    return names + [""] * (unknown > 0)


def flow_table(
    parts: Mapping[str, Records],
    left_out: Mapping[str, int],
    scored: Mapping[str, int],
    *,
    external: bool,
) -> Table:
    """The flow of images: partitions, test images left out, and test images scored.

    Args:
      parts: `{partition: Records}`, the test images last.
      left_out: `{reason: test images}`.
      scored: `{what: test images}`.
      external: whether the test images are not of the same split.
    """
    rows: list[list[str | int]] = []
    if not external:
        rows.append(["Found", "", sum(map(len, parts.values())), _people(*parts.values())])
    for part, records in parts.items():
        rows.append(["Partition", part, len(records), _people(records)])
    for step, counts in (("Left out", left_out), ("Scored", scored)):
        rows += [[step, what, count, NOTHING] for what, count in counts.items()]
    caption = "Images and patients at each step, from the split to the scored test images."
    header = ["Step", "What", "Images", "Patients"]
    return Table("flow", "Flow of images", caption, header, rows)


def _people(*parts: Records) -> int:
    return len(set().union(*(part.patient.tolist() for part in parts)))


def flow_chart(table: Table) -> Figure:
    """A `flow_table` as boxes: partitions side by side, exclusions beside the test images."""
    steps: dict[str, list[list[str]]] = {}
    for step, *cells in table.rows:
        steps.setdefault(step, []).append([c if isinstance(c, str) else f"{c:,}" for c in cells])
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")

    def box(x: float, y: float, text: str) -> None:
        frame = {"boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": "#808080"}
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=frame)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#808080"})

    parts = steps["Partition"]
    places = [0.15 + 0.7 * i / max(len(parts) - 1, 1) for i in range(len(parts))]
    if "Found" in steps:
        _, images, people = steps["Found"][0]
        for x in places:
            arrow((0.5, 0.86), (x, 0.72))
        box(0.5, 0.92, f"{images} images of {people} patients")
    for x, (name, images, people) in zip(places, parts, strict=True):
        box(x, 0.62, f"{name}\n{images} images\n{people} patients")
    test = places[-1]
    lost = "\n".join(f"{count} {what}" for what, count, _ in steps.get("Left out", ()))
    if lost:
        arrow((test, 0.36), (0.55, 0.36))
        box(0.38, 0.36, f"left out of the test images:\n{lost}")
    arrow((test, 0.52), (test, 0.21))
    scored = "\n".join(f"{count} {what}" for what, count, _ in steps["Scored"])
    box(test, 0.1, f"scored:\n{scored}")
    return figure
