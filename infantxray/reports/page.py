"""The one writer of HTML pages: Jinja2 templates filled with plain data.

A page is one self-contained file, light and dark, printable. The text is in `templates/`. Sections
that pages share (tables, figures, images) have a `kind`.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import importlib.metadata
import io
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from data_pipeline.files import replaced

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
_MAX_SHRUNK_PX = 640  # Letters of wider figures would be too small on a phone: these scroll.
_SVG_WIDTH = re.compile(r'<svg\b[^>]*?\bwidth="([\d.]+)(pt|px)?"')
NAMES = {
    "accuracy": "Accuracy",
    "recall": "Recall",
    "precision": "Precision",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "age_mae_months": "Age MAE, months",
}
NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a page.

    Attributes:
      title: a heading; empty for a figure that belongs to the one before.
      caption: what it shows.
      light: path of an SVG or PNG.
      dark: path of the dark version; empty if one file serves both.
      pixels: an image whose pixels are not to be blurred.
      legend: names of numbered classes, if the fonts of this machine lack letters of them.
    """

    title: str
    caption: str
    light: str
    dark: str = ""
    pixels: bool = False
    legend: Sequence[tuple[str, str]] = ()
    kind = "figure"

    @property
    def anchor(self) -> str:
        return slug(self.title)

    @property
    def scrolls(self) -> bool:
        """Whether the figure scrolls on a phone; others shrink to its width."""
        if self.pixels:
            return False
        if not self.light.endswith(".svg"):
            with Image.open(self.light) as image:
                return image.width > _MAX_SHRUNK_PX
        found = _SVG_WIDTH.search(Path(self.light).read_text(encoding="utf-8"))
        points = found is not None and found[2] == "pt"
        return found is not None and float(found[1]) * (4 / 3 if points else 1) > _MAX_SHRUNK_PX


@dataclasses.dataclass(frozen=True)
class Images:
    """A section of images.

    Attributes:
      title: a heading; empty for images that belong to those before.
      caption: what they are.
      images: uint8 `[S, S]`, each with the lines of its caption.
    """

    title: str
    caption: str
    images: Sequence[tuple[np.ndarray, Sequence[str]]]
    kind = "images"

    @property
    def anchor(self) -> str:
        return slug(self.title)


def slug(text: str) -> str:
    """A name for files, columns and anchors."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")


def number(value: float | None, name: str = "", sign: bool = False) -> str:
    """Months with one digit, everything else with three; a real minus sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    digits = 1 if "month" in name.lower() else 3
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def phrase(name: str, value: float) -> str:
    """A headline metric within a sentence: `accuracy 0.900`."""
    if name == "age_mae_months":
        return f"mean absolute age error {number(value, name)} months"
    return f"{NAMES[name].replace('Acc', 'acc')} {number(value, name)}"


def plural(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def setting_lines(settings: dict[str, Any], prefix: str = "config.") -> list[str]:
    """Every setting as it is given on the command line."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += setting_lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"--{prefix}{key}={value}")
    return lines


def data_url(content: str | np.ndarray) -> str:
    """The path of an SVG or PNG, or a uint8 image `[H, W]`, as a data URL."""
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(content).save(buffer, "PNG")
        kind, data = "image/png", buffer.getvalue()
    else:
        path = Path(content)
        kind, data = _TYPES[path.suffix], path.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"data_url": data_url, "number": number, "plural": plural}
    environment.globals |= {"versions": versions}
    return environment


def write_page(path: str | os.PathLike[str], template: str, **context: Any) -> None:
    """Fills `templates/<template>.html.j2` and writes the page, whole or not at all.

    Args:
      path: path of the page.
      template: its name.
      **context: what the template shows; text is escaped.
    """
    text = _environment().get_template(f"{template}.html.j2").render(**context)
    # A run counts as finished once its report is there.
    with replaced(path, errors="backslashreplace") as file:
        file.write(text)


def software() -> str:
    """The code and packages that make a page."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return f"Python {platform.python_version()} · {packages} · code {_commit()}"


def versions() -> str:
    """Date, code and packages of a page."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC} · {software()}"


def _commit() -> str:
    """The commit of this code, marked if files were changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "without a git checkout"
    return described.stdout.strip()
