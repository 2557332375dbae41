"""Documentation: the README's length, relative links, and the commands that pages show."""

import functools
import importlib
import inspect
import re
import unicodedata
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks" / "results").glob("*.md"),
    ]
)
# Commands of these pages run from an older commit, which they check out first.
OLD_COMMITS = ("first_split.md",)
FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
# Of a command of main.py that continues over lines; and of a shell variable that holds settings.
COMMAND = re.compile(r"main\.py(?:[^\n#\\]|\\\n|\\.)*")
VARIABLE = re.compile(r"^ *([A-Z]+)=(\"[^\"]*\"|\S*)", flags=re.MULTILINE)
SETTING = re.compile(r"--config\.([\w.]+)")


def page_id(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding="utf-8")


def anchors(path):
    """What a link may name after `#`: headings as GitHub writes them."""
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(path)), flags=re.MULTILINE):
        kept = "".join(
            c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN"
        )
        yield kept.replace(" ", "-")


def expand(text):
    """Commands of the page's code blocks, shell variables filled in."""
    blocks = "\n".join(FENCE.findall(text))
    variables = {name: value.strip('"') for name, value in VARIABLE.findall(blocks)}
    for command in COMMAND.findall(blocks):
        for _ in range(3):  # Variables may hold variables.
            command = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), command)
        yield command


@functools.cache
def keys(name, variant):
    """Settings of a file of configs/, and its groups."""

    def walk(config, prefix=""):
        for key, value in config.items():
            yield prefix + key
            if isinstance(value, ConfigDict):
                yield from walk(value, f"{prefix}{key}.")

    get_config = importlib.import_module(f"configs.{name}").get_config
    if variant and not inspect.signature(get_config).parameters:
        pytest.fail(f"configs/{name}.py has no variants")
    return frozenset(walk(get_config(variant) if variant else get_config()))


def wrong_in(command):
    """What a command names that does not exist."""
    configs = re.findall(r"--config=configs/(\w+)\.py(?::(\w+))?", command)
    if not configs:
        return [] if "--config=" not in command else [f"no file of configs/ in {command!r}"]
    (name, variant), *_ = configs
    if not (ROOT / "configs" / f"{name}.py").exists():
        return [f"configs/{name}.py does not exist"]
    known = keys(name, variant)
    return [
        f"configs/{name}.py has no {key}" for key in SETTING.findall(command) if key not in known
    ]


def test_readme_takes_five_minutes():
    """At 200 words a minute, code blocks apart."""
    text = text_of(ROOT / "README.md")
    assert len(text.split()) <= 1200
    assert len(FENCE.sub("", text).split()) <= 1000


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(path))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in OLD_COMMITS], ids=page_id)
def test_commands_name_files_and_settings_that_exist(path):
    text = text_of(path)
    wrong = [problem for command in expand(text) for problem in wrong_in(command)]
    for file in re.findall(r"(?:python|pytest) ((?:benchmarks|tests)/[\w/]+\.py)", text):
        if not (ROOT / file).exists():
            wrong.append(f"{file} does not exist")
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in OLD_COMMITS], ids=page_id)
def test_settings_named_in_the_text_exist(path):
    names = [file.stem for file in (ROOT / "configs").glob("*.py")]
    known = {key for name in {*names} - {"__init__", "common"} for key in keys(name, "")}
    spans = re.findall(r"`([^`\n]*)`", text_of(path))
    assert {key.rstrip(".") for span in spans for key in SETTING.findall(span)} <= known


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=page_id)
def test_files_named_in_the_text_exist(path):
    files = re.findall(
        r"`((?:configs|data_pipeline|infantxray|benchmarks|tests|docs)/[\w./]+\.(?:py|md|png))[`:]",
        text_of(path),
    )
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_figure_of_results_reads_the_tables_of_the_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figure = importlib.import_module("results_figure")
    page = text_of(figure.PAGE)
    for panel in figure.panels(page).values():
        assert panel.keys() <= figure.STYLES.keys()
        for shares in panel.values():
            assert len(shares) == len(figure.SHARES)
            assert all(0.0 < low < mean < high < 1.0 for mean, low, high in shares)
    assert figure.FIGURE.stat().st_size < 150_000
