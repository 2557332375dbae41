"""The report of a study: one file that needs nothing else, light and dark, printable."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from infantxray.reports.figures import RC
from infantxray.reports.run_page import inline, setting_lines, versions, write_document
from infantxray.reports.tables import Table
from infantxray.studies import commands
from infantxray.studies.plan import Run

_CSS_PIXELS = 96 / RC["figure.dpi"]  # Figures as large as they were drawn: letters stay alike.
_OWN_STYLE = """
body { max-width: 76rem; }
table { font-size: .9rem; } th, td { padding: .2rem .55rem; vertical-align: top; }
td small { display: block; font-size: .75em; }
th { white-space: normal; vertical-align: bottom; max-width: 8rem; }
tbody td { border-bottom: 0; } tbody tr.new td { border-top: 1px solid var(--line); }
th.left, td.left { text-align: left; padding-left: 0; }
summary { cursor: pointer; }
tr.foreign td { font-style: italic; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; font-size: .9rem; }
nav a, p a { color: inherit; }
ul.short { padding-left: 1.2rem; } ul.short li { margin: .3rem 0; }
figure { margin: .6rem 0 1.2rem; }
figure picture img { max-width: 100%; height: auto; background: none; border-radius: 0; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; }
.films figure { margin: 0; }
.films img { width: 100%; background: #000; display: block; }
figcaption { font-size: .85rem; }
.films figcaption { font-size: .75rem; line-height: 1.3; margin-top: .2rem; }
.failed { border-left: .3rem solid #c62828; padding-left: .8rem; }
code { overflow-wrap: anywhere; font-size: .8rem; }
td code { white-space: pre-wrap; }
@media (max-width: 40rem) { figure:has(picture) { overflow-x: auto; }
  figure picture img:not(.pixels) { max-width: none; min-width: 36rem; }
  figure:has(picture) figcaption { position: sticky; left: 0; }
  th, td { padding: .25rem .5rem; font-size: .85rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--bg);
    white-space: normal; max-width: 8rem; } }
@media print { nav { display: none; } table { font-size: .7rem; } th, td { padding: .1rem .3rem; }
  .wide { overflow: visible; } h2 { break-after: avoid; } }
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
      title: a heading; empty: it stands below the one before.
      caption: what it shows.
      light: path of a PNG.
      dark: path of the same on a dark ground; empty where one serves both.
      pixels: it is an image, whose pixels are not to be blurred.
    """

    title: str
    caption: str
    light: str
    dark: str = ""
    pixels: bool = False

    def html(self) -> str:
        heading = html.escape(self.title)
        anchor = f" id='{_anchor(self.title)}'" if heading else ""
        source = (
            f"<source media='(prefers-color-scheme: dark)' srcset='{inline(self.dark)}'>"
            if self.dark
            else ""
        )
        pixels = " class='pixels'" if self.pixels else ""
        with Image.open(self.light) as opened:
            width = "" if self.pixels else f" width={round(opened.width * _CSS_PIXELS)}"
        image = f"<img{pixels}{width} alt='{heading or 'figure'}' src='{inline(self.light)}'>"
        return (
            (f"<h2{anchor}>{heading}</h2>" if heading else "")
            + f"<figure><picture>{source}{image}</picture>"
            + f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


@dataclasses.dataclass(frozen=True)
class Images:
    """A section of images.

    Attributes:
      title: a heading.
      caption: what they are.
      images: uint8 `[S, S]`, each with its caption.
    """

    title: str
    caption: str
    images: Sequence[tuple[np.ndarray, str]]

    def html(self) -> str:
        figures = ""
        for image, text in self.images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            text = html.escape(text)
            figures += (
                f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{text}</figcaption></figure>"
            )
        return (
            f"<h2 id='{_anchor(self.title)}'>{html.escape(self.title)}</h2>"
            f"<p class='soft'>{html.escape(self.caption)}</p><div class='images'>{figures}</div>"
        )


def write(
    path: str,
    *,
    title: str,
    subtitle: str,
    short: Sequence[str],
    failed: dict[int, str],
    parts: Sequence[Table | Picture | Images | None],
    cells: Sequence[Run],
    config: dict,
) -> None:
    """Writes the report.

    Args:
      path: of the page.
      title: its heading.
      subtitle: below it.
      short: sentences that say what came out.
      failed: why cells failed, by their number.
      parts: of the page, in order; None is left out.
      cells: all cells of a study; none where there was but this run.
      config: of the study.
    """
    shown = [part.filled() if isinstance(part, Table) else part for part in parts if part]
    body = [
        f"<h1>{html.escape(title)}</h1><p class='soft'>{html.escape(subtitle)}</p>",
        _navigation(shown, bool(cells)),
        _failures(failed, cells),
        "<h2>In short</h2><ul class='short'>"
        + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in short)
        + "</ul>",
        *(part.html() for part in shown),
        _runs(cells) if cells else "",
        f"<h2 id='made'>How this was made</h2><p class='soft'>{html.escape(versions())}</p>"
        "<p class='soft'>All tables are in <code>tables/</code> beside this page, as CSV, Markdown "
        "and LaTeX; all figures in <code>figures/</code>, as PNG and SVG.</p>"
        "<details><summary>All settings</summary><pre>"
        + html.escape("\n".join(setting_lines(config)))
        + "</pre></details>",
    ]
    write_document(path, title, body, _OWN_STYLE)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("'", "")


def _navigation(parts: Sequence, runs: bool) -> str:
    links = [
        (part.name if isinstance(part, Table) else _anchor(part.title), part.title)
        for part in parts
        if part.title
    ]
    links += [("runs", "All runs")] * runs + [("made", "How this was made")]
    return (
        "<nav>" + "".join(f"<a href='#{a}'>{html.escape(text)}</a>" for a, text in links) + "</nav>"
    )


def _failures(failed: dict[int, str], cells: Sequence[Run]) -> str:
    if not failed:
        return ""
    items = "".join(
        f"<li>{index}, {html.escape(cells[index].title)}: <code>{html.escape(why)}</code></li>"
        for index, why in sorted(failed.items())
    )
    return (
        f"<div class='failed'><h2>Failed twice: {len(failed)} of {len(cells)} runs</h2>"
        "<p>They are missing from everything below. The same command tries them again.</p>"
        f"<ul>{items}</ul></div>"
    )


def _runs(cells: Sequence[Run]) -> str:
    rows = ""
    total = 0.0
    for cell in cells:
        seconds = cell.read_record().get("seconds")
        total += seconds or 0.0
        command = html.escape(commands.printed(cell.command))
        rows += (
            f"<tr class=new><td>{cell.index}</td><td class=left>{html.escape(cell.title)}</td>"
            f"<td>{'–' if seconds is None else f'{seconds:.0f}'}</td>"
            f"<td class=left><details><summary>command</summary><code>{command}</code></details>"
            "</td></tr>"
        )
    return (
        f"<h2 id='runs'>All runs</h2><p class='soft'>{len(cells)} runs, {total / 60:.0f} minutes "
        "of their processes together. Each is an ordinary run, in a folder of its own that holds "
        "its report, checkpoints and settings; its command repeats it.</p><details><summary>"
        "List</summary><div class='wide'><table><thead><tr><th>cell</th><th>run</th>"
        f"<th>seconds</th><th></th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
