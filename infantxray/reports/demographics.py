"""Table 1 (demographics by partition), the flow chart of images, and the columns of subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.decode import looks_like_dicom
from data_pipeline.decode.dicom import read_header
from data_pipeline.decode.radiograph import Refused
from data_pipeline.manifest import Records
from infantxray.evaluation.metrics import AGE_BANDS
from infantxray.evaluation.subgroups import age_bands
from infantxray.reports.page import NOTHING
from infantxray.reports.plots import Figure
from infantxray.reports.tables import Table

COLUMNS = ("sex", "age", "view", "site", "source", "manufacturer")
_MOST_VALUES = 12  # Of a column in Table 1.


def groups(records: Records, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels of the subgroups of each image, `{column: [N]}`; empty where unknown.

    Args:
      records: the images.
      columns: of `COLUMNS`. `age` is the age band; `manufacturer` is read from DICOM headers.
    """
    found = {}
    for column in columns:
        if column == "age":
            found[column] = age_bands(records.age_months)
        elif column == "manufacturer":
            found[column] = np.array([*map(_manufacturer, records.image_path)], dtype=object)
        else:
            found[column] = getattr(records, column)
    return found


def _manufacturer(path: str) -> str:
    """`Manufacturer` of a DICOM file; empty for other files. Reads the header only."""
    try:
        return read_header(path).manufacturer if looks_like_dicom(path) else ""
    except Refused:
        return ""


def table_one(parts: Mapping[str, Records]) -> Table:
    """Table 1: patients, images, age, sex, view, site and conditions of each partition."""
    columns: dict[str, list[str]] = {}
    labels = [("Patients", ""), ("Images", ""), ("Age, months", "median (quartiles)")]
    values = {
        "Age": {n: age_bands(r.age_months) for n, r in parts.items()},
        "Sex": {n: r.sex for n, r in parts.items()},
        "View": {n: r.view for n, r in parts.items()},
        "Site": {n: r.site for n, r in parts.items()},
        "Source": {n: r.source for n, r in parts.items()},
        "Condition": {n: r.label for n, r in parts.items()},
    }
    shown = {name: _frequent(found) for name, found in values.items()}
    for name, names in shown.items():
        labels += [(name, value or "unknown") for value in names]
    for part, records in parts.items():
        n, ages = len(records), records.age_months[records.has_age]
        quartiles = np.percentile(ages, [25, 50, 75]) if len(ages) else ()
        cells = [f"{len(set(records.patient.tolist())):,}", f"{n:,}"]
        cells += ["{1:.1f} ({0:.1f} to {2:.1f})".format(*quartiles) if len(ages) else NOTHING]
        for name, names in shown.items():
            counts = Counter(values[name][part].tolist())
            others = n - sum(counts[value] for value in names if value != _OTHERS)
            for value in names:
                count = others if value == _OTHERS else counts[value]
                cells.append(f"{count:,} ({count / n:.0%})" if n else "0")
        columns[part] = cells
    rows = [[*label, *cells] for label, *cells in zip(labels, *columns.values(), strict=True)]
    return Table(
        "demographics",
        "Patients and images by partition",
        "Shares are of images. Partitions share no patient.",
        ["Characteristic", "Value", *(f"{part.capitalize()}" for part in parts)],
        rows,
    )


_OTHERS = "others"


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
        names = [*names[:_MOST_VALUES], _OTHERS]
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
