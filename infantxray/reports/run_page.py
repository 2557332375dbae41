"""`report.html`: one file that needs nothing else, light and dark, printable."""

from __future__ import annotations

import base64
import datetime
import html
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from infantxray.evaluation.metrics import HEADLINES

_NAMES = {
    "accuracy": "Accuracy",
    "recall": "Recall (macro)",
    "precision": "Precision (macro)",
    "f1": "F1 (macro)",
    "roc_auc": "ROC AUC (macro)",
    "age_mae_months": "Age error (MAE, months)",
}
_CAPTIONS = {
    "learning_curves": (
        "Learning curves",
        "Training loss, and figures on validation patients.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "Images by true and predicted condition; the colour is the share of the true condition.",
    ),
    "roc": ("ROC curves", "Each condition against the rest."),
    "calibration": (
        "Calibration",
        "How often the model is right at each confidence, with the number of images beside it. "
        "Below the line it is too sure of itself.",
    ),
    "age": ("Age", "Predicted against true age of each image."),
    "saliency": (
        "Where the answer comes from",
        "Grad-CAM of the predicted condition, for the image of each condition that the model is "
        "surest about, with a frame around the finding where its place is known. The last map has "
        "one cell for 32 pixels, so this is coarse.",
    ),
    "panels": ("What stage one saw and made", "Validation images"),
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
STYLE = """
:root { color-scheme: light dark; --fg: #1a1a1a; --soft: #666; --bg: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e6e6; --soft: #9a9a9a; --bg: #16181b; --line: #34373c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p.soft, figcaption, small { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(2, 1fr); gap: .8rem; }
@media (min-width: 40rem) { .cards { grid-template-columns: repeat(3, 1fr); } }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 0; }
figure img { max-width: min(100%, 46rem); background: #fff; border-radius: .4rem; }
img.pixels { width: min(100%, 46rem); image-rendering: pixelated; }
details pre { overflow-x: auto; font-size: .8rem; }
@media print { body { max-width: none; margin: 0; } figure, .card, tr { break-inside: avoid; }
  details { display: none; } }
"""


def write(
    path: str,
    config: dict,
    summary: dict,
    pictures: dict[str, str],
    panel_names: Sequence[str] = (),
) -> None:
    """Writes the report of one stage-two model.

    Args:
      path: of the page.
      config: that the model was trained with.
      summary: what `metrics.json` holds.
      pictures: `{name: path of a PNG}`.
      panel_names: of the rows of the picture `panels`, of stage one.
    """
    parts = [_header(config, summary), _cards(summary)]
    if "per_class" in summary:
        parts.append(_class_table(summary))
    parts.append(_age_table(summary))
    for name, picture in pictures.items():
        title, caption = _CAPTIONS[name]
        pixels = " class='pixels'" if name == "panels" else ""
        if name == "panels":
            rows = ", ".join(panel_names).replace("_", " ")
            caption += f"; from above: {rows}." if rows else "."
        parts.append(
            f"<h2>{title}</h2><figure><img alt='{title}' src='{inline(picture)}'{pixels}>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts.append(_provenance(config))
    write_document(path, f"infantxray: {config['encoder']}", parts)


def write_document(path: str, title: str, parts: Iterable[str], style: str = "") -> None:
    """Writes parts of a body as a page with the common style, and `style` beside it."""
    text = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    # Whole or not at all: a run counts as finished once its report is there.
    Path(path + ".tmp").write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(path + ".tmp", path)


def _header(config: dict, summary: dict) -> str:
    start = config["pretrained"] or "random weights"
    n = summary["n"]
    told = f"{summary['n_patients']:,} patients whom neither stage was trained on"
    if not summary["stage_one_known"]:
        told = f"{summary['n_patients']:,} patients whom stage two was not trained on (stage one's "
        told += "folder is gone: whether it was cannot be checked)"
    told = [told]
    for name, what in (("n_with_condition", "condition"), ("n_with_age", "age")):
        if 0 < summary[name] < n:
            told.append(f"{summary[name]:,} images with a known {what}")
    if summary["n_without_patient_id"]:
        told.append(
            f"{summary['n_without_patient_id']:,} images without a patient id count as a patient "
            "each: whether others of the same patient were trained on cannot be known"
        )
    told += [f"data {', '.join(summary['sources'])}", f"encoder from {start}"]
    if summary["n_unreadable"]:
        told.append(f"{summary['n_unreadable']} unreadable files left out (bad_files.csv)")
    return (
        f"<h1>{html.escape(config['encoder'])} on {n:,} test images</h1>"
        f"<p class='soft'>{html.escape(' · '.join(told), quote=False)}</p>"
    )


def _cards(summary: dict) -> str:
    cards = []
    for name in HEADLINES:
        value = summary[name]
        if value is None:
            why = html.escape(summary["not_computed"].get(name, "cannot be computed"))
            cards.append(f"<div class='card'>{_NAMES[name]}<b>–</b><small>{why}</small></div>")
            continue
        low, high = summary.get("ci95", {}).get(name, (None, None))
        notes = [f"95 %: {_number(name, low)} to {_number(name, high)}"] if low is not None else []
        blind = _blind(name, summary)
        if blind is not None:
            notes.append(f"blind guess: {_number(name, blind)}")
        cards.append(
            f"<div class='card'>{_NAMES[name]}<b>{_number(name, value)}</b>"
            f"<small>{'<br>'.join(notes)}</small></div>"
        )
    return (
        f"<div class='cards'>{''.join(cards)}</div><p class='soft'>Macro figures give every "
        "condition the same weight, however rare. Intervals are percentiles of a bootstrap over "
        "patients. They do not cover the chance of another training run. The blind guess always "
        "names the most frequent condition, or the mean age, of the training images.</p>"
    )


def _blind(name: str, summary: dict) -> float | None:
    """The figure of a model that never looks at the image."""
    if name == "roc_auc":
        return 0.5
    return summary["baseline"].get(name)


def _number(name: str, value: float) -> str:
    return f"{value:.1f}" if name == "age_mae_months" else f"{value:.3f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table that scrolls by itself where it is too wide; text is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='wide'>{markup}</div>"


def _cell(value, name: str = "") -> str:
    return "–" if value is None else _number(name, value)


def _class_table(summary: dict) -> str:
    names = ("recall", "precision", "f1", "roc_auc")
    rows = [
        [name, str(row["n"]), *(_cell(row[figure]) for figure in names)]
        for name, row in summary["per_class"].items()
    ]
    return "<h2>By condition</h2>" + table(
        ["condition", "images", "recall", "precision", "F1", "ROC AUC"], rows
    )


def _age_table(summary: dict) -> str:
    names = ("accuracy", "f1", "roc_auc", "age_mae_months")
    rows = [
        [row["band"], str(row["n"]), *(_cell(row[figure], figure) for figure in names)]
        for row in summary["age_bands"]
    ]
    return "<h2>By age</h2>" + table(
        ["age", "images", "accuracy", "F1 (macro)", "ROC AUC (macro)", "age MAE (months)"], rows
    )


def inline(path: str) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def _provenance(config: dict) -> str:
    settings = html.escape("\n".join(setting_lines(config)))
    return (
        f"<h2>How this was made</h2><p class='soft'>{versions()}</p>"
        f"<details><summary>All settings</summary><pre>{settings}</pre></details>"
    )


def versions() -> str:
    """When, and with what code and packages, a page is made."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now} · Python {platform.python_version()} · {packages} · code {_commit()}"


def setting_lines(config: dict, prefix: str = "config.") -> list[str]:
    """Every setting as it is given on the command line."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict):
            lines += setting_lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"--{prefix}{key}={value}")
    return lines


def _commit() -> str:
    """The commit of this code, with a mark where files were changed since."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "without a git checkout"
    return described.stdout.strip()
