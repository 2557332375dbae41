"""Model card in the Hugging Face layout, filled from the files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from infantxray.evaluation.metrics import HEADLINES

_RESIZE = {
    "pad": "`pad`: the longer side to {} px, the proportions kept; centred on black",
    "crop": "`crop`: the central square of the shorter side, to {} px",
    "squash": "`squash`: the whole image to {0} x {0} px, the proportions not kept",
}


def model_card(
    name: str,
    *,
    model: dict[str, Any],
    metrics: dict[str, Any],
    bands: dict[str, dict[str, Any]],
    trust: Any,
    outputs: tuple[str, ...],
    training: tuple[int, int] | None,
    licence: str,
    version: str,
    context: Sequence[str] = (),
) -> str:
    """The card, Markdown with YAML front matter.

    Args:
      name: name of the model.
      model: contents of the exported `model.json`.
      metrics: contents of the run's `metrics.json`; empty where there are none.
      bands: the same by age band, with `ci95`.
      trust: the `Trust` of the model.
      outputs: names of the outputs.
      training: numbers of training images and patients; None = unknown.
      licence: identifier as Hugging Face lists them, such as apache-2.0; empty = not stated.
      version: version of this program.
      context: further inputs of the model, such as `sex=F`.
    """
    intervals = metrics.get("ci95") or {}
    headline = [
        (key, metrics[key], _interval(intervals.get(key)))
        for key in HEADLINES
        if metrics.get(key) is not None
    ]
    calibration = trust.test.get("calibration") or {}
    sets = (trust.test.get("sets") or {}).get("all")
    columns, rows = _bands(bands)
    preprocessing = model["preprocessing"]
    size = preprocessing["image_size"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown.
    )
    return environment.get_template("model_card.md.j2").render(
        name=name,
        license=licence or "other",
        license_text=f"Weights: {licence}." if licence else "Not stated by the exporter.",
        version=version,
        date=model["date"],
        encoder=model["encoder"],
        image_size=size,
        preprocessing=preprocessing,
        resize=_RESIZE[preprocessing["resize"]].format(size),
        classes=model["classes"],
        age=model["age"],
        outputs=[f"`{output}`" for output in outputs],
        n=metrics.get("n", "unknown"),
        sources=", ".join(metrics.get("sources") or ["unknown data"]),
        n_training=training[0] if training else None,
        n_patients=training[1] if training else None,
        age_range=trust.age_range_months,
        headline=headline,
        band_columns=columns,
        bands=rows,
        temperature=trust.temperature,
        n_validation=trust.n_validation,
        ece=[calibration[when]["expected_calibration_error"] for when in ("before", "after")]
        if calibration
        else None,
        coverage=trust.coverage,
        set_coverage=sets["coverage"]["value"] if sets else None,
        set_size=sets["mean_size"] if sets else None,
        abstention=[
            r for r in trust.test.get("abstention", ()) if r["accuracy"]["low"] is not None
        ],
        multi_label=model["multi_label"],
        context=" and ".join(dict.fromkeys(name.partition("=")[0] for name in context)),
        half_width=trust.age_half_width_months,
        outliers=trust.detector is not None,
        skipped=trust.skipped,
    )


def _interval(limits: Any) -> str:
    if not limits or None in limits:
        return "–"
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def _bands(bands: dict[str, Any]) -> tuple[list[str], list[tuple[str, int, list[str]]]]:
    """Columns and rows of the table by age band."""
    shown = [key for key in HEADLINES if any(row.get(key) is not None for row in bands.values())]
    rows = []
    for band, row in bands.items():
        limits = row.get("ci95") or {}
        cells = [
            "–"
            if row.get(key) is None
            else f"{row[key]:.3f}" + (f" ({_interval(limits[key])})" if limits.get(key) else "")
            for key in shown
        ]
        rows.append((band, row.get("n", 0), cells))
    return shown, rows
