"""Every file of configs/: it loads, its command is right, and no key of it is dead."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from infantxray.runs import settings

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


def variants(name):
    """The configuration of a file, once a variant."""
    module = importlib.import_module(f"configs.{name}")
    yield module.get_config()
    if inspect.signature(module.get_config).parameters:
        for variant in re.findall(r"configs/\w+\.py:(\w+)", module.__doc__):
            yield module.get_config(variant)


def keys(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def all_keys():
    return {key for name in NAMES for config in variants(name) for key in keys(config)}


def all_sources():
    folders = (ROOT / "infantxray", ROOT / "data_pipeline")
    return [ROOT / "main.py", *(p for folder in folders for p in folder.rglob("*.py"))]


def sources():
    """All but the rules of settings, which name every key."""
    paths = all_sources()
    return [p for p in paths if p != ROOT / "infantxray" / "runs" / "settings.py"]


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_names_its_own_task(name):
    for config in variants(name):
        assert config.task == name
        assert name in settings.TASKS
        # Every task is a module with a run; found here, not after the command line was typed.
        assert callable(importlib.import_module(f"infantxray.commands.{name}").run)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    commands = re.findall(r"^    python main\.py .*(?:\\\n.*)*", text, flags=re.MULTILINE)
    assert commands
    assert commands[0].strip().startswith(f"python main.py --config=configs/{name}.py")
    (plain, *_) = variants(name)
    known = set(keys(plain))
    for command in commands:
        assert f"configs/{name}.py" in command
        for key in re.findall(r"--config\.([\w.]+)", command):
            assert key in known, f"{key} of the command in configs/{name}.py"


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_variant_is_refused(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    if inspect.signature(get_config).parameters:
        with pytest.raises(ValueError, match=f"configs/{name}.py has the variants cpu.* paper"):
            get_config("big")


def test_calls_do_not_share_state():
    from configs import pretrain

    pretrain.get_config().data.image_size = 320
    assert pretrain.get_config().data.image_size != 320


# Names of variables and attributes that hold a configuration or a group of one.
_HOLDERS = {
    "config",
    "variant",
    "_config",
    "settings",
    "data",
    "optimizer",
    "augment",
    "study",
    "self_training",
    "masking",
    "views",
}


def _reads(tree):
    """Names that are read from a configuration: `config.x`, `config["x"]`, `config.get("x")`."""

    def holder(node):
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            name = node.slice.value
        return name in _HOLDERS

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and holder(node.value):
            if isinstance(node.ctx, ast.Load):
                yield node.attr
        elif isinstance(node, ast.Subscript) and holder(node.value):
            yield getattr(node.slice, "value", None)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "get"
            and holder(node.func.value)
        ):
            yield getattr(node.args[0], "value", None)


def _built(trees):
    """Fields of the dataclasses that `settings.build` fills, as far as some code reads them."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [n for n in nodes if isinstance(n, ast.Call) and n.args]
    classes = {
        getattr(call.args[0], "id", getattr(call.args[0], "attr", None))
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", "")) == "build"
    }
    fields = {
        statement.target.id
        for node in nodes
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    return fields & {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_every_key_is_read_somewhere():
    """A setting that does nothing is worse than none: the user believes it does something."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in all_sources()]
    read = {name for tree in trees for name in _reads(tree)} | _built(trees)
    # Weights are read as a whole, by the names of objectives.
    keys = {key for key in all_keys() if "weights" not in key.split(".")[:-1]}
    dead = sorted(key for key in keys if key.split(".")[-1] not in read)
    assert dead == []


def test_messages_name_settings_that_exist():
    """Advice such as `set config.data.x` must be possible to follow."""
    known = all_keys()
    groups = {key.rsplit(".", 1)[0] for key in known if "." in key}
    wrong = []
    for path in all_sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for key in re.findall(r"\bconfig\.([a-z]\w*(?:\.[a-z]\w*)*)", node.value):
                    if key not in known | groups | {"key", "json", "variants"}:
                        wrong.append(f"{path.name}: config.{key}")
    assert not wrong, "\n".join(wrong)


def test_paper_size_differs_where_it_says_so():
    from configs import finetune, pretrain

    for module in (pretrain, finetune):
        small, paper = module.get_config(), module.get_config("paper")
        assert paper.data.image_size == 224
        assert (small.encoder, paper.encoder) == ("shufflenet", "resnet50")
        assert set(keys(small)) == set(keys(paper))
    assert finetune.get_config().age_weight == 0.8  # The paper's α.
